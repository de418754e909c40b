// vec_host.cuh: a register of a core, and two of them that go together: for sums of which each place is one result, so that
// nothing is added across.
#pragma once
#include "lanes.cuh"

#if defined(__AVX512F__)
typedef __m512 vec;
HD vec every(float x) { return _mm512_set1_ps(x); }
HD vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__FMA__)
typedef __m256 vec;
HD vec every(float x) { return _mm256_set1_ps(x); }
HD vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
#elif defined(__aarch64__)
#include <arm_neon.h>
typedef float32x4_t vec;
HD vec every(float x) { return vdupq_n_f32(x); }
HD vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
#else
typedef float vec __attribute__((vector_size(16)));
HD vec every(float x) { return vec{x, x, x, x}; }
HD vec fma(vec a, vec b, vec c) {
    for (int i = 0; i < 4; i++) a[i] = fma(a[i], b[i], c[i]);
    return a;
}
#endif
constexpr int WIDTH = sizeof(vec) / sizeof(float);
struct pair { vec v[2]; };
HD pair splat_pair(float x) { return {{every(x), every(x)}}; }
HD vec load_vec(const float* p) { vec a; memcpy(&a, p, sizeof a); return a; }
HD pair load_pair(const float* p) { return {{load_vec(p), load_vec(p + WIDTH)}}; }
HD void store(float* p, const pair& a) { memcpy(p, &a.v[0], sizeof(vec)), memcpy(p + WIDTH, &a.v[1], sizeof(vec)); }
HD pair fma(const pair& a, const pair& b, const pair& c) { return {{fma(a.v[0], b.v[0], c.v[0]), fma(a.v[1], b.v[1], c.v[1])}}; }
HD pair add(const pair& a, const pair& b) { return {{a.v[0] + b.v[0], a.v[1] + b.v[1]}}; }
HD pair mul(const pair& a, const pair& b) { return {{a.v[0] * b.v[0], a.v[1] * b.v[1]}}; }
// Makes a compiler have it now, and there.
HD void in_registers(pair& a) {
#if defined(__x86_64__)
    asm volatile("" : "+x"(a.v[0]), "+x"(a.v[1]));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(a.v[0]), "+w"(a.v[1]));
#endif
}
