// matrix_host.cuh: matrix_panel_linear8 and matrix_panel_linear4: panel_linear8 and panel_linear4 on the matrix unit of a core
// (AMX), which multiplies 16 tokens by a panel over the inputs of a group at once, in integers. The panels lie as it wants them.
//
// Order: sums of a group are exact; the rest, as panel_host.cuh has it, in registers of SIDE outputs of one token. In 4 bits a sum
// of 32 times its scale is less than 2^24, so that floats hold it, and adding two of them rounds once, as turning their sum into
// a float does.
// Included behind panel_host.cuh. A process asks the system for the unit first: matrix_ready() of host.cpp.
#pragma once
#include "panel_host.cuh"

#if defined(__AMX_INT8__) && defined(__linux__) && FLIP8 && UNIT8 == 4
#define MATRIX
constexpr int TOKENS = 16;  // of a tile

// What is in the unit's eight tiles: bytes of a row, and rows.
struct Shape {
    u8 palette = 1, start = 0, none[14] = {};
    u16 bytes[16] = {};
    u8 rows[16] = {};
};
HD void shape_tiles(const Shape& shape) { asm volatile("ldtilecfg %0" ::"m"(shape)); }
#define CLEAR(tile) ({ asm volatile("tilezero %%tmm" #tile ::); })
#define LOAD(tile, from, stride) \
    ({ asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((i64)(stride)) : "memory"); })
#define STORE(tile, to) ({ asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((i64)64) : "memory"); })
#define MULTIPLY(how, weights, tokens, sum) \
    ({ asm volatile("tdp" #how " %%tmm" #weights ", %%tmm" #tokens ", %%tmm" #sum ::); })

// The sums of a group are stored while those of the next are made: two sets of tiles, in turn.

// Sums in tiles 0 and 4, tokens in 1, weights in 2, and in 3 what takes away the 128 that FLIP8 gave to each weight.
HD void shape_tiles(const Eight&, int tokens) {
    Shape shape;
    for (int i = 0; i < 5; i++) shape.bytes[i] = 64, shape.rows[i] = i == 2 || i == 3 ? 16 : (u8)tokens;
    shape_tiles(shape);
    alignas(64) i8 minus[16 * 64];
    memset(minus, -128, sizeof minus);
    LOAD(3, minus, 64);
}
#define MULTIPLY8(sum) CLEAR(sum), MULTIPLY(bssd, 3, 1, sum), MULTIPLY(bsud, 2, 1, sum)
template <bool ALL>
ONCE void matrix_tile(float* y, i64 ldy, Eight in, const float* bias, int outputs, int G, int tokens, bool is_first) {
    alignas(64) i32 sums[TOKENS][SIDE];
    vec total[TOKENS], made[1][TOKENS];
#pragma GCC unroll 16
    for (int s = 0; s < TOKENS; s++) total[s] = every(0.0f);
    for (int g = 0; g <= G; g++) {
        if (g < G) {
            LOAD(1, in.q + g * 64, G * 64);
            LOAD(2, in.w + (i64)g * 64 * SIDE, 64);
            if (g & 1) MULTIPLY8(4);
            else MULTIPLY8(0);
        }
        if (!g) continue;
        if (g & 1) STORE(0, sums);
        else STORE(4, sums);
        vec scale = read_bf16(in.ws + (i64)(g - 1) * SIDE);
        const u8* ahead = in.w + (i64)g * 64 * SIDE;
#pragma GCC unroll 16
        for (int s = 0; s < TOKENS; s++) {
            if (is_first) ask(ahead + 64 * s);  // a line now and then: many at once keep others waiting
            if (ALL || s < tokens)
                total[s] = fma(to_float(read<ints>(sums[s])), scale * every(in.xs[(i64)s * G + g - 1]), total[s]);
        }
    }
#pragma GCC unroll 16
    for (int s = 0; s < TOKENS; s++) made[0][s] = total[s];  // put() wants memory; until here they are in registers
    put(y, ldy, made, bias, outputs, tokens);
}

// Sums of either half of a group in tiles 0 and 1, or 6 and 7, tokens in 2 and 3, weights in 4 and 5.
HD void shape_tiles(const Four&, int tokens) {
    Shape shape;
    for (int i = 0; i < 8; i++) shape.bytes[i] = i / 2 == 1 ? 32 : 64, shape.rows[i] = i / 2 == 2 ? 8 : (u8)tokens;
    shape_tiles(shape);
}
#define MULTIPLY4(sum, other) CLEAR(sum), CLEAR(other), MULTIPLY(bsud, 4, 2, sum), MULTIPLY(bsud, 5, 3, other)
HD void multiply4(Four in, int g, int G) {
    alignas(64) ints w[2][8];
    for (int i = 0; i < 8; i++) {
        Small small = read_small(in.w + ((i64)g * 8 + i) * 4 * SIDE);
        w[i / 4][i % 4] = small.v[0], w[i / 4][i % 4 + 4] = small.v[1];
    }
    LOAD(2, in.q + g * 64, G * 64);
    LOAD(3, in.q + g * 64 + 32, G * 64);
    LOAD(4, w[0], 64);
    LOAD(5, w[1], 64);
    if (g & 1) MULTIPLY4(6, 7);
    else MULTIPLY4(0, 1);
}
template <bool ALL>
ONCE void matrix_tile(float* y, i64 ldy, Four in, const float* bias, int outputs, int G, int tokens, bool is_first) {
    alignas(64) i32 sums[2][TOKENS][SIDE];
    vec a[TOKENS], b[TOKENS], made[1][TOKENS];
#pragma GCC unroll 16
    for (int s = 0; s < TOKENS; s++) a[s] = b[s] = every(0.0f);
    for (int next = 0; next <= G; next++) {
        if (next < G) multiply4(in, next, G);
        int g = next - 1;
        if (g < 0) continue;
        if (g & 1) STORE(6, sums[0]), STORE(7, sums[1]);
        else STORE(0, sums[0]), STORE(1, sums[1]);
        ints both = read_twos(in.ws + (i64)g * SIDE), lows = read_twos(in.low + (i64)g * SIDE);
        vec first = to_float(both & 255), second = to_float(both >> 8);
        ints low = (lows & 255) | (lows & 0xff00) << 8;
        const u8* ahead = in.w + (i64)next * 32 * SIDE;
#pragma GCC unroll 16
        for (int s = 0; s < TOKENS; s++) {
            if (is_first && s < 8) ask(ahead + 64 * s);  // a line now and then: many at once keep others waiting
            if (ALL || s < tokens) {
                i64 at = (i64)s * G + g;
                vec x = every(in.xs[at]);
                vec sum = fma(to_float(read<ints>(sums[1][s])), second, to_float(read<ints>(sums[0][s])) * first);
                ints lowest = (ints)_mm512_madd_epi16((__m512i)low, (__m512i)every_int(word_at(in.sums + 2 * at)));
                a[s] = fma(sum, x, a[s]);
                b[s] = fma(to_float(lowest), x, b[s]);
            }
        }
    }
    vec by_step = read<vec>(in.unit), by_low = read<vec>(in.unit + SIDE);
#pragma GCC unroll 16
    for (int s = 0; s < TOKENS; s++) made[0][s] = fma(-by_low, b[s], by_step * a[s]);
    put(y, ldy, made, bias, outputs, tokens);
}

// Tokens by tiles; each passes over the panels of an item, which stay near.
template <class In>
HD void matrix(Share share, float* y, const In& all, const float* bias, int T, int N, int K, i64 ldy) {
    int G = (K + 63) / 64, shaped = 0;
    FOR_ITEMS(item, (N + PANEL_ROWS - 1) / PANEL_ROWS) {
        for (int t = 0; t < T; t += TOKENS) {
            int tokens = T - t < TOKENS ? T - t : TOKENS;
            if (tokens != shaped) shape_tiles(all, shaped = tokens);
            for (i64 n = item * PANEL_ROWS; n < N && n < (item + 1) * PANEL_ROWS; n += SIDE) {
                int outputs = N - n < SIDE ? (int)(N - n) : SIDE;
                In in = all.at(n, t, G);
                const float* b = bias ? bias + n : bias;
                if (tokens == TOKENS) matrix_tile<true>(y + t * ldy + n, ldy, in, b, outputs, G, tokens, !t);
                else matrix_tile<false>(y + t * ldy + n, ldy, in, b, outputs, G, tokens, !t);
            }
        }
    }
    if (shaped) asm volatile("tilerelease" ::);
}
KERNEL(matrix_panel_linear8, float* y, const u8* w, const u16* ws, const FACTOR* q, const float* xs, const i16* sums,
       const float* bias, const i32* T, int N, int K, int ldy) {
    matrix(share, y, Eight{w, ws, q, xs, sums}, bias, *T, N, K, ldy);
}
KERNEL(matrix_panel_linear4, float* y, const u8* w, const u16* ws, const u16* low, const float* unit, const i8* q,
       const float* xs, const i16* sums, const float* bias, const i32* T, int N, int K, int ldy) {
    matrix(share, y, Four{w, ws, low, unit, q, xs, sums}, bias, *T, N, K, ldy);
}
#endif
