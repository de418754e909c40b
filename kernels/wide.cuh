// wide.cuh: 32 float64 accumulators, as lanes.cuh has 32 of float32: for what scores a run, never for the run itself.
//
// Every operation rounds once; there is no float64 fma (lanes.cuh), so a product is rounded before it is added.
#pragma once
#include "lanes.cuh"

#ifdef ON_CUDA

struct wide { double v; };
HD wide widened(const double* p) { return {p[LANE]}; }
template <class W> HD wide widened(const W* p) { return {(double)load(p).v}; }
HD wide wide_zero() { return {0.0}; }
HD wide add(wide a, wide b) { return {__dadd_rn(a.v, b.v)}; }
HD wide mul(wide a, wide b) { return {__dmul_rn(a.v, b.v)}; }
HD void store(double* p, wide a) { p[LANE] = a.v; }
HD double sum(wide a) {
    double t = a.v;
    for (int h = 16; h > 0; h >>= 1) t = __dadd_rn(t, from_bits((u64)__shfl_xor_sync(~0u, bits(t), h)));
    return __dadd_rn(t, 0.0);
}

#else  // host: vectors of the compiler, as wide as the target's registers

#if defined(__AVX512F__)
constexpr int WIDE_BYTES = 64;
#elif defined(__AVX__)
constexpr int WIDE_BYTES = 32;
#else
constexpr int WIDE_BYTES = 16;
#endif
constexpr int WIDE_PARTS = 256 / WIDE_BYTES, WIDE_EACH = WIDE_BYTES / 8;
typedef double wide_part __attribute__((vector_size(WIDE_BYTES)));

struct wide { wide_part v[WIDE_PARTS]; };
HD wide widened(const double* p) {
    wide a;
    for (int i = 0; i < WIDE_PARTS; i++) memcpy(&a.v[i], p + i * WIDE_EACH, WIDE_BYTES);
    return a;
}
#if defined(__AVX512F__)
template <class W> HD wide widened(const W* p) {
    lanes a = load(p);
    wide b;
    for (int i = 0; i < 2; i++) {
        __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v[i]), 1));
        b.v[2 * i] = (wide_part)_mm512_cvtps_pd(_mm512_castps512_ps256(a.v[i]));
        b.v[2 * i + 1] = (wide_part)_mm512_cvtps_pd(high);
    }
    return b;
}
#elif defined(__AVX__) && defined(__FMA__)
template <class W> HD wide widened(const W* p) {
    lanes a = load(p);
    wide b;
    for (int i = 0; i < 4; i++) {
        b.v[2 * i] = (wide_part)_mm256_cvtps_pd(_mm256_castps256_ps128(a.v[i]));
        b.v[2 * i + 1] = (wide_part)_mm256_cvtps_pd(_mm256_extractf128_ps(a.v[i], 1));
    }
    return b;
}
#else
template <class W> HD wide widened(const W* p) {
    wide a;
    for (int i = 0; i < WIDE_PARTS; i++)
        for (int j = 0; j < WIDE_EACH; j++) a.v[i][j] = (double)widen(p[i * WIDE_EACH + j]);
    return a;
}
#endif
HD wide wide_zero() { wide a; for (int i = 0; i < WIDE_PARTS; i++) a.v[i] = wide_part{}; return a; }
HD wide add(wide a, const wide& b) { for (int i = 0; i < WIDE_PARTS; i++) a.v[i] = a.v[i] + b.v[i]; return a; }
HD wide mul(wide a, const wide& b) { for (int i = 0; i < WIDE_PARTS; i++) a.v[i] = a.v[i] * b.v[i]; return a; }
HD void store(double* p, const wide& a) { for (int i = 0; i < WIDE_PARTS; i++) memcpy(p + i * WIDE_EACH, &a.v[i], WIDE_BYTES); }
HD double sum(const wide& a) {
    double t[32];
    store(t, a);
    for (int h = 16; h > 0; h >>= 1)
        for (int i = 0; i < h; i++) t[i] += t[i + h];
    return t[0] + 0.0;
}

#endif
