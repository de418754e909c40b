// panel_host.cuh: linear8 and linear4 on a core, with the bits of linear8.cu and linear4.cu. The weights of SIDE rows, as many
// as a register has 32-bit numbers, are interleaved: a panel. Nothing is then added across a register.
//
//   interleave      to[n/SIDE, i, n%SIDE] = from[n,i], i < count units of 2 or 4 bytes, each changed by `flip`; rows from N on are 0
//   factors         quantize, with q as linear8 here multiplies it: FACTOR
//   panel_linear8   linear8, panel_linear4   linear4, of N rows that are interleaved: w by UNIT8 or 4 bytes, what scales it by 2,
//                   unit by 4; rows up to a multiple of PANELS * SIDE are there. near_...: the same in another order
//
// Order: a register holds the sums of SIDE outputs, each in the order of the contract.
// Included behind quantize.cu, whose quantize_rows() it takes.
#pragma once
#include "linear_host.cuh"

#define SIDE WIDTH
typedef i32 ints __attribute__((vector_size(sizeof(vec))));
HD ints every_int(i32 x) { return x - ints{}; }
HD i32 word_at(const void* p) { i32 w; memcpy(&w, p, 4); return w; }
template <class V> HD V read(const void* p) { V a; memcpy(&a, p, sizeof a); return a; }
HD vec to_float(ints a) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps((__m512i)a);
#elif defined(__FMA__) && defined(__AVX2__)
    return _mm256_cvtepi32_ps((__m256i)a);
#else
    return __builtin_convertvector(a, vec);
#endif
}

// Numbers of 16 bits: products of neighbours, added in pairs.
#if defined(__AVX512BW__)
HD ints madd(ints a, ints b) { return (ints)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__) && !defined(__AVX512F__)
HD ints madd(ints a, ints b) { return (ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#elif defined(__SSE4_1__) && !defined(__FMA__) && !defined(__AVX512F__)
#include <immintrin.h>
HD ints madd(ints a, ints b) { return (ints)_mm_madd_epi16((__m128i)a, (__m128i)b); }
#else
#define NO_MADD
#endif

// Four inputs of SIDE outputs, times four of a token: 8 bits by 8 (Quad, dot8), 4 bits without a sign by 8 (Small, dot4).
// `parts` is what dot4 adds up in, 8 at most; weigh() multiplies it by a number of 8 bits an output, lowest() two of these by
// the sums of their 32 inputs.
#if (defined(__AVX512VNNI__) && defined(__AVX512BW__)) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
#define UNIT8 4
#define FLIP8 0x80808080u  // the instruction wants one factor without a sign: dot8_begin takes 128 times the other away
#if defined(__AVX512F__)
#define DOT "vpdpbusd"
#define PANELS 4
#define TOKENS8 6
#define TOKENS4 3
#define PANELS4 PANELS
#else
#define DOT "%{vex%} vpdpbusd"
#define PANELS 2
#define TOKENS8 6
#define TOKENS4 6
#define PANELS4 1
#endif
typedef i8 FACTOR;
typedef ints parts;
struct Quad { ints v; };
HD Quad read_quad(const u8* p) { return {read<ints>(p)}; }
HD ints vnni(ints acc, ints w, i32 x) {
    ints b = every_int(x);
    asm(DOT " %2, %1, %0" : "+v"(acc) : "v"(w), "v"(b));  // gcc's own way of it spills
    return acc;
}
HD ints dot8(ints acc, Quad w, const FACTOR* x) { return vnni(acc, w.v, word_at(x)); }
HD ints dot8_begin(const i16* sums) { return every_int(-128 * (sums[0] + sums[1])); }
HD parts dot4(parts acc, ints w, const i8* x) { return vnni(acc, w, word_at(x)); }
#elif defined(__AVX512BW__) || (defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)) || \
    (defined(__SSE4_1__) && !defined(__FMA__) && !defined(__AVX512F__))
#define IN_PAIRS  // products of 16 bits are added in pairs
#define UNIT8 2
#define FLIP8 0
#define PANELS 2
#define TOKENS8 6
#define TOKENS4 6
#define PANELS4 1
typedef i16 FACTOR;
typedef i16 parts __attribute__((vector_size(sizeof(vec))));
#if defined(__AVX512BW__)
HD parts maddubs(ints a, ints b) { return (parts)_mm512_maddubs_epi16((__m512i)a, (__m512i)b); }
HD parts widened(const u8* p) { return (parts)_mm512_cvtepi8_epi16(read<__m256i>(p)); }
#elif defined(__AVX2__)
HD parts maddubs(ints a, ints b) { return (parts)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
HD parts widened(const u8* p) { return (parts)_mm256_cvtepi8_epi16(read<__m128i>(p)); }
#else
HD parts maddubs(ints a, ints b) { return (parts)_mm_maddubs_epi16((__m128i)a, (__m128i)b); }
HD parts widened(const u8* p) { return (parts)_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)p)); }
#endif
struct Quad { parts v[2]; };  // inputs 0 and 1, 2 and 3
HD Quad read_quad(const u8* p) { return {{widened(p), widened(p + 2 * SIDE)}}; }
HD ints dot8(ints acc, const Quad& w, const FACTOR* x) {
    return acc + madd((ints)w.v[0], every_int(word_at(x))) + madd((ints)w.v[1], every_int(word_at(x + 2)));
}
HD ints dot8_begin(const i16*) { return ints{}; }
HD parts dot4(parts acc, ints w, const i8* x) {  // 8 * 2 * 15 * 127 < 2^15
    acc += maddubs(w, every_int(word_at(x)));
    asm volatile("" : "+v"(acc));  // else gcc makes many products first, and has no room for them
    return acc;
}
HD ints weigh(parts acc, ints scale) { return madd((ints)acc, scale | scale << 16); }
#else
#define UNIT8 4
#define FLIP8 0
#define PANELS 2
#define TOKENS8 4
#define TOKENS4 2
#define PANELS4 PANELS
typedef i8 FACTOR;
typedef ints parts;
struct Quad { ints v; };
HD Quad read_quad(const u8* p) { return {read<ints>(p)}; }
HD ints dot8(ints acc, Quad w, const FACTOR* x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return (ints)vdotq_s32((int32x4_t)acc, (int8x16_t)w.v, vreinterpretq_s8_s32(vdupq_n_s32(word_at(x))));
#else
    for (int i = 0; i < 4; i++) acc += (w.v << (24 - 8 * i) >> 24) * every_int(x[i]);
    return acc;
#endif
}
HD ints dot8_begin(const i16*) { return ints{}; }
HD parts dot4(parts acc, ints w, const i8* x) { return dot8(acc, {w}, x); }
#endif
#ifndef IN_PAIRS
HD ints weigh(parts acc, ints scale) { return acc * scale; }
#endif
#ifdef NO_MADD
HD ints lowest(ints low, const i16* sums) { return (low & 255) * sums[0] + (low >> 8) * sums[1]; }
#else
HD ints lowest(ints low, const i16* sums) { return madd((low & 255) | (low & 0xff00) << 8, every_int(word_at(sums))); }
#endif
struct Small { ints v[2]; };  // the low and the high four bits of bytes
HD Small read_small(const u8* p) {
    ints b = read<ints>(p);
    return {{b & 0x0f0f0f0f, b >> 4 & 0x0f0f0f0f}};
}
constexpr int PANEL_ROWS = PANELS * SIDE;  // outputs worked on together

// Asks for the weights that a first pass comes to soon, and has those of later brought nearer.
HD void ask(const u8* p) {
    PREFETCH(p + 2048);
    PREFETCH_LATER(p + 10240);
}

// Two bytes an output, as 32 bits.
HD ints read_twos(const void* p) {
    typedef u16 twos __attribute__((vector_size(2 * SIDE)));
    return __builtin_convertvector(read<twos>(p), ints);
}
HD vec read_bf16(const void* p) { return (vec)(read_twos(p) << 16); }

template <class U> HD void interleaved(Share share, U* to, const U* from, int N, int count, U flip) {
    FOR_ITEMS(panel, (N + PANEL_ROWS - 1) / PANEL_ROWS * PANELS) {
        for (int o = 0; o < SIDE; o++) {
            i64 n = panel * SIDE + o;
            for (int i = 0; i < count; i++) to[(panel * count + i) * SIDE + o] = n < N ? from[n * count + i] ^ flip : flip;
        }
    }
}
KERNEL(interleave, void* to, const void* from, int N, int count, int unit, int is_weight8) {
    if (unit == 2) interleaved(share, (u16*)to, (const u16*)from, N, count, (u16)0);
    else interleaved(share, (u32*)to, (const u32*)from, N, count, is_weight8 ? (u32)FLIP8 : 0u);
}
extern "C" int panel_rows() { return PANEL_ROWS; }
extern "C" int panel_unit8() { return UNIT8; }
// Tells layouts of the same rows and units apart.
extern "C" int panel_kind() { return SIDE << 1 | (FLIP8 != 0); }

KERNEL(factors, FACTOR* q, float* scale, i16* sums, const float* x, const i32* T, int K, int ldx) {
    quantize_rows(share, q, scale, sums, x, T, K, ldx);
}

// What a tile of PANELS panels by S tokens has come to, as rows of the output.
template <int P, int S>
HD void put(float* y, i64 ldy, const vec (&total)[P][S], const float* bias, int outputs, int tokens = S) {
    for (int s = 0; s < tokens; s++) {
        float row[P * SIDE];
        for (int r = 0; r < P; r++) {
            vec end = total[r][s] + every(0.0f);
            memcpy(row + r * SIDE, &end, sizeof end);
        }
        if (bias)
            for (int n = 0; n < outputs; n++) row[n] += bias[n];
        if (outputs == P * SIDE) memcpy(y + s * ldy, row, sizeof row);
        else memcpy(y + s * ldy, row, outputs * sizeof(float));
    }
}

struct Eight {
    const u8* w; const u16* ws; const FACTOR* q; const float* xs; const i16* sums;
    Eight at(i64 n, i64 t, i64 G) const { return {w + n * G * 64, ws + n * G, q + t * G * 64, xs + t * G, sums + 2 * t * G}; }
};
template <int S> ONCE void tile(float* y, i64 ldy, Eight in, const float* bias, int outputs, int G) {
    vec total[PANELS][S];
    for (int n = 0; n < PANELS * S; n++) total[n / S][n % S] = every(0.0f);
    for (int g = 0; g < G; g++, in.w += 64 * SIDE, in.ws += SIDE, in.q += 64) {
        ints acc[PANELS][S];
#pragma GCC unroll 8
        for (int s = 0; s < S; s++)
#pragma GCC unroll 8
            for (int r = 0; r < PANELS; r++) acc[r][s] = dot8_begin(in.sums + 2 * (s * G + g));
        for (int k = 0; k < 16; k++) {
            Quad w[PANELS];
#pragma GCC unroll 8
            for (int r = 0; r < PANELS; r++) {
                const u8* p = in.w + (i64)r * G * 64 * SIDE + k * 4 * SIDE;
                w[r] = read_quad(p);
                if (S == 1) ask(p);
            }
#pragma GCC unroll 8
            for (int s = 0; s < S; s++)
#pragma GCC unroll 8
                for (int r = 0; r < PANELS; r++) acc[r][s] = dot8(acc[r][s], w[r], in.q + (i64)s * G * 64 + 4 * k);
        }
#pragma GCC unroll 8
        for (int r = 0; r < PANELS; r++) {
            vec scale = read_bf16(in.ws + (i64)r * G * SIDE);
#pragma GCC unroll 8
            for (int s = 0; s < S; s++)
                total[r][s] = fma(to_float(acc[r][s]), scale * every(in.xs[(i64)s * G + g]), total[r][s]);
        }
    }
    put(y, ldy, total, bias, outputs);
}

struct Four {
    const u8* w; const u16 *ws, *low; const float* unit; const i8* q; const float* xs; const i16* sums;
    Four at(i64 n, i64 t, i64 G) const {
        return {w + n * G * 32, ws + n * G, low + n * G, unit + 2 * n, q + t * G * 64, xs + t * G, sums + 2 * t * G};
    }
};
template <int P, int S> ONCE void some_panels(float* y, i64 ldy, Four in, const float* bias, int outputs, int G) {
    vec a[P][S], b[P][S];
    for (int n = 0; n < P * S; n++) a[n / S][n % S] = b[n / S][n % S] = every(0.0f);
    for (int g = 0; g < G; g++, in.w += 32 * SIDE, in.ws += SIDE, in.low += SIDE, in.q += 64) {
        ints sum[P][S];
        for (int half = 0; half < 2; half++) {
            parts acc[P][S];
#pragma GCC unroll 8
            for (int n = 0; n < P * S; n++) acc[n / S][n % S] = parts{};
#pragma GCC unroll 4
            for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 8
                for (int r = 0; r < P; r++) {
                    const u8* p = in.w + (i64)r * G * 32 * SIDE + (16 * half + i) * SIDE;
                    Small w = read_small(p);
                    if (S == 1) ask(p);
#pragma GCC unroll 8
                    for (int s = 0; s < S; s++) {
                        const i8* x = in.q + (i64)s * G * 64 + 32 * half + i;
                        acc[r][s] = dot4(dot4(acc[r][s], w.v[0], x), w.v[1], x + 16);
                    }
                }
#pragma GCC unroll 8
            for (int r = 0; r < P; r++) {
                ints both = read_twos(in.ws + (i64)r * G * SIDE), scale = half ? both >> 8 : both & 255;
#pragma GCC unroll 8
                for (int s = 0; s < S; s++) sum[r][s] = (half ? sum[r][s] : ints{}) + weigh(acc[r][s], scale);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < P; r++) {
            ints low = read_twos(in.low + (i64)r * G * SIDE);
#pragma GCC unroll 8
            for (int s = 0; s < S; s++) {
                i64 at = (i64)s * G + g;
                vec x = every(in.xs[at]);
                a[r][s] = fma(to_float(sum[r][s]), x, a[r][s]);
                b[r][s] = fma(to_float(lowest(low, in.sums + 2 * at)), x, b[r][s]);
            }
        }
    }
    for (int r = 0; r < P; r++) {
        vec by_step = read<vec>(in.unit + r * 2 * SIDE), by_low = read<vec>(in.unit + r * 2 * SIDE + SIDE);
        for (int s = 0; s < S; s++) a[r][s] = fma(-by_low, b[r][s], by_step * a[r][s]);
    }
    put(y, ldy, a, bias, outputs);
}

// One token takes all panels, so that many loads are in flight; several take PANELS4 at a time.
template <int S> HD void tile(float* y, i64 ldy, const Four& in, const float* bias, int outputs, int G) {
    constexpr int P = S == 1 ? PANELS : PANELS4;
    for (int n = 0; n < outputs; n += P * SIDE) {
        int here = outputs - n < P * SIDE ? outputs - n : P * SIDE;
        some_panels<P, S>(y + n, ldy, in.at(n, 0, G), bias ? bias + n : bias, here, G);
    }
}

template <int S, class In>
HD void tile_of(int size, float* y, i64 ldy, const In& in, const float* bias, int outputs, int G) {
    if (size == S) tile<S>(y, ldy, in, bias, outputs, G);
    else if constexpr (S > 1) tile_of<S - 1>(size, y, ldy, in, bias, outputs, G);
}
// Tokens in groups of nearly the same size, MOST at most, pass over a panel while it is near. With `bytes`, of the factors of a
// token, only so many tokens as are near as well: then come the other panels, then the next tokens.
constexpr i64 NEAR_BYTES = 192 << 10;  // bytes
template <int MOST, class In>
HD void panels(Share share, float* y, const In& all, const float* bias, int T, int N, int K, i64 ldy, i64 bytes = 0) {
    int G = (K + 63) / 64, groups = (T + MOST - 1) / MOST, of_part = groups + !groups, count = (N + PANEL_ROWS - 1) / PANEL_ROWS;
    if (bytes) of_part = NEAR_BYTES > MOST * bytes ? (int)(NEAR_BYTES / (MOST * bytes)) : 1;
    FOR_ITEMS(item, (i64)(groups + of_part - 1) / of_part * count) {
        i64 n = item % count * PANEL_ROWS, first = item / count * of_part, last = first + of_part - 1;
        int outputs = N - n < PANEL_ROWS ? (int)(N - n) : PANEL_ROWS;
        for (i64 g = first; g <= last && g < groups; g++) {
            i64 t = T * g / groups;
            int size = (int)(T * (g + 1) / groups - t);
            tile_of<MOST>(size, y + t * ldy + n, ldy, all.at(n, t, G), bias ? bias + n : bias, outputs, G);
        }
    }
}
KERNEL(panel_linear8, float* y, const u8* w, const u16* ws, const FACTOR* q, const float* xs, const i16* sums,
       const float* bias, const i32* T, int N, int K, int ldy) {
    panels<TOKENS8>(share, y, Eight{w, ws, q, xs, sums}, bias, *T, N, K, ldy);
}
KERNEL(near_panel_linear8, float* y, const u8* w, const u16* ws, const FACTOR* q, const float* xs, const i16* sums,
       const float* bias, const i32* T, int N, int K, int ldy) {
    panels<TOKENS8>(share, y, Eight{w, ws, q, xs, sums}, bias, *T, N, K, ldy, K * (i64)sizeof(FACTOR));
}
KERNEL(panel_linear4, float* y, const u8* w, const u16* ws, const u16* low, const float* unit, const i8* q,
       const float* xs, const i16* sums, const float* bias, const i32* T, int N, int K, int ldy) {
    panels<TOKENS4>(share, y, Four{w, ws, low, unit, q, xs, sums}, bias, *T, N, K, ldy);
}
KERNEL(near_panel_linear4, float* y, const u8* w, const u16* ws, const u16* low, const float* unit, const i8* q,
       const float* xs, const i16* sums, const float* bias, const i32* T, int N, int K, int ldy) {
    panels<TOKENS4>(share, y, Four{w, ws, low, unit, q, xs, sums}, bias, *T, N, K, ldy, K);
}
