// linear: y[t,n] = dot(w[n,:], x[t,:]) + bias[n]
//
//   w     (N,K) bf16, f16 or f32, row stride ldw, padded with zeros to a multiple of 32
//   x     (T,K) f32, row stride ldx, padded with zeros
//   bias  (N,)  f32, or null
//   y     (T,N) f32, row stride ldy
//
// Order: lane i takes k = i, i+32, ... with one fma each, then the tree of lanes.cuh; the bias is added last.
// Which rows and tokens are worked on together cannot change a bit.
#include "lanes.cuh"

// One row alone is bound by memory: what it will need soon, in bytes, is asked for now, and later things are brought nearer.
#define SOON 1024
#define LATER 4096

template <int R, int S> HD void sums(float* to, const lanes (&acc)[R][S], int s) {
    constexpr int FOURS = R / 4 * 4;
#pragma unroll
    for (int r = 0; r < FOURS; r += 4) sum4(to + r, acc[r][s], acc[r + 1][s], acc[r + 2][s], acc[r + 3][s]);
#pragma unroll
    for (int r = FOURS; r < R; r++) to[r] = sum(acc[r][s]);
}

// R rows of w by S rows of x.
template <int R, int S, class W>
HD void dots(float* y, i64 ldy, const W* w, i64 ldw, const float* x, i64 ldx, int K, const float* bias) {
    lanes acc[R][S];
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int s = 0; s < S; s++) acc[r][s] = zero();
    for (int k = 0; k < K; k += 32) {
        lanes b[S];
#pragma unroll
        for (int s = 0; s < S; s++) b[s] = load(x + s * ldx + k);
#pragma unroll
        for (int r = 0; r < R; r++) {
            lanes a = IN_REGISTERS(load(w + r * ldw + k));
            if (R * S == 1) {
                PREFETCH((const char*)(w + k) + SOON);
                PREFETCH_LATER((const char*)(w + k) + LATER);
            }
#pragma unroll
            for (int s = 0; s < S; s++) acc[r][s] = fma(a, b[s], acc[r][s]);
        }
    }
#pragma unroll
    for (int s = 0; s < S; s++) {
        float total[R];
        sums<R>(total, acc, s);
        if (LEADER)
#pragma unroll
            for (int r = 0; r < R; r++) y[s * ldy + r] = bias ? total[r] + bias[r] : total[r];
    }
}

#ifdef ON_CUDA

#define ROWS 4
#define TOKENS 4
template <class W>
HD void linear(Share, float* y, const W* w, const float* x, const float* bias, const i32* count, int N, int K, int ldy,
               int ldw, int ldx) {
    int T = *count, tiles = (T + TOKENS - 1) / TOKENS, panels = (N + ROWS - 1) / ROWS;
    if (T == 1) {  // a row a warp keeps every load of w in flight
        FOR_ITEMS(n, N) dots<1, 1>(y + n, ldy, w + n * ldw, ldw, x, ldx, K, bias ? bias + n : bias);
        return;
    }
    FOR_ITEMS(item, (i64)tiles * panels) {
        int n = (int)(item % panels) * ROWS, t = (int)(item / panels) * TOKENS;
        if (n + ROWS <= N && t + TOKENS <= T)
            dots<ROWS, TOKENS>(y + (i64)t * ldy + n, ldy, w + (i64)n * ldw, ldw, x + (i64)t * ldx, ldx, K, bias ? bias + n : bias);
        else
            for (int a = n; a < N && a < n + ROWS; a++)
                for (int b = t; b < T && b < t + TOKENS; b++)
                    dots<1, 1>(y + (i64)b * ldy + a, ldy, w + (i64)a * ldw, ldw, x + (i64)b * ldx, ldx, K, bias ? bias + a : bias);
    }
}

#else

#define DEPTH 1024  // of a stretch of k: what is read of w and x for it fits the first-level cache
#define NEAR 16     // tokens that pass over a row of w while it is near

// A stretch of k for R rows of w and S of x: a slice of the lanes at a time, so that a core has a register for each sum.
// is_fresh: w is read for the first time, and what R rows later will be read is asked for.
template <int R, int S, class W>
HD void stretch(float* to, const W* w, i64 ldw, const float* x, i64 ldx, int depth, bool is_first, bool is_fresh) {
    if constexpr (R * S <= 12)
        for (int i = 0; i < 32; i += 32 / SLICES) {
            slice acc[R][S];
#pragma GCC unroll 12
            for (int n = 0; n < R * S; n++) acc[n / S][n % S] = is_first ? splat_slice(0.0f) : load_slice(to + 32 * n + i);
            bool ahead = is_fresh && i == 0;
            for (int k = i; k < depth; k += 32) {
                slice a[R];
#pragma GCC unroll 12
                for (int r = 0; r < R; r++) {
                    a[r] = load_slice(w + r * ldw + k);
                    if (ahead) PREFETCH(w + (r + R) * ldw + k);
                }
#pragma GCC unroll 12
                for (int s = 0; s < S; s++) {
                    slice b = load_slice(x + s * ldx + k);
#pragma GCC unroll 12
                    for (int r = 0; r < R; r++) acc[r][s] = fma(a[r], b, acc[r][s]);
                }
            }
#pragma GCC unroll 12
            for (int n = 0; n < R * S; n++) store(to + 32 * n + i, acc[n / S][n % S]);
        }
}

// R rows of w by T <= NEAR rows of x, which are cut into groups of nearly the same size, 4 at most.
template <int R, class W>
HD void rows(float* y, i64 ldy, const W* w, i64 ldw, const float* x, i64 ldx, int T, int K, const float* bias) {
    alignas(64) float lane_sums[NEAR * R * 32];
    int groups = (T + 3) / 4, size[NEAR / 4];
    for (int g = 0, t = 0; g < groups; t += size[g], g++) size[g] = (T - t + groups - g - 1) / (groups - g);
    for (int k = 0; k < K; k += DEPTH) {
        int depth = K - k < DEPTH ? K - k : DEPTH, t = 0;
        for (int g = 0; g < groups; t += size[g], g++) {
            float* to = lane_sums + 32 * R * t;
            const float* from = x + t * ldx + k;
            if (size[g] == 4) stretch<R, 4>(to, w + k, ldw, from, ldx, depth, k == 0, g == 0);
            if (size[g] == 3) stretch<R, 3>(to, w + k, ldw, from, ldx, depth, k == 0, g == 0);
            if (size[g] == 2) stretch<R, 2>(to, w + k, ldw, from, ldx, depth, k == 0, g == 0);
            if (size[g] == 1) stretch<R, 1>(to, w + k, ldw, from, ldx, depth, k == 0, g == 0);
        }
    }
    for (int g = 0, t = 0; g < groups; t += size[g], g++)
        for (int s = 0; s < size[g]; s++)
            for (int r = 0; r < R; r++) {
                float total = sum(load(lane_sums + 32 * (R * t + r * size[g] + s)));
                y[(t + s) * ldy + r] = bias ? total + bias[r] : total;
            }
}

template <int R, class W>
HD void all_rows(Share share, float* y, const W* w, const float* x, const float* bias, int T, int N, int K, i64 ldy, i64 ldw,
                 i64 ldx) {
    FOR_ITEMS(item, (N + R - 1) / R) {
        i64 n = item * R;
        if (n + R <= N) rows<R>(y + n, ldy, w + n * ldw, ldw, x, ldx, T, K, bias ? bias + n : bias);
        else
            for (; n < N; n++) rows<1>(y + n, ldy, w + n * ldw, ldw, x, ldx, T, K, bias ? bias + n : bias);
    }
}

template <class W>
HD void linear(Share share, float* y, const W* w, const float* x, const float* bias, const i32* count, int N, int K,
               int ldy, int ldw, int ldx) {
    int T = *count;
    if (T == 1) {
        FOR_ITEMS(n, N) dots<1, 1>(y + n, ldy, w + n * ldw, ldw, x, ldx, K, bias ? bias + n : bias);
        return;
    }
    for (int t = 0; t < T; t += NEAR, y += (i64)NEAR * ldy, x += (i64)NEAR * ldx) {
        int near = T - t < NEAR ? T - t : NEAR, most = (near + (near + 3) / 4 - 1) / ((near + 3) / 4);
        if (most == 4) all_rows<3>(share, y, w, x, bias, near, N, K, ldy, ldw, ldx);
        else if (most == 3) all_rows<4>(share, y, w, x, bias, near, N, K, ldy, ldw, ldx);
        else all_rows<6>(share, y, w, x, bias, near, N, K, ldy, ldw, ldx);
    }
}

#endif

#define LINEAR(W)                                                                                            \
    KERNEL(linear_##W, float* y, const W* w, const float* x, const float* bias, const i32* T, int N, int K, \
           int ldy, int ldw, int ldx) {                                                                     \
        linear(share, y, w, x, bias, T, N, K, ldy, ldw, ldx);                                               \
    }

LINEAR(bf16)
LINEAR(f16)
LINEAR(f32)

#ifdef ON_CUDA
#include "linear_cuda.cuh"
#endif
