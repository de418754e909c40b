// linear_cuda.cuh: the linear layer of a GPU for many tokens. The bits are those of linear.cu, behind which this is included.
//
// tile_linear  y[t,n] = dot(w[n,:], x[t,:]) + bias[n]; arguments as of linear
//
// Order: a thread is a lane, as in linear.cu, for ROWS_OF_TILE rows of w by TOKENS_OF_TILE of x: 24 loads serve 128 fmas.
// Then 32 totals at a time: a thread keeps one half of what it has and gives the other away, so that each step of the
// tree halves the number of values and the last leaves a thread with one total. Rows and tokens behind the last are
// computed as the last, and not written.
#pragma once
#include "lanes.cuh"

#define ROWS_OF_TILE 8
#define TOKENS_OF_TILE 16

// Gives lane i the sum over all lanes of v[i]: the tree of sum().
template <int H> HD void fold_half(float (&v)[32]) {
    bool is_upper = LANE & H;
#pragma unroll
    for (int i = 0; i < H; i++) {
        float mine = is_upper ? v[i + H] : v[i], given = is_upper ? v[i] : v[i + H];
        v[i] = __fadd_rn(mine, __shfl_xor_sync(~0u, given, H));
    }
}
HD float sum_of_own(float (&v)[32]) {
    fold_half<16>(v), fold_half<8>(v), fold_half<4>(v), fold_half<2>(v), fold_half<1>(v);
    return __fadd_rn(v[0], 0.0f);
}

template <class W>
HD void tile_of_linear(float* y, const W* w, const float* x, const float* bias, int n, int t, int T, int N, int K, i64 ldy,
                       i64 ldw, i64 ldx) {
    constexpr int R = ROWS_OF_TILE, S = TOKENS_OF_TILE;
    lanes acc[S][R];
    const W* from[R];
#pragma unroll
    for (int r = 0; r < R; r++) from[r] = w + (n + r < N ? n + r : N - 1) * ldw;
    const float* fed[S];
#pragma unroll
    for (int s = 0; s < S; s++) fed[s] = x + (t + s < T ? t + s : T - 1) * ldx;
#pragma unroll
    for (int i = 0; i < R * S; i++) acc[i / R][i % R] = zero();
    for (int k = 0; k < K; k += 32) {
        lanes a[R];
#pragma unroll
        for (int r = 0; r < R; r++) a[r] = load(from[r] + k);
#pragma unroll
        for (int s = 0; s < S; s++) {
            lanes b = load(fed[s] + k);
#pragma unroll
            for (int r = 0; r < R; r++) acc[s][r] = fma(a[r], b, acc[s][r]);
        }
    }
#pragma unroll
    for (int part = 0; part < R * S / 32; part++) {
        float v[32];
#pragma unroll
        for (int i = 0; i < 32; i++) v[i] = acc[(32 * part + i) / R][(32 * part + i) % R].v;
        float total = sum_of_own(v);
        int s = (32 * part + LANE) / R, r = LANE % R;
        if (t + s < T && n + r < N) y[(t + s) * ldy + n + r] = bias ? __fadd_rn(total, bias[n + r]) : total;
    }
}

#define TILE_LINEAR(W)                                                                                              \
    KERNEL(tile_linear_##W, float* y, const W* w, const float* x, const float* bias, const i32* count, int N, int K, \
           int ldy, int ldw, int ldx) {                                                                             \
        int T = *count, panels = (N + ROWS_OF_TILE - 1) / ROWS_OF_TILE;                                             \
        FOR_ITEMS(item, (i64)panels * ((T + TOKENS_OF_TILE - 1) / TOKENS_OF_TILE)) {                                \
            int n = (int)(item % panels) * ROWS_OF_TILE, t = (int)(item / panels) * TOKENS_OF_TILE;                 \
            tile_of_linear(y, w, x, bias, n, t, T, N, K, ldy, ldw, ldx);                                            \
        }                                                                                                           \
    }

TILE_LINEAR(bf16)
TILE_LINEAR(f16)
TILE_LINEAR(f32)
