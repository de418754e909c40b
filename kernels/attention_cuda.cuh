// attention_cuda.cuh: attention on a GPU by tiles of the cache: the variant for few tokens that see many keys, of which a warp a
// head would leave most of the device idle.
//
// split_…   what each tile of 128 keys comes to by itself
// join_…    folds the tiles of a head, in order, into what attention makes
//
//   part   (T, H, most, 8 + 32 C) f32: of each visible tile M, l, u, d, p of its first key, of its last, and of the one before the
//          token's own, argmax (i32), and the mix; `most`: tiles that a sequence may have
//
// Order: that of attention.cu. A tile alone is the first of its head: there a is 0 and b is 1, so that its sums stand as they are.
// One item a tile of a head of a token; of join a head. Include behind attention.cu.
#pragma once
#include "lanes.cuh"

constexpr int WORDS = 8;  // of a part before its mix

template <int C, bool PROBED, class E>
HD void split(Share share, float* part, const float* q, Stored<E> all, const i32* position, const i32* tile0, const i32* T, int H,
              int G, int D, int ldq, float scale, int most) {
    SCRATCH(float, p, (1 + PROBED + IS_SCALED<E>) * TILE);
    [[maybe_unused]] float *shift = p + TILE, *weight = IS_SCALED<E> ? p + (1 + PROBED) * TILE : p;
    FOR_ITEMS(item, (i64)*T * H * most) {
        i64 n = item % most, h = item / most % H, t = item / most / H;
        int visible = position[t] + 1 - (int)n * TILE, count = visible < TILE ? visible : TILE;
        if (visible <= 0) continue;
        Stored<E> cache = cache_of<C>(all, tile0[t] + n, h / (H / G), G, D);
        Folded<C> f;
        begin_fold(f);
        score(p, q + t * ldq + h * D, cache.keys, cache.key_scale, D, count, scale);
        SYNC_LANES();
        soften<C, PROBED, E>(f, p, shift, weight, cache.value_scale, 0, count, visible);
        float* to = part + item * (WORDS + 32 * C);
#pragma unroll
        for (int c = 0; c < C; c++)
            store(to + WORDS + 32 * c, mix(zero(), weight, cache.values + 32 * c, 32 * C, count, 0.0f, 1.0f));
        if (LEADER) {
            to[0] = f.M, to[1] = f.l, to[2] = f.head.u, to[3] = f.head.d;
            to[4] = f.head.first, to[5] = f.head.self, to[6] = f.head.previous, to[7] = from_bits((u32)f.head.argmax);
        }
        SYNC_LANES();
    }
}

template <int C, bool PROBED>
HD void join(Share share, float* z, u32* heads, const float* part, const i32* position, const i32* T, int H, int D, int ldz,
             int ldh, int most) {
    FOR_ITEMS(item, (i64)*T * H) {
        i64 t = item / H, h = item % H;
        const float* from = part + item * most * (WORDS + 32 * C);
        int visible = position[t] + 1;
        Folded<C> f;
        begin_fold(f);
        for (int begin = 0; begin < visible; begin += TILE, from += WORDS + 32 * C) {
            float m = from[0], l_tile = from[1], M_next = ordered(m) > ordered(f.M) ? m : f.M;
            f.a = exponential(f.M - M_next), f.b = exponential(m - M_next);
            if constexpr (PROBED) {
                if (begin == 0 || ordered(m) > ordered(f.M)) f.head.argmax = begin + (i32)bits(from[7]);
                int count = visible - begin < TILE ? visible - begin : TILE;
                fold(f.head, from[2], from[3], from[4], from[5], holds_previous(begin, count, visible), from[6], begin, f.l, l_tile,
                     f.M - M_next, m - M_next, f.a, f.b);
            }
            f.l = fma(f.b, l_tile, f.a * f.l);
            f.M = M_next;
#pragma unroll
            for (int c = 0; c < C; c++) f.o[c] = fma(splat(f.b), load(from + WORDS + 32 * c), mul(splat(f.a), f.o[c]));
        }
        end_fold<C, PROBED>(f, z + t * ldz + h * D, PROBED ? heads + t * ldh + 8 * h : heads, D);
    }
}

#define SPLIT_ATTENTION(C)                                                                                                     \
    KERNEL(split_attention_##C, float* part, const float* q, const float* keys, const float* values, const i32* position,      \
           const i32* tile0, const i32* T, int H, int G, int D, int ldq, float scale, int most) {                              \
        split<C, false>(share, part, q, Stored<float>{keys, values, nullptr, nullptr}, position, tile0, T, H, G, D, ldq,       \
            scale, most);                                                                                                      \
    }                                                                                                                          \
    KERNEL(split_attention8_##C, float* part, const float* q, const i8* keys, const i8* values, const float* key_scale,        \
           const float* value_scale, const i32* position, const i32* tile0, const i32* T, int H, int G, int D, int ldq,        \
           float scale, int most) {                                                                                            \
        split<C, false>(share, part, q, Stored<i8>{keys, values, key_scale, value_scale}, position, tile0, T, H, G, D, ldq,    \
            scale, most);                                                                                                      \
    }                                                                                                                          \
    KERNEL(join_attention_##C, float* z, const float* part, const i32* position, const i32* T, int H, int D, int ldz,          \
           int most) {                                                                                                         \
        join<C, false>(share, z, nullptr, part, position, T, H, D, ldz, 0, most);                                              \
    }
SPLIT_ATTENTION(1)
SPLIT_ATTENTION(2)
SPLIT_ATTENTION(3)
SPLIT_ATTENTION(4)
SPLIT_ATTENTION(8)

#define SPLIT_PROBED_ATTENTION(C)                                                                                              \
    KERNEL(split_probed_attention_##C, float* part, const float* q, const float* keys, const float* values,                    \
           const i32* position, const i32* tile0, const i32* T, int H, int G, int D, int ldq, float scale, int most) {         \
        split<C, true>(share, part, q, Stored<float>{keys, values, nullptr, nullptr}, position, tile0, T, H, G, D, ldq,        \
            scale, most);                                                                                                      \
    }                                                                                                                          \
    KERNEL(split_probed_attention8_##C, float* part, const float* q, const i8* keys, const i8* values,                         \
           const float* key_scale, const float* value_scale, const i32* position, const i32* tile0, const i32* T, int H,       \
           int G, int D, int ldq, float scale, int most) {                                                                     \
        split<C, true>(share, part, q, Stored<i8>{keys, values, key_scale, value_scale}, position, tile0, T, H, G, D, ldq,     \
            scale, most);                                                                                                      \
    }                                                                                                                          \
    KERNEL(join_probed_attention_##C, float* z, u32* heads, const float* part, const i32* position, const i32* T, int H,       \
           int D, int ldz, int ldh, int most) {                                                                                \
        join<C, true>(share, z, heads, part, position, T, H, D, ldz, ldh, most);                                               \
    }
#ifndef NO_PROBES
SPLIT_PROBED_ATTENTION(1)
SPLIT_PROBED_ATTENTION(2)
SPLIT_PROBED_ATTENTION(3)
SPLIT_PROBED_ATTENTION(4)
SPLIT_PROBED_ATTENTION(8)
#endif
