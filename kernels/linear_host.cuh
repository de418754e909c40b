// linear_host.cuh: the linear layer of a core for many tokens, by outer products. The bits are those of linear.cu,
// behind which this is included: few tokens are left to its linear().
//
// lane_major    at[t/S, lane, k/32, t%S] = x[t,k], lane = k%32, S tokens a strip: what a lane reads stands together
// tiled_linear  y[t,n] = dot(w[n,:], x[t,:]) + bias[n], from what lane_major has moved
//
//   x           (T,K) f32, row stride ldx, padded with zeros to a multiple of 32
//   at          (strips,32,K/32,S) f32, ldx*S floats a strip; tokens from T on are zero
//   w, bias, y  as in linear.cu
//   wide        (threads,32,ldx) f32: room
//
// Order: a lane's sum runs over k = lane, lane+32, ... in one register for each output and token. The lanes come in
// bit-reversed order: 0, 16, 8, 24, 4, ..., so that what the tree of lanes.cuh adds is always the newest two sums of
// a level; `level` holds one a level, as a binary counter holds digits. Then + (+0) and the bias.
#pragma once
#include "vec_host.cuh"

#if defined(__AVX512F__) || defined(__aarch64__)
#define STRIP 12
#elif defined(__FMA__)
#define STRIP 6
#else
#define STRIP 4
#endif
constexpr int PANEL = 2 * WIDTH;    // outputs worked on together; a pair is of one token
constexpr int LEVELS = 5;           // of the tree over 32 lanes
constexpr int GROUP = 8;            // strips of tokens that use a lane of w while it is near
constexpr int FEW = STRIP / 2 + 1;  // tokens that are worth a strip
constexpr int MOST = 32;            // outputs that a thread's room in `wide` is for: no PANEL is larger

KERNEL(lane_major, float* at, const float* x, const i32* count, int K, int ldx) {
    int T = *count, depth = (K + 31) / 32;
    if (T < FEW) return;
    FOR_ITEMS(strip, (T + STRIP - 1) / STRIP) {
        float* to = at + strip * STRIP * ldx;
        for (int s = 0; s < STRIP; s++) {
            i64 t = strip * STRIP + s;
            for (int d = 0; d < depth; d++)
                for (int lane = 0; lane < 32; lane++)
                    to[(lane * depth + d) * STRIP + s] = t < T ? x[t * ldx + 32 * d + lane] : 0.0f;
        }
    }
}

// Widens and transposes PANEL rows of w to [lane][k/32][row]; rows from N on are zero.
template <class W> HD void transpose(float* to, const W* w, i64 ldw, int rows, int depth) {
    for (int d = 0; d < depth; d++) {
        alignas(64) float block[PANEL][32];
        for (int r = 0; r < PANEL; r++) store(block[r], r < rows ? load(w + r * ldw + 32 * d) : zero());
        for (int lane = 0; lane < 32; lane++)
            for (int r = 0; r < PANEL; r++) to[(lane * depth + d) * PANEL + r] = block[r][lane];
    }
}

struct Outer { pair v[STRIP]; };

HD Outer outer(const float* w, const float* x, int depth) {
    Outer acc;
#pragma GCC unroll 12
    for (int s = 0; s < STRIP; s++) acc.v[s] = splat_pair(0.0f);
    for (int d = 0; d < depth; d++, w += PANEL, x += STRIP) {
        pair a = load_pair(w);
#pragma GCC unroll 12
        for (int s = 0; s < STRIP; s++) acc.v[s] = fma(a, splat_pair(x[s]), acc.v[s]);
    }
    return acc;
}

HD void accumulate(Outer* level, const float* w, const float* x, int depth, int index) {
    Outer acc = outer(w, x, depth);
    for (; index & 1; index >>= 1, level++)
#pragma GCC unroll 12
        for (int s = 0; s < STRIP; s++) acc.v[s] = add(level->v[s], acc.v[s]);
    *level = acc;
}

// The outputs of a panel for up to GROUP strips of tokens.
HD void panel(float* y, i64 ldy, const float* wide, const float* at, int ldx, int tokens, int outputs, int depth,
              const float* bias) {
    Outer level[GROUP][LEVELS + 1];
    int strips = (tokens + STRIP - 1) / STRIP;
    for (int index = 0; index < 32; index++) {
        int lane = (index & 1) << 4 | (index & 2) << 2 | (index & 4) | (index & 8) >> 2 | (index & 16) >> 4;
        for (int s = 0; s < strips; s++)
            accumulate(level[s], wide + lane * depth * PANEL, at + (i64)s * STRIP * ldx + lane * depth * STRIP,
                       depth, index);
    }
    for (int t = 0; t < tokens; t++) {
        float row[PANEL];
        store(row, add(level[t / STRIP][LEVELS].v[t % STRIP], splat_pair(0.0f)));
        for (int n = 0; n < outputs; n++) y[t * ldy + n] = bias ? row[n] + bias[n] : row[n];
    }
}

template <class W>
HD void tiled(Share share, float* y, const W* w, const float* x, const float* at, float* wide, const float* bias,
              const i32* count, int N, int K, int ldy, int ldw, int ldx) {
    int T = *count, depth = (K + 31) / 32;
    if (T < FEW) return linear(share, y, w, x, bias, count, N, K, ldy, ldw, ldx);
    wide += (i64)share.thread * MOST * ldx;
    FOR_ITEMS(item, (N + PANEL - 1) / PANEL) {
        i64 n = item * PANEL;
        int outputs = N - n < PANEL ? (int)(N - n) : PANEL;
        transpose(wide, w + n * ldw, ldw, outputs, depth);
        for (int t = 0; t < T; t += GROUP * STRIP) {
            int tokens = T - t < GROUP * STRIP ? T - t : GROUP * STRIP;
            const float* b = bias ? bias + n : bias;
            panel(y + t * (i64)ldy + n, ldy, wide, at + (i64)t * ldx, ldx, tokens, outputs, depth, b);
        }
    }
}

#define TILED_LINEAR(W)                                                                                           \
    KERNEL(tiled_linear_##W, float* y, const W* w, const float* x, const float* at, float* wide, const float* bias, \
           const i32* T, int N, int K, int ldy, int ldw, int ldx) {                                               \
        tiled(share, y, w, x, at, wide, bias, T, N, K, ldy, ldw, ldx);                                            \
    }

TILED_LINEAR(bf16)
TILED_LINEAR(f16)
TILED_LINEAR(f32)
