// kv_append: puts the rotated key and the value of each token into the cache
// attention: z[t,h,:] = sum_j softmax_j(dot(q[t,h,:], k[j,:]) * scale) * v[j,:], over the visible j <= position[t]
//
//   q       (T,H*D) f32, row stride ldq: rotated queries; head h reads key-value head h / (H/G)
//   k, v    (T,G*D) f32, row strides ldk, ldv
//   keys    (tiles,G,4,D,32) f32   the cache: a tile holds 128 positions; its keys stand transposed, 32 and 32, so that what is
//                                  read of a tile that is not full stands together
//   values  (tiles,G,128,W) f32    W = 32 C >= D, C the kernel's number; the columns from D on are zero
//   position, tile0 (T,) i32       position of the token; first tile of its sequence
//   z       (T,H*D) f32, row stride ldz
//
// kv_append8, attention8: the cache in 8 bits, a scale for each row of keys and of values, of a head and position: scale =
// max |k| / 127, key = rint(k / scale) clamped to ±127, and values alike
//
//   keys, values             as above, i8
//   key_scale, value_scale   (tiles,G,128) f32
//
// probed_attention, probed_attention8: the same z, and of each head 8 words, row stride ldh: 0 log-sum-exp of s   1 entropy of the weights in nats   2 max s
//   3 weight of key 0   4 of the token itself   5 mean distance position - j   6 argmax j (u32), lowest   7 weight of position - 1
//
// Order, per tile of 128 keys counted from position 0:
//   s[j]  lane i (of 32) takes dimensions i, i+32, ... with one fma each; tree 16, 8, 4, 2, 1; + (+0); one multiplication by scale
//   m = max s;  p[j] = exp(s[j] - m);  l, o[d] in 4 chains, key mod 4, one addition or fma each; (0+2)+(1+3); + (+0)
// Tiles are folded in order: M' = max(M,m), a = exp(M-M'), b = exp(m-M'), l = fma(b, l_tile, a*l), o alike; z = o / l.
// Heads, per tile: u = sum p[j] (s[j] - m) and d = sum p[j] (position - j) over 32 lanes, key mod 32, and their tree; folded as
// u' = b (u_tile + l_tile (m - M')) + a (u + l (M - M')), d' = b d_tile + a d. entropy = log(l) - u / l, at least 0.
// In 8 bits: s[j] is the sum times key_scale[j], then times scale; what o adds is fma(p[j] value_scale[j], value, o).
// Invisible keys are absent: a key with p = 0 adds nothing, and the last addition leaves no -0.
// One item a head of a token; of kv_append a dimension of the keys, then a row of the values; of kv_append8 a row.
#include "lanes.cuh"
#include "levels.cuh"
#include "math.cuh"
#include "ordered.cuh"

#define TILE 128
#define KEYS 32  // that stand together

// Where the first number of key j of a tile is; the next is KEYS further.
HD i64 key_at(int j, int D) { return (i64)(j / KEYS) * KEYS * D + j % KEYS; }

KERNEL(kv_append, float* keys, float* values, const float* k, const float* v, const i32* position, const i32* tile0,
       const i32* T, int G, int D, int wide, int ldk, int ldv) {
    FOR_ITEMS(item, (i64)G * D) {  // a row of the transposed keys at a time: its positions are neighbours
        i64 g = item / D, d = item % D;
        FOR_LANES(t, *T) {
            i64 tile = tile0[t] + position[t] / TILE;
            keys[(tile * G + g) * D * TILE + key_at(position[t] % TILE, D) + d * KEYS] = k[(i64)t * ldk + item];
        }
    }
    FOR_ITEMS(item, (i64)*T * G) {
        i64 t = item / G, g = item % G, tile = tile0[t] + position[t] / TILE;
        float* row = values + ((tile * G + g) * TILE + position[t] % TILE) * wide;
        FOR_LANES(d, D) row[d] = v[t * ldv + g * D + d];
    }
}

// A row of the transposed keys, or of the values: i8, `step` apart. Gives its scale.
HD float put_row(i8* to, i64 step, const float* x, int n) {
    float scale = largest(x, n) / 127.0f;
    if (divides(scale)) {
#ifdef ON_CUDA
        FOR_LANES(i, n) to[i * step] = (i8)level(x[i], scale, -127.0f, 127.0f);
#else
        for (int c = 0; c < n; c += 64) {  // made side by side, then put where they belong
            i8 made[64];
            int count = n - c < 64 ? n - c : 64;
            for (int i = 0; i < count; i++) made[i] = (i8)level(x[c + i], scale, -127.0f, 127.0f);
            for (int i = 0; i < count; i++) to[(c + i) * step] = made[i];
        }
#endif
    } else {
        FOR_LANES(i, n) to[i * step] = 0;
    }
    return scale;
}
KERNEL(kv_append8, i8* keys, i8* values, float* key_scale, float* value_scale, const float* k, const float* v,
       const i32* position, const i32* tile0, const i32* T, int G, int D, int wide, int ldk, int ldv) {
    FOR_ITEMS(item, (i64)*T * G) {
        i64 g = item / *T, t = item % *T;  // neighbours write into the same lines of the keys
        i64 tile = (tile0[t] + position[t] / TILE) * G + g;
        int at = position[t] % TILE;
        float of_key = put_row(keys + tile * D * TILE + key_at(at, D), KEYS, k + t * ldk + g * D, D);
        float of_value = put_row(values + (tile * TILE + at) * wide, 1, v + t * ldv + g * D, D);
        if (LEADER) key_scale[tile * TILE + at] = of_key, value_scale[tile * TILE + at] = of_value;
    }
}

// One head of one sequence's cache, from its first tile on; what scales it is null where it is float32.
template <class E> struct Stored { const E *keys, *values; const float *key_scale, *value_scale; };
template <class E> constexpr bool IS_SCALED = sizeof(E) == 1;
template <int C, class E> HD Stored<E> cache_of(Stored<E> all, i64 tile0, i64 g, int G, int D) {
    i64 tile = tile0 * G + g;
    Stored<E> cache = {all.keys + tile * D * TILE, all.values + tile * TILE * 32 * C, nullptr, nullptr};
    if constexpr (IS_SCALED<E>) cache.key_scale = all.key_scale + tile * TILE, cache.value_scale = all.value_scale + tile * TILE;
    return cache;
}

// What a probe keeps of a head while tiles are folded; not yet divided by l.
struct Head {
    float u, d, first, self, previous;
    i32 argmax;
};

// Folds what a tile came to into the head: its sums, its weight of the first key and of the last, and of the one before the
// token's own if it is in this tile. r = M - M', t = m - M'; a, b their exponentials.
HD void fold(Head& head, float u, float d, float first, float self, bool has_previous, float previous, int begin, float l,
             float l_tile, float r, float t, float a, float b) {
    head.u = b * (u + l_tile * t) + a * (begin ? head.u + l * r : 0.0f);
    head.d = b * d + a * head.d;
    head.first = begin ? a * head.first : b * first;
    head.self = b * self;  // of the last tile
    head.previous = has_previous ? b * previous : a * head.previous;
}
HD bool holds_previous(int begin, int count, int visible) {
    int before = visible - 2 - begin;
    return before >= 0 && before < count;
}
// Folds a tile of weights p[0..count-1]; up to 31 more are zeros. shift: s - m.
ONCE void fold(Head& head, const float* p, const float* shift, int begin, int count, int visible, float l, float l_tile,
             float r, float t, float a, float b) {
    lanes u = zero(), d = zero(), away = add(splat((float)(visible - 1 - begin)), mul(ramp(), splat(-1.0f)));
    for (int j = 0; j < count; j += 32, away = add(away, splat(-32.0f))) {
        lanes weight = load(p + j);
        u = fma(weight, load(shift + j), u);
        d = fma(weight, away, d);
    }
    bool is_here = holds_previous(begin, count, visible);
    float previous = is_here ? p[visible - 2 - begin] : 0.0f;
    fold(head, sum(u), sum(d), p[0], p[count - 1], is_here, previous, begin, l, l_tile, r, t, a, b);
}

// What is left of the tiles so far, of one head of one token: C chunks of 32 dimensions.
template <int C> struct Folded {
    float M, l, a, b;  // a and b are those of the last tile
    Head head;
    lanes o[C];
};
template <int C> HD void begin_fold(Folded<C>& f) {
    f.M = from_bits(0xff800000u), f.l = 0.0f;
    f.head = {};
#pragma unroll
    for (int c = 0; c < C; c++) f.o[c] = zero();
}

// Makes weights of the scores p[0..count-1] of a tile, and folds them: all but the mix. `weight` is what values are multiplied by.
template <int C, bool PROBED, class E>
ONCE void soften(Folded<C>& f, float* p, float* shift, float* weight, const float* value_scale, int begin, int count, int visible) {
    int scored = (count + 31) / 32 * 32, quads = (count + 3) / 4 * 4;  // behind count there is noise: weight 0
    u32 top = 0;
    FOR_LANES(j, scored) { u32 u = j < count ? ordered(p[j]) : 0; top = u > top ? u : top; }
    float m = unordered(all_max(top));
    if (PROBED && (begin == 0 || ordered(m) > ordered(f.M))) {
        u32 before = 0;  // the larger the earlier
        FOR_LANES(j, scored) {
            u32 u = j < count && bits(p[j]) == bits(m) ? (u32)(TILE - j) : 0;
            before = u > before ? u : before;
        }
        f.head.argmax = begin + TILE - (int)all_max(before);
    }
    FOR_LANES(j, scored) {
        float s = p[j] - m;
        if constexpr (PROBED) shift[j] = j < count ? s : 0.0f;
        p[j] = j < count ? exponential(s) : 0.0f;
        if constexpr (IS_SCALED<E>) weight[j] = j < count ? p[j] * value_scale[j] : 0.0f;
    }
    SYNC_LANES();
    float chain[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int j = 0; j < quads; j += 4)
        for (int i = 0; i < 4; i++) chain[i] = chain[i] + p[j + i];
    float l_tile = (chain[0] + chain[2]) + (chain[1] + chain[3]) + 0.0f;
    float M_next = ordered(m) > ordered(f.M) ? m : f.M;
    f.a = exponential(f.M - M_next), f.b = exponential(m - M_next);
    if constexpr (PROBED) fold(f.head, p, shift, begin, count, visible, f.l, l_tile, f.M - M_next, m - M_next, f.a, f.b);
    f.l = fma(f.b, l_tile, f.a * f.l);
    f.M = M_next;
}

template <int C, bool PROBED> ONCE void end_fold(const Folded<C>& f, float* z, u32* probed, int D) {
#pragma unroll
    for (int c = 0; c < C; c++) store(z + 32 * c, div(f.o[c], splat(f.l)), D - 32 * c);
    if constexpr (PROBED) {
        if (!LEADER) return;
        float entropy = logarithm(f.l) - f.head.u / f.l;
        probed[0] = bits(f.M + logarithm(f.l));
        probed[1] = bits(entropy > 0.0f ? entropy : 0.0f);
        probed[2] = bits(f.M);
        probed[3] = bits(f.head.first / f.l);
        probed[4] = bits(f.head.self / f.l);
        probed[5] = bits(f.head.d / f.l);
        probed[6] = (u32)f.head.argmax;
        probed[7] = bits(f.head.previous / f.l);
    }
}

#ifdef ON_CUDA
HD float number(float x) { return x; }
HD float number(i8 x) { return (float)x; }
// A key a thread, and an accumulator for each of the 32 lanes of the order: 32 loads are in flight.
template <int H, class E> HD lanes scores(const float* q, const E* kt, int D, int) {
    float acc[32];
#pragma unroll
    for (int i = 0; i < 32; i++) acc[i] = 0.0f;
    int begin = 0;
    for (; begin + 32 <= D; begin += 32)
#pragma unroll
        for (int i = 0; i < 32; i++) acc[i] = fma(q[begin + i], number(kt[(begin + i) * KEYS + LANE]), acc[i]);
#pragma unroll
    for (int i = 0; i < 32; i++)
        if (begin + i < D) acc[i] = fma(q[begin + i], number(kt[(begin + i) * KEYS + LANE]), acc[i]);
#pragma unroll
    for (int h = 16; h > 0; h >>= 1)
#pragma unroll
        for (int i = 0; i < 16; i++)
            if (i < h) acc[i] = acc[i] + acc[i + h];
    return {acc[0]};
}

// Scores of the first count keys of a tile; up to 31 more are written.
template <class E> ONCE void score(float* s, const float* q, const E* kt, const float* key_scale, int D, int count, float scale) {
    for (int j = 0; j < count; j += 32) {
        lanes dot = add(scores<1>(q, kt + (i64)j * D, D, 0), zero());
        if constexpr (IS_SCALED<E>) dot = mul(dot, load(key_scale + j));
        store(s + j, mul(dot, splat(scale)));
    }
}

// Folds a tile into 32 dimensions of the mix: its values times the weights p[0..count-1]. What stands behind them may
// be anything, a NaN as well: a guess of what comes next, which was wrong, wrote there.
template <class E> ONCE lanes mix(lanes o, const float* p, const E* v, int wide, int count, float a, float b) {
    lanes x[4] = {zero(), zero(), zero(), zero()};
    int j = 0;
    for (; j + 4 <= count; j += 4)
        for (int i = 0; i < 4; i++) x[i] = fma(splat(p[j + i]), load(v + (i64)(j + i) * wide), x[i]);
    for (int i = 0; i < 3; i++)
        if (j + i < count) x[i] = fma(splat(p[j + i]), load(v + (i64)(j + i) * wide), x[i]);
    lanes o_tile = add(add(add(x[0], x[2]), add(x[1], x[3])), zero());
    return fma(splat(b), o_tile, mul(splat(a), o));
}

template <int C, bool PROBED, class E>
HD void attend(float* z, u32* probed, const float* q, Stored<E> cache, int G, int visible, int D, float scale) {
    SCRATCH(float, p, (1 + PROBED + IS_SCALED<E>) * TILE);
    [[maybe_unused]] float *shift = p + TILE, *weight = IS_SCALED<E> ? p + (1 + PROBED) * TILE : p;
    Folded<C> f;
    begin_fold(f);
    for (int begin = 0; begin < visible; begin += TILE) {
        int count = visible - begin < TILE ? visible - begin : TILE;
        score(p, q, cache.keys, cache.key_scale, D, count, scale);
        SYNC_LANES();
        soften<C, PROBED, E>(f, p, shift, weight, cache.value_scale, begin, count, visible);
#pragma unroll
        for (int c = 0; c < C; c++) f.o[c] = mix(f.o[c], weight, cache.values + 32 * c, 32 * C, count, f.a, f.b);
        cache.keys += (i64)G * D * TILE, cache.values += (i64)G * TILE * 32 * C;
        if constexpr (IS_SCALED<E>) cache.key_scale += G * TILE, cache.value_scale += G * TILE;
        SYNC_LANES();
    }
    end_fold<C, PROBED>(f, z, probed, D);
}

constexpr int TOGETHER = 1;  // heads of an item
template <int C, bool PROBED, int MOST, class E>
HD void attention(Share share, float* z, u32* heads, const float* q, Stored<E> all, const i32* position, const i32* tile0,
                  const i32* T, int H, int G, int D, int ldz, int ldh, int ldq, float scale) {
    FOR_ITEMS(item, (i64)*T * H) {
        i64 t = item / H, h = item % H;
        attend<C, PROBED>(z + t * ldz + h * D, PROBED ? heads + t * ldh + 8 * h : heads, q + t * ldq + h * D,
                          cache_of<C>(all, tile0[t], h / (H / G), G, D), G, position[t] + 1, D, scale);
    }
}
#else
#include "attention_host.cuh"
#endif

#define ATTENTION(C)                                                                                                          \
    KERNEL(attention_##C, float* z, const float* q, const float* keys, const float* values, const i32* position,              \
           const i32* tile0, const i32* T, int H, int G, int D, int ldz, int ldq, float scale) {                              \
        attention<C, false, TOGETHER>(share, z, nullptr, q, Stored<float>{keys, values, nullptr, nullptr}, position, tile0,   \
            T, H, G, D, ldz, 0, ldq, scale);                                                                                  \
    }                                                                                                                         \
    KERNEL(attention8_##C, float* z, const float* q, const i8* keys, const i8* values, const float* key_scale,                \
           const float* value_scale, const i32* position, const i32* tile0, const i32* T, int H, int G, int D, int ldz,       \
           int ldq, float scale) {                                                                                            \
        attention<C, false, TOGETHER>(share, z, nullptr, q, Stored<i8>{keys, values, key_scale, value_scale}, position, tile0,\
            T, H, G, D, ldz, 0, ldq, scale);                                                                                  \
    }
ATTENTION(1)
ATTENTION(2)
ATTENTION(3)
ATTENTION(4)
ATTENTION(8)

#define PROBED_ATTENTION(C)                                                                                                   \
    KERNEL(probed_attention_##C, float* z, u32* heads, const float* q, const float* keys, const float* values,                \
           const i32* position, const i32* tile0, const i32* T, int H, int G, int D, int ldz, int ldh, int ldq,               \
           float scale) {                                                                                                     \
        attention<C, true, TOGETHER>(share, z, heads, q, Stored<float>{keys, values, nullptr, nullptr}, position, tile0,      \
            T, H, G, D, ldz, ldh, ldq, scale);                                                                                \
    }                                                                                                                         \
    KERNEL(probed_attention8_##C, float* z, u32* heads, const float* q, const i8* keys, const i8* values,                     \
           const float* key_scale, const float* value_scale, const i32* position, const i32* tile0, const i32* T, int H,      \
           int G, int D, int ldz, int ldh, int ldq, float scale) {                                                            \
        attention<C, true, TOGETHER>(share, z, heads, q, Stored<i8>{keys, values, key_scale, value_scale}, position, tile0,   \
            T, H, G, D, ldz, ldh, ldq, scale);                                                                                \
    }
#ifndef NO_PROBES  // a test compares the code of the others with and without
PROBED_ATTENTION(1)
PROBED_ATTENTION(2)
PROBED_ATTENTION(3)
PROBED_ATTENTION(4)
PROBED_ATTENTION(8)
#endif

#ifdef ON_CUDA
#include "attention_cuda.cuh"
#endif
