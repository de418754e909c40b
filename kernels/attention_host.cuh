// attention_host.cuh: attention on a core. The bits are those of attention.cu, which includes this.
//
// Heads that share a key-value head, and tokens of one sequence that stand together, pass over a tile of the cache while
// it is near: 32 keys at a time for all of them, then 32 dimensions of the values. What is 8 bits is widened once for them.
//
// Order: that of attention.cu. The tree over 32 lanes is a recursion for several keys at once, so that no lane ever has to
// move; the four chains of the mix come one after the other, each for two of those who ask.
#pragma once
#include "vec_host.cuh"

constexpr int TOGETHER = 32;  // heads of tokens that share a tile; alone_...: 1

template <class E> HD void widen_row(float* to, const E* from) {
    for (int i = 0; i < 32; i++) to[i] = (float)from[i];
}

// The sum over dimensions i, i + H, ... of 2 WIDTH keys. C chunks of 32 dimensions if it is not 0, else as many as there are.
template <int H, int C> HD pair scores(const float* q, const float* k, int D, int i) {
    if constexpr (H == 32) {
        pair acc = splat_pair(0.0f);
        if constexpr (C > 0) {
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) acc = fma(splat_pair(q[i + 32 * c]), load_pair(k + (i + 32 * c) * KEYS), acc);
        } else {
            for (int d = i; d < D; d += 32) acc = fma(splat_pair(q[d]), load_pair(k + d * KEYS), acc);
        }
        return acc;
    } else {
        pair left = scores<2 * H, C>(q, k, D, i);
        in_registers(left);  // else a compiler makes many leaves first, and has no room for them
        pair right = scores<2 * H, C>(q, k, D, i + H);
        in_registers(right);
        return add(left, right);
    }
}

// Scores of KEYS keys.
template <int C> ONCE void score(float* s, const float* q, const float* k, const float* key_scale, int D, float scale) {
    for (int j = 0; j < KEYS; j += 2 * WIDTH) {
        pair dot = add(scores<1, C>(q, k + j, D, 0), splat_pair(0.0f));
        if (key_scale) dot = mul(dot, load_pair(key_scale + j));
        store(s + j, mul(dot, splat_pair(scale)));
    }
}

// Adds the values of keys j, j + 4, ... < count, times the weights of N of those who ask, to 32 dimensions of each.
constexpr int PAIRS = 32 / (2 * WIDTH);
template <int N> HD void add_values(pair (&x)[N][PAIRS], const float* const (&p)[N], const float* v, i64 step, int j, int count) {
    for (; j < count; j += 4) {
        const float* row = v + j * step;
        pair value[PAIRS];
#pragma GCC unroll 8
        for (int i = 0; i < PAIRS; i++) value[i] = load_pair(row + 2 * WIDTH * i);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            pair by = splat_pair(p[n][j]);
#pragma GCC unroll 8
            for (int i = 0; i < PAIRS; i++) x[n][i] = fma(by, value[i], x[n][i]);
        }
    }
}

// Folds a tile into 32 dimensions of the mix of N who ask: its values times their weights p[0..count-1]. What stands behind
// them may be anything, a NaN as well: a guess of what comes next, which was wrong, wrote there.
template <int N>
ONCE void mix(lanes* const (&o)[N], const float* const (&p)[N], const float* v, i64 step, const int (&count)[N], const float (&a)[N],
              const float (&b)[N]) {
    alignas(64) float chain[4][N][32];
    int common = count[0];
    for (int n = 1; n < N; n++) common = count[n] < common ? count[n] : common;
    for (int i = 0; i < 4; i++) {
        pair x[N][PAIRS];
#pragma GCC unroll 16
        for (int n = 0; n < N * PAIRS; n++) x[n / PAIRS][n % PAIRS] = splat_pair(0.0f);
        add_values<N>(x, p, v, step, i, common);
        int next = common <= i ? i : i + (common - i + 3) / 4 * 4;
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            pair one[1][PAIRS];
            memcpy(one, x[n], sizeof one);
            if (next < count[n]) add_values<1>(one, {p[n]}, v, step, next, count[n]);
            for (int k = 0; k < PAIRS; k++) store(&chain[i][n][2 * WIDTH * k], one[0][k]);
        }
    }
    for (int n = 0; n < N; n++) {
        lanes even = add(load(chain[0][n]), load(chain[2][n])), odd = add(load(chain[1][n]), load(chain[3][n]));
        lanes o_tile = add(add(even, odd), zero());
        *o[n] = fma(splat(b[n]), o_tile, mul(splat(a[n]), *o[n]));
    }
}

// One head of one token.
template <int C> struct Asking {
    float* z;
    u32* probed;
    const float* q;
    int visible, count;
    Folded<C> folded;
    alignas(64) float p[TILE];
    alignas(64) float shift[TILE];
    alignas(64) float weight[TILE];
};

template <int C, class E> HD void mix_all(Asking<C>* each, int n, Stored<E> cache, int most) {
    alignas(64) float near[TILE * 32];
    for (int c = 0; c < C; c++) {
        const float* v = near;
        i64 step = 32;
        bool is_near = IS_SCALED<E> || n > 2;
        for (int j = 0; is_near && j < most; j++) widen_row(near + 32 * j, cache.values + j * 32 * C + 32 * c);
        if constexpr (!IS_SCALED<E>)
            if (!is_near) v = cache.values + 32 * c, step = 32 * C;
        for (int k = 0; k < n; k += 2) {
            Asking<C>&x = each[k], &y = each[k + 1 < n ? k + 1 : k];
            const float *of_x = IS_SCALED<E> ? x.weight : x.p, *of_y = IS_SCALED<E> ? y.weight : y.p;
            if (k + 1 < n)
                mix<2>({&x.folded.o[c], &y.folded.o[c]}, {of_x, of_y}, v, step, {x.count, y.count}, {x.folded.a, y.folded.a},
                       {x.folded.b, y.folded.b});
            else mix<1>({&x.folded.o[c]}, {of_x}, v, step, {x.count}, {x.folded.a}, {x.folded.b});
        }
    }
}

// Asks for KEYS positions before anything waits for them, for trees and chains do not come to them in order: at four places by
// turns, since a core that sees lines of a page asked for in order goes on by itself. Those of 8 bits fill one page, and their
// keys are read in order.
template <int C, class E> HD void ask_block(const E* keys, const E* values) {
    constexpr int SIZE = KEYS * 32 * C * (int)sizeof(E), PART = IS_SCALED<E> ? SIZE : SIZE / 2;
    const char *k = (const char*)keys, *v = (const char*)values;
    for (int i = 0; i < PART; i += 64) {
        if constexpr (PART < SIZE) {
            PREFETCH(k + i);
            PREFETCH(k + PART + i);
            PREFETCH(v + PART + i);
        }
        PREFETCH(v + i);
    }
}

// All who ask, over the cache of their sequence: those who see more come later.
template <int C, class E> ONCE void attend(Asking<C>* each, int n, bool is_probed, Stored<E> cache, int G, int D, float scale) {
    alignas(64) float near[IS_SCALED<E> ? 32 * C * KEYS : 1];
    int longest = 0;
    for (int k = 0; k < n; k++) {
        begin_fold(each[k].folded);
        longest = each[k].visible > longest ? each[k].visible : longest;
    }
    for (int begin = 0; begin < longest; begin += TILE) {
        int most = longest - begin < TILE ? longest - begin : TILE;
        for (; each->visible <= begin; n--) each++;  // has seen all
        for (int k = 0; k < n; k++) each[k].count = each[k].visible - begin < most ? each[k].visible - begin : most;
        for (int j = 0; j < most; j += KEYS) {
            ask_block<C>(cache.keys + j * D, cache.values + (i64)j * 32 * C);
            const float *keys, *key_scale = nullptr;
            if constexpr (IS_SCALED<E>) {
                for (int d = 0; d < D; d++) widen_row(near + d * KEYS, cache.keys + j * D + d * KEYS);
                keys = near, key_scale = cache.key_scale + j;
            } else {
                keys = cache.keys + j * D;
            }
            for (int k = 0; k < n; k++) {
                Asking<C>& one = each[k];
                if (one.count > j) (D == 32 * C ? score<C> : score<0>)(one.p + j, one.q, keys, key_scale, D, scale);
            }
        }
        for (int k = 0; k < n; k++) {
            Asking<C>& one = each[k];
            auto make_weights = is_probed ? soften<C, true, E> : soften<C, false, E>;
            make_weights(one.folded, one.p, one.shift, one.weight, cache.value_scale, begin, one.count, one.visible);
        }
        mix_all<C>(each, n, cache, most);
        for (int k = 0; k < n; k++)
            if (each[k].visible <= begin + TILE)
                (is_probed ? end_fold<C, true> : end_fold<C, false>)(each[k].folded, each[k].z, each[k].probed, D);
        cache.keys += (i64)G * D * TILE, cache.values += (i64)G * TILE * 32 * C;
        if constexpr (IS_SCALED<E>) cache.key_scale += G * TILE, cache.value_scale += G * TILE;
    }
}

template <int C, bool PROBED, int MOST, class E>
HD void attention(Share share, float* z, u32* heads, const float* q, Stored<E> all, const i32* position, const i32* tile0,
                  const i32* T, int H, int G, int D, int ldz, int ldh, int ldq, float scale) {
    // as many tokens as make up MOST heads if most stand beside another of their sequence, but fewer, or a part of the heads,
    // where that leaves threads without work
    int of_group = H / G, tokens = MOST > of_group ? MOST / of_group : 1, heads_of = of_group, neighbours = 0;
    for (int t = 1; t < *T; t++) neighbours += tile0[t] == tile0[t - 1];
    if (2 * neighbours < *T) tokens = 1;
    while (tokens > 1 && (i64)((*T + tokens - 1) / tokens) * G < share.count) tokens /= 2;
    if (MOST == 1 || (tokens == 1 && (i64)*T * G < share.count)) heads_of = 1;
    i64 parts = H / heads_of;
    Asking<C> each[TOGETHER];
    FOR_ITEMS(item, (*T + tokens - 1) / tokens * parts) {
        i64 first = item / parts * tokens, h0 = item % parts * heads_of, g = h0 / of_group;
        int n = 0;
        for (i64 t = first; t < *T && t < first + tokens; t++)
            for (i64 h = h0; h < h0 + heads_of; h++) {
                Asking<C>& one = each[n++];
                one.z = z + t * ldz + h * D, one.probed = PROBED ? heads + t * ldh + 8 * h : heads;
                one.q = q + t * ldq + h * D, one.visible = position[t] + 1;
                bool is_last = h + 1 == h0 + heads_of, goes_on = t + 1 < *T && t + 1 < first + tokens;
                bool follows = !is_last || (goes_on && tile0[t + 1] == tile0[t] && position[t + 1] > position[t]);
                if (n < TOGETHER && follows) continue;
                attend<C>(each, n, PROBED, cache_of<C>(all, tile0[t], g, G, D), G, D, scale);
                n = 0;
            }
    }
}

#define ALONE_ATTENTION(C)                                                                                                    \
    KERNEL(alone_attention_##C, float* z, const float* q, const float* keys, const float* values, const i32* position,        \
           const i32* tile0, const i32* T, int H, int G, int D, int ldz, int ldq, float scale) {                              \
        attention<C, false, 1>(share, z, nullptr, q, Stored<float>{keys, values, nullptr, nullptr}, position, tile0,          \
            T, H, G, D, ldz, 0, ldq, scale);                                                                                  \
    }                                                                                                                         \
    KERNEL(alone_attention8_##C, float* z, const float* q, const i8* keys, const i8* values, const float* key_scale,          \
           const float* value_scale, const i32* position, const i32* tile0, const i32* T, int H, int G, int D, int ldz,       \
           int ldq, float scale) {                                                                                            \
        attention<C, false, 1>(share, z, nullptr, q, Stored<i8>{keys, values, key_scale, value_scale}, position, tile0,       \
            T, H, G, D, ldz, 0, ldq, scale);                                                                                  \
    }                                                                                                                         \
    KERNEL(alone_probed_attention_##C, float* z, u32* heads, const float* q, const float* keys, const float* values,          \
           const i32* position, const i32* tile0, const i32* T, int H, int G, int D, int ldz, int ldh, int ldq,               \
           float scale) {                                                                                                     \
        attention<C, true, 1>(share, z, heads, q, Stored<float>{keys, values, nullptr, nullptr}, position, tile0,             \
            T, H, G, D, ldz, ldh, ldq, scale);                                                                                \
    }                                                                                                                         \
    KERNEL(alone_probed_attention8_##C, float* z, u32* heads, const float* q, const i8* keys, const i8* values,               \
           const float* key_scale, const float* value_scale, const i32* position, const i32* tile0, const i32* T, int H,      \
           int G, int D, int ldz, int ldh, int ldq, float scale) {                                                            \
        attention<C, true, 1>(share, z, heads, q, Stored<i8>{keys, values, key_scale, value_scale}, position, tile0,          \
            T, H, G, D, ldz, ldh, ldq, scale);                                                                                \
    }
ALONE_ATTENTION(1)
ALONE_ATTENTION(2)
ALONE_ATTENTION(3)
ALONE_ATTENTION(4)
ALONE_ATTENTION(8)
