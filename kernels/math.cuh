// math.cuh: exp, log, sin, cos, tanh and erf with the same bits on every machine.
//
// Only float32 + - * / fma, float64 + - *, integer operations and selections of bits: no libm,
// no branch, no table, no conversion to an integer. A selection computes both sides, so plain loops
// over these functions vectorise (clang always, gcc with -fno-trapping-math).
//
//   function                     over               NaN for        largest error, ulp
//   exponential(x)               all floats         NaN            0.8913
//   logarithm(x)                 all floats         NaN, x < 0     0.9453
//   sine_cosine(angle, &s, &c)   |angle| <= 2^24    all others     0.5001, 0.5001
//   hyperbolic_tangent(x)        all floats         NaN            1.0670
//   error_function(x)            all floats         NaN            1.0132
//
// The errors are against the exact value, measured over all 2^32 floats (tests/test_math.py, which
// holds one digest a function); no result is further than one float from the correctly rounded one.
// Speed: one EPYC core with AVX-512, -O3 -march=native, in the order above: 5.0, 4.7, 1.5, 2.8 and
// 2.0 thousand million a second with g++ 12; 6.8, 5.5, 1.6, 3.4 and 2.6 with clang 22.
//
// Every NaN returned is 0x7fc00000, chosen by its bits: what an operation makes of a NaN differs
// between machines.
//
// Coefficients: own minimax fits of the relative error (Remez exchange at 40 digits), rounded to
// their type one at a time from the lowest power, the others fitted anew after each.
#pragma once
#include "lanes.cuh"

// exp(±0) is 1 exactly; +inf from 0x1.62e43p+6 up, +0 from -0x1.9fe36ap+6 down, subnormals between.
//
// x = k ln 2 + r with k = rint(x / ln 2): adding 1.5 * 2^23 leaves k in the low bits of the sum.
// ln 2 is subtracted in two pieces of 24 bits. exp(r) = 1 + r (1 + r P(r)), |r| <= 0.347, P of
// degree 4, relative error 2^-28. 2^k is applied as two factors, neither of which leaves the normal
// range, so that a subnormal result is rounded once, in the last product.
HD float exponential(float x) {
    float clamped = x < -104.0f ? -104.0f : x;
    clamped = clamped > 89.0f ? 89.0f : clamped;
    float shifted = fma(clamped, 0x1.715476p+0f, 0x1.8p+23f);
    float k = shifted - 0x1.8p+23f;
    float r = fma(k, -0x1.62e43p-1f, clamped);
    r = fma(k, 0x1.05c61p-29f, r);
    float p = 0x1.6ac74ep-10f;
    p = fma(p, r, 0x1.123dep-7f);
    p = fma(p, r, 0x1.555858p-5f);
    p = fma(p, r, 0x1.55548cp-3f);
    p = fma(p, r, 0x1.fffffcp-2f);
    p = fma(p, r, 1.0f);
    p = fma(p, r, 1.0f);
    i32 n = (i32)(bits(shifted) - 0x4b400000u), half = n >> 1;
    float y = p * from_bits((u32)(half + 127) << 23) * from_bits((u32)(n - half + 127) << 23);
    return from_bits(x != x ? 0x7fc00000u : bits(y));
}

// log(±0) is -inf, log(1) is +0, log(+inf) is +inf; subnormals are taken as they are.
//
// x = 2^n (1 + f) with 1 + f in [2/3, 4/3): f is exact. log(1 + f) = f + f^2 P(f), P of degree 8,
// found by moving the rounded fit's coefficients at random where that lowers the measured error of
// the whole. ln 2 as one float costs 0.05 ulp.
HD float logarithm(float x) {
    bool tiny = x < 0x1p-126f;
    u32 scaled = bits(tiny ? x * 0x1p+23f : x);
    u32 exponent = (scaled - 0x3f2aaaabu) & 0xff800000u;
    float n = (float)((i32)exponent >> 23) - (tiny ? 23.0f : 0.0f);
    float f = from_bits(scaled - exponent) - 1.0f;
    float p = -0x1.feb4d4p-4f;
    p = fma(p, f, 0x1.1f6152p-3f);
    p = fma(p, f, -0x1.f70b24p-4f);
    p = fma(p, f, 0x1.1e8c9ep-3f);
    p = fma(p, f, -0x1.557dc8p-3f);
    p = fma(p, f, 0x1.99d4ccp-3f);
    p = fma(p, f, -0x1.ffff52p-3f);
    p = fma(p, f, 0x1.555508p-2f);
    p = fma(p, f, -0.5f);
    p = fma(p, f * f, f);
    u32 y = bits(fma(n, 0x1.62e43p-1f, p));
    y = bits(x) == 0x7f800000u ? 0x7f800000u : y;
    y = x == 0.0f ? 0xff800000u : y;
    return from_bits(x < 0.0f || x != x ? 0x7fc00000u : y);
}

// sin(±0) is ±0, cos(±0) is 1.
//
// In float64 without fma. angle = k pi/2 + r with k = rint(angle * 2/pi), below 2^24. The first
// piece of pi/2 has 29 bits, so k times it is exact, and so is its difference from the angle; the
// second has 53. So r is off by at most 2^-53 |r| + 2^-57, and over the domain |r| >= 2^-27.9 (the
// smallest is at 0x1.f9cbe2p+7), or k = 0 and r is exact. sin r = r (1 + z P(z)) and
// cos r = 1 + z (-1/2 + z Q(z)), z = r^2, each within 2^-37, are rounded to float once. The low two
// bits of k choose between them and their signs.
HD void sine_cosine(float angle, float* s, float* c) {
    double x = angle;
    double shifted = x * 0x1.45f306dc9c883p-1 + 0x1.8p+52;
    double k = shifted - 0x1.8p+52;
    double r = (x - k * 0x1.921fb54p+0) - k * 0x1.10b4611a62633p-30;
    double z = r * r;
    double p = 0x1.6cd838c594fbep-19;
    p = p * z - 0x1.a00f9d2325fd1p-13;
    p = p * z + 0x1.11110895aa173p-7;
    p = p * z - 0x1.5555554cb90e9p-3;
    p = (p * z + 1.0) * r;  // not r + r z p: that would make +0 of -0
    double q = -0x1.242abe5f45e8ap-22;
    q = q * z + 0x1.a0111fb66197ep-16;
    q = q * z - 0x1.6c16b89822c34p-10;
    q = q * z + 0x1.5555554f4dab9p-5;
    q = (q * z - 0.5) * z + 1.0;
    u32 quadrant = (u32)bits(shifted);
    u32 sine = bits((float)(quadrant & 1 ? q : p)) ^ (quadrant & 2) << 30;
    u32 cosine = bits((float)(quadrant & 1 ? p : q)) ^ ((quadrant + 1) & 2) << 30;
    bool inside = (bits(angle) & 0x7fffffffu) <= 0x4b800000u;
    *s = from_bits(inside ? sine : 0x7fc00000u);
    *c = from_bits(inside ? cosine : 0x7fc00000u);
}

// tanh(-x) is -tanh(x) to the bit, tanh(x) is x for tiny x, ±1 at ±inf.
//
// Below 0.7: x + x z P(z), z = x^2, P of degree 5, relative error 2^-30. Above:
// 1 - 2 / (exp(2x) + 1), which would be off by 1.8 ulp at 0.5.
HD float hyperbolic_tangent(float x) {
    u32 sign = bits(x) & 0x80000000u;
    float a = from_bits(bits(x) ^ sign), z = a * a;
    float p = 0x1.f2551cp-10f;
    p = fma(p, z, -0x1.02972ap-7f);
    p = fma(p, z, 0x1.617fecp-6f);
    p = fma(p, z, -0x1.b9bb3cp-5f);
    p = fma(p, z, 0x1.110f52p-3f);
    p = fma(p, z, -0x1.55555p-2f);
    float near = fma(p * z, a, a);
    float far = 1.0f - 2.0f / (exponential(a + a) + 1.0f);
    return from_bits(x != x ? 0x7fc00000u : sign | bits(a < 0.7f ? near : far));
}

// erf(-x) is -erf(x) to the bit, erf(±0) is ±0, ±1 at ±inf.
//
// Below 0.9: x + x P(z), z = x^2, P of degree 6, relative error 2^-30. Above: 1 - exp(-x + x Q(x)),
// the exponent being log(1 - erf x), Q of degree 5, relative error of the whole 2^-28; from 4 up
// it rounds to 1, so x is held there.
HD float error_function(float x) {
    u32 sign = bits(x) & 0x80000000u;
    float a = from_bits(bits(x) ^ sign), z = a * a;
    float p = 0x1.4d2864p-14f;
    p = fma(p, z, -0x1.a583bcp-11f);
    p = fma(p, z, 0x1.543f2ap-8f);
    p = fma(p, z, -0x1.b80062p-6f);
    p = fma(p, z, 0x1.ce2d6p-4f);
    p = fma(p, z, -0x1.812740p-2f);
    p = fma(p, z, 0x1.06eba8p-3f);
    float near = fma(p, a, a);
    float t = a > 4.0f ? 4.0f : a;
    float q = 0x1.c20782p-13f;
    q = fma(q, t, -0x1.a60b88p-9f);
    q = fma(q, t, 0x1.774a98p-6f);
    q = fma(q, t, -0x1.af4134p-4f);
    q = fma(q, t, -0x1.457a64p-1f);
    q = fma(q, t, -0x1.073578p-3f);
    float far = 1.0f - exponential(fma(q, t, -t));
    return from_bits(x != x ? 0x7fc00000u : sign | bits(a < 0.9f ? near : far));
}
