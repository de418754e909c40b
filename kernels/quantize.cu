// What a multiplication in integers needs: rows of small whole numbers and what a step of each group is worth.
//
// quantize    activations: q = rint(x / scale), clamped to ±127; scale = max |x| / 127 of each 64 values
//
//   x      (T,K) f32, row stride ldx
//   q      (T,64 G) i8, G = ceil(K/64); 0 behind K
//   scale  (T,G) f32
//   sums   (T,2 G) i16: of each 32 of q
//
// quantize8   weights: the same, but scale is rounded to bf16 before it divides
//
//   w      (N,K) bf16, f16 or f32, row stride ldw, padded with zeros to a multiple of 32
//   q      (N,64 G) i8        scale  (N,G) bf16
//
// fit4        step and low end of each 32 weights: x is near low + step * (0 ... 15), low <= 0
// quantize4   what fit4 found in units of a row, unit = the largest / 255: scale = rint(step / unit[0]), 1 at least, and
//             low = rint(-low / unit[1]); q = rint((w + low unit[1]) / (scale unit[0])), clamped to 0 ... 15
//
//   found  (N,2 G,2) f32: step, -low
//   q      (N,32 G) u8: byte i of the 16 of a group holds inputs i (low four bits) and i + 16
//   scale, low  (N,2 G) u8        unit  (N,2) f32
//
// Where scale is 0 or not finite q is 0: the scale alone then carries a NaN or infinity into the sums.
// Order: maxima have none. fit4 starts from four ranges, the values' own and with either end drawn in by a tenth, improves
// each once by least squares, and keeps what has the smallest sum of squared errors, the earliest of equals; its sums are
// those of lanes.cuh over the 32 values. One item a group; of quantize4 a row.
#include "lanes.cuh"
#include "levels.cuh"
#include "ordered.cuh"

#define GROUP8 64
#define GROUP4 32

// n of the 64 values of a group; behind them there is nothing.
template <class Q> HD float quantize_group(Q* q, i16* sums, const float* x, int n) {
    float scale = largest(x, n) / 127.0f;
    for (int half = 0; half < 2; half++, q += 32, x += 32, n -= 32) {
        i32 total = 0;
        if (!divides(scale)) FOR_LANES(i, 32) q[i] = 0;
        else if (n >= 32) total = levels(q, x, scale);
        else FOR_LANES(i, 32) { i32 v = i < n ? level(x[i], scale, -127.0f, 127.0f) : 0; q[i] = (Q)v, total += v; }
        total = (i32)all_sum((u64)(i64)total);
        if (LEADER) sums[half] = (i16)total;
    }
    return scale;
}
template <class Q>
HD void quantize_rows(Share share, Q* q, float* scale, i16* sums, const float* x, const i32* T, int K, int ldx) {
    int G = (K + GROUP8 - 1) / GROUP8;
    FOR_ITEMS(item, (i64)*T * G) {
        i64 t = item / G, k = item % G * GROUP8;
        float s = quantize_group(q + item * GROUP8, sums + 2 * item, x + t * ldx + k, K - k < GROUP8 ? (int)(K - k) : GROUP8);
        if (LEADER) scale[item] = s;
    }
}
KERNEL(quantize, i8* q, float* scale, i16* sums, const float* x, const i32* T, int K, int ldx) {
    quantize_rows(share, q, scale, sums, x, T, K, ldx);
}

HD u16 nearest_bf16(float x) {
    u32 u = bits(x);
    return u >= 0x7f800000u ? 0x7fc0 : (u16)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

template <class W> HD void quantize8(Share share, i8* q, bf16* scale, const W* w, int N, int K, int ldw) {
    int G = (K + GROUP8 - 1) / GROUP8;
    SCRATCH(float, x, GROUP8);
    FOR_ITEMS(item, (i64)N * G) {
        i64 n = item / G, k = item % G * GROUP8;
        SYNC_LANES();
        store(x, load(w + n * ldw + k));
        store(x + 32, k + 32 < K ? load(w + n * ldw + k + 32) : zero());
        SYNC_LANES();
        u16 rounded = nearest_bf16(largest(x, GROUP8) / 127.0f);
        float s = from_bits((u32)rounded << 16);
        FOR_LANES(i, GROUP8) q[item * GROUP8 + i] = (i8)(divides(s) ? level(x[i], s, -127.0f, 127.0f) : 0);
        if (LEADER) scale[item].bits = rounded;
    }
}

// A range for 32 values: the error of its levels, and by least squares the step and low end that suit these levels best.
struct Range { float step, low; };
HD float fitted(Range r, const float* x, float* level_of, float* error_of, float* product_of, Range& better) {
    FOR_LANES(i, GROUP4) {
        float q = (float)level(x[i] - r.low, r.step, 0.0f, 15.0f), e = fma(q, r.step, r.low) - x[i];
        level_of[i] = q, error_of[i] = e * e, product_of[i] = q * x[i];
    }
    SYNC_LANES();
    lanes q = load(level_of);
    float qs = sum(q), qq = sum(mul(q, q)), xs = sum(load(x)), qx = sum(load(product_of)), error = sum(load(error_of));
    SYNC_LANES();
    better.step = (32.0f * qx - qs * xs) / (32.0f * qq - qs * qs);
    float low = (xs - better.step * qs) / 32.0f;
    better.low = low < 0.0f ? low : 0.0f;
    return error;
}

template <class W> HD void fit4(Share share, float* found, const W* w, int N, int K, int ldw) {
    int groups = (K + GROUP8 - 1) / GROUP8 * 2;
    SCRATCH(float, x, 4 * GROUP4);
    FOR_ITEMS(item, (i64)N * groups) {
        i64 n = item / groups, k = item % groups * GROUP4;
        SYNC_LANES();
        store(x, k < K ? load(w + n * ldw + k) : zero());
        SYNC_LANES();
        u32 top = ordered(0.0f), bottom = top;
        FOR_LANES(i, GROUP4) {
            u32 u = ordered(x[i]), v = ordered(-x[i]);
            top = u > top ? u : top, bottom = v > bottom ? v : bottom;
        }
        float high = unordered(all_max(top)), low = -unordered(all_max(bottom)), least = 0.0f;
        Range best = {(high - low) / 15.0f, low};
        if (divides(best.step))
            for (int c = 0; c < 4; c++) {
                float h = c & 1 ? high * 0.9f : high, l = c & 2 ? low * 0.9f : low;
                Range r = {(h - l) / 15.0f, l}, better, unused;
                for (int turn = 0; turn < 2 && divides(r.step); turn++, r = better) {
                    float error = fitted(r, x, x + 32, x + 64, x + 96, turn ? unused : better);
                    if (c + turn == 0 || error < least) least = error, best = r;
                }
            }
        if (LEADER) found[2 * item] = best.step, found[2 * item + 1] = -best.low;
    }
}

template <class W>
HD void quantize4(Share share, u8* q, u8* scale, u8* low, float* unit, const float* found, const W* w, int N, int K, int ldw) {
    int groups = (K + GROUP8 - 1) / GROUP8 * 2;
    SCRATCH(float, x, GROUP4);
    FOR_ITEMS(n, N) {
        const float* row = found + n * groups * 2;
        u32 steps = 0, lows = 0;
        FOR_LANES(g, groups) {
            u32 u = bits(row[2 * g]), v = bits(row[2 * g + 1]) & 0x7fffffffu;
            steps = u > steps ? u : steps, lows = v > lows ? v : lows;
        }
        float by_step = from_bits(all_max(steps)) / 255.0f, by_low = from_bits(all_max(lows)) / 255.0f;
        if (LEADER) unit[2 * n] = by_step, unit[2 * n + 1] = by_low;
        for (int g = 0; g < groups; g++) {
            i64 item = n * groups + g;
            i32 s = 0, l = divides(by_low) ? level(row[2 * g + 1], by_low, 0.0f, 255.0f) : 0;
            if (divides(by_step) && row[2 * g] > 0.0f) s = level(row[2 * g], by_step, 1.0f, 255.0f);
            float step = (float)s * by_step, down = (float)l * by_low;
            SYNC_LANES();
            store(x, g * GROUP4 < K ? load(w + n * ldw + g * GROUP4) : zero());
            SYNC_LANES();
            FOR_LANES(i, GROUP4 / 2) {
                i32 a = divides(step) ? level(x[i] + down, step, 0.0f, 15.0f) : 0;
                i32 b = divides(step) ? level(x[i + 16] + down, step, 0.0f, 15.0f) : 0;
                q[item * 16 + i] = (u8)(a | b << 4);
            }
            if (LEADER) scale[item] = (u8)s, low[item] = (u8)l;
        }
    }
}

#define QUANTIZE(W)                                                                                                        \
    KERNEL(quantize8_##W, i8* q, bf16* scale, const W* w, int N, int K, int ldw) { quantize8(share, q, scale, w, N, K, ldw); } \
    KERNEL(fit4_##W, float* found, const W* w, int N, int K, int ldw) { fit4(share, found, w, N, K, ldw); }                \
    KERNEL(quantize4_##W, u8* q, u8* scale, u8* low, float* unit, const float* found, const W* w, int N, int K, int ldw) { \
        quantize4(share, q, scale, low, unit, found, w, N, K, ldw);                                                        \
    }

QUANTIZE(bf16)
QUANTIZE(f16)
QUANTIZE(f32)
