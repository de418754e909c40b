// ordered.cuh: an order-preserving integer for a float, -0 < +0, so that max and argmax have no order.
#pragma once
#include "lanes.cuh"

HD u32 ordered(float x) {
    u32 u = bits(x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}
HD float unordered(u32 u) { return from_bits(u & 0x80000000u ? u & 0x7fffffffu : ~u); }
