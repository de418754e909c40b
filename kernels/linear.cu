// linear: y[t,n] = dot(w[n,:], x[t,:]) + bias[n]
//
//   w     (N,K) bf16, f16 or f32, row stride ldw, padded with zeros to a multiple of 32
//   x     (T,K) f32, row stride ldx, padded with zeros
//   bias  (N,)  f32, or null
//   y     (T,N) f32, row stride ldy
//
// Order: lane i takes k = i, i+32, ... with one fma each, then the tree of lanes.cuh; the bias is added last.
// Which rows and tokens are worked on together (ROWS, TOKENS below) cannot change a bit.
#include "lanes.cuh"

// One row alone is bound by memory: what it will need a page later is asked for now.
#define AHEAD 4096

template <int R, int S> HD void sums(float* to, const lanes (&acc)[R][S], int s) {
    constexpr int FOURS = R / 4 * 4;
#pragma unroll
    for (int r = 0; r < FOURS; r += 4) sum4(to + r, acc[r][s], acc[r + 1][s], acc[r + 2][s], acc[r + 3][s]);
#pragma unroll
    for (int r = FOURS; r < R; r++) to[r] = sum(acc[r][s]);
}

// A stretch of k: between one and the next the lanes wait in `carry`, R*S*32 floats.
struct Stretch {
    float* carry;
    bool first, last;
};

// R rows of w by S rows of x.
template <int R, int S, class W>
HD void dots(float* y, i64 ldy, const W* w, i64 ldw, const float* x, i64 ldx, int K, const float* bias,
             Stretch stretch = {nullptr, true, true}) {
    lanes acc[R][S];
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int s = 0; s < S; s++) acc[r][s] = stretch.first ? zero() : load(stretch.carry + 32 * (r * S + s));
    for (int k = 0; k < K; k += 32) {
        lanes b[S];
#pragma unroll
        for (int s = 0; s < S; s++) b[s] = load(x + s * ldx + k);
#pragma unroll
        for (int r = 0; r < R; r++) {
            lanes a = IN_REGISTERS(load(w + r * ldw + k));
            if (R * S == 1) PREFETCH((const char*)(w + k) + AHEAD);
#pragma unroll
            for (int s = 0; s < S; s++) acc[r][s] = fma(a, b[s], acc[r][s]);
        }
    }
    if (!stretch.last) {
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int s = 0; s < S; s++) store(stretch.carry + 32 * (r * S + s), acc[r][s]);
        return;
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

#define ROWS 6
#define TOKENS 2
#define DEPTH 1024              // of a stretch: ROWS of w, widened, and TOKENS of x fit the first-level cache
#define NEAR_BYTES (512 << 10)  // of x, which stays in the second while panels of w pass over it

// R rows of w by T rows of x. A stretch of w is widened once for all of them.
template <int R, class W>
HD void panel(float* y, i64 ldy, const W* w, i64 ldw, const float* x, i64 ldx, int T, int K, const float* bias, float* wide,
              float* carry) {
    for (int k = 0; k < K; k += DEPTH) {
        int depth = K - k < DEPTH ? K - k : DEPTH, t = 0;
        Stretch stretch{carry, k == 0, k + depth == K};
        for (int r = 0; r < R; r++)
            for (int c = 0; c < depth; c += 32) store(wide + r * DEPTH + c, load(w + r * ldw + k + c));
        for (; t + TOKENS <= T; t += TOKENS, stretch.carry += 32 * R * TOKENS)
            dots<R, TOKENS>(y + t * ldy, ldy, wide, DEPTH, x + t * ldx + k, ldx, depth, bias, stretch);
        for (; t < T; t++, stretch.carry += 32 * R)
            dots<R, 1>(y + t * ldy, ldy, wide, DEPTH, x + t * ldx + k, ldx, depth, bias, stretch);
    }
}

template <class W>
HD void linear(Share share, float* y, const W* w, const float* x, const float* bias, const i32* count, int N, int K,
               int ldy, int ldw, int ldx) {
    int T = *count, panels = (N + ROWS - 1) / ROWS;
    if (T == 1) {
        FOR_ITEMS(n, N) dots<1, 1>(y + n, ldy, w + n * ldw, ldw, x, ldx, K, bias ? bias + n : bias);
        return;
    }
    int most = NEAR_BYTES / (int)sizeof(float) / ldx / TOKENS * TOKENS;
    if (most < 8) most = 8;
    if (most > 128) most = 128;
    alignas(64) float wide[ROWS * DEPTH], carry[128 * ROWS * 32];
    for (int t = 0; t < T; t += most) {
        int near = T - t < most ? T - t : most;
        float* yt = y + (i64)t * ldy;
        const float* xt = x + (i64)t * ldx;
        FOR_ITEMS(item, panels) {
            i64 n = item * ROWS;
            const float* b = bias ? bias + n : bias;
            if (n + ROWS <= N)
                panel<ROWS>(yt + n, ldy, w + n * ldw, ldw, xt, ldx, near, K, b, wide, carry);
            else
                for (; n < N; n++, b += b ? 1 : 0)
                    panel<1>(yt + n, ldy, w + n * ldw, ldw, xt, ldx, near, K, b, wide, carry);
        }
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
