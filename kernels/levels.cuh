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
HD bool divides(float scale) { return scale > 0.0f && scale <= 0x1.fffffep127f; }
HD float largest(const float* x, int n) {
    u32 top = 0;
    FOR_LANES(i, n) { u32 u = bits(x[i]) & 0x7fffffffu; top = u > top ? u : top; }
    return from_bits(all_max(top));
}
