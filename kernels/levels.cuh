// levels.cuh: what turns numbers into whole numbers: q = rint(x / scale) to even, clamped; the scale is the largest over 127.
#pragma once
#include "lanes.cuh"

HD float to_even(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }  // |x| < 2^22, to even
HD i32 level(float x, float scale, float low, float high) {
    float r = x / scale;
    r = r > high ? high : r;
    r = r < low ? low : r;
    return (i32)to_even(r);
}
// A lane's part of 32 values and the sum of that part; no |x| is more than 127 times the scale, but for a rounding.
template <class Q> HD i32 levels(Q* q, const float* x, float scale) {
    i32 total = 0;
#ifndef ON_CUDA
    // A product is quicker. It is within 2^-16 of the exact quotient and the rounded one within 2^-17: both are nearest to the
    // same whole number, unless the product is as near to half of one.
    if (scale > 0x1p-100f && scale < 0x1p100f) {
        constexpr float NEAR = 0.5f - 0x1p-15f;
        float by = 1.0f / scale;
        i32 unsure = 0;
        for (int i = 0; i < 32; i++) {
            float y = x[i] * by, whole = to_even(y), off = y - whole;
            unsure |= off > NEAR || off < -NEAR;
            q[i] = (Q)(i32)whole, total += (i32)whole;
        }
        if (!unsure) return total;
        total = 0;
    }
#endif
    FOR_LANES(i, 32) { i32 v = level(x[i], scale, -127.0f, 127.0f); q[i] = (Q)v, total += v; }
    return total;
}
HD bool divides(float scale) { return scale > 0.0f && scale <= 0x1.fffffep127f; }
HD float largest(const float* x, int n) {
    u32 top = 0;
    FOR_LANES(i, n) { u32 u = bits(x[i]) & 0x7fffffffu; top = u > top ? u : top; }
    return from_bits(all_max(top));
}
