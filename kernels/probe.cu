// probe: what is measured of each row of each point, 32 words: exact statistics of all n = width values, samples, sketches
//   0 rms = sqrt(sum x^2 / n)   1 mean = sum x / n   2 l1 = sum |x|   3 absmax   4 kurtosis about 0 = (sum x^4 / n) / rms^4
//   5 energy entropy in nats = ln(sum x^2) - sum x^2 ln x^2 / sum x^2   6 index of absmax (u32)   7 zero
//   8-11 indices (u32) and 12-15 values of the 4 largest |x|   16-23 values of 8 samples, one from each eighth of the row
//   24, 25 linear sketch and 26, 27 clipped sketch: 4 f16 each, two a word
//   28 zeros and subnormals   29 |x| > 65504   30 |x| < absmax / 1024   31 |x| > bound = 2 l1 / n   (counts, u32)
// finite: only marks rows that hold a NaN or an infinity, where nothing is digested
//
//   point     (P,4) u64: address of row 0, row stride in floats, floats a row, column of the record
//   record    (T, ld, 32) u32: row t, column of the point
//   seed      (.,) u64, position (.,) i32: of row row[t], or of row t where `row` is null
//   flaw      (T, ld) u8: 1 where the row holds a NaN or an infinity
//
// Sample s is at begin + ((word * length) >> 32) of its eighth, word s % 4 of Philox4x32-10 with key seed and counter
// (position, column, s / 4, 1): fixed before the run, not by its values.
// Linear sketch: entry b sums sign * x over the columns c with (c mod 32) / 8 = b, divided by rms sqrt(n / 4). Clipped sketch: alike,
// other signs, x clipped to +-bound, divided by bound sqrt(n / 4). Signs: low and high half of splitmix64(seed, column of
// the point, c / 32), bit c mod 32; they are the same at every position. An entry is rounded to f16, half to even.
//
// Order of sums: tiles of 1024 columns, each as lanes.cuh says (sketches: quarters), added in order. Ties of |x| go to the
// lowest index; a row of fewer than 4 repeats index 0. What is not finite, or divided by 0, is 0. The logarithm of a summand
// is within 2^-18 of the true one. Item: a row of a point; the host cuts its shares by values, for rows differ in length.
// Sources: Steele, Lea and Flood 2014 (splitmix64); Cormode and Muthukrishnan 2005 (sketches by buckets and signs).
#include "lanes.cuh"
#include "math.cuh"
#include "philox.cuh"

constexpr int SLICE = 32 / SLICES;  // columns of a slice

struct ProbePoint { u64 rows, stride, width, column; };

HD u64 sign_bits(u64 seed, u64 column, u64 chunk) {
    u64 z = seed + 0x9e3779b97f4a7c15ull * (column << 32 | (chunk + 1));
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

// f16, half to even, at most 65504 either way.
HD u32 half_bits(float x) {
    u32 sign = bits(x) >> 16 & 0x8000u, a = bits(x) & 0x7fffffffu;
    u32 small = bits(from_bits(a) + 0.5f) - 0x3f000000u;  // a multiple of 2^-24
    u32 other = (a + 0xfffu + (a >> 13 & 1) - 0x38000000u) >> 13;
    return sign | (a >= 0x477fe000u ? 0x7bffu : a < 0x38800000u ? small : other);
}
HD float usable(float x) { return (bits(x) & 0x7f800000u) == 0x7f800000u ? 0.0f : x; }
HD float ratio(float a, float b) { return b > 0.0f ? usable(a / b) : 0.0f; }

// x^2 log2 |x|, 0 for 0.
HD slice energy_log(slice square, slice size) {
    slice exponent, f = add(fraction(size, exponent), splat_slice(-1.0f));
    slice p = splat_slice(-0x1.2953cp-3f);
    p = fma(p, f, splat_slice(0x1.2bc08cp-2f));
    p = fma(p, f, splat_slice(-0x1.7bf996p-2f));
    p = fma(p, f, splat_slice(0x1.ed348p-2f));
    p = fma(p, f, splat_slice(-0x1.71334ep-1f));
    p = fma(p, f, splat_slice(0x1.715394p+0f));
    return mul(square, fma(p, f, exponent));
}

// Keeps the 4 largest by |x|, of equal ones those of the lowest index.
HD void take(u64 top[4], float x, int at) {
    u64 key = (u64)(bits(x) & 0x7fffffffu) << 32 | (0xffffffffu - (u32)at);
    if (key <= top[3]) return;
    top[3] = key;
    for (int k = 3; k > 0; k--)
        if (top[k] > top[k - 1]) { u64 t = top[k]; top[k] = top[k - 1]; top[k - 1] = t; }
}
// Of the columns from `at` on that are marked, and are below n.
ONCE void take_marked(u64 top[4], const float* x, int at, int n, u32 marked) {
    if (n - at < 32) marked &= ~(~0u << (n - at));
    for (; marked; marked &= marked - 1) take(top, x[at + lowest_bit(marked)], at + lowest_bit(marked));
}
HD u32 index_of(u64 key) { return key ? 0xffffffffu - (u32)key : 0; }

// signs[k] = those of the columns 32 k .. 32 k + 31 of a tile.
HD void sign_tile(u64 signs[32], u64 seed, u32 column, int tile, int end) {
    SYNC_LANES();
    FOR_LANES(k, (end - tile + 31) / 32) signs[k] = sign_bits(seed, column, (u64)(tile / 32 + k));
    SYNC_LANES();
}

// body(v, c, k) for slice i of each 32 columns k of a tile: c is its first column; columns behind the row are zeros.
template <class Body> HD void each_slice(const float* x, int tile, int end, int i, Body body) {
    int c = tile + i * SLICE, k = 0;
    for (; c + SLICE <= end; c += 32, k++) body(load_slice(x + c, SLICE), c, k);
    if (c < end) body(load_slice(x + c, end - c), c, k);
}

HD void probe_row(u32* to, const float* x, int n, u64 seed, u32 position, u32 column) {
    float s1 = 0.0f, s2 = 0.0f, s4 = 0.0f, l1 = 0.0f, energy = 0.0f, sketch[8] = {};  // linear, clipped
    lanes most = zero();
    SCRATCH(u64, signs, 32);
    for (int tile = 0; tile < n; tile += 1024) {
        int end = n < tile + 1024 ? n : tile + 1024;
        lanes a1, a2, a4, al, ae, as;
        sign_tile(signs, seed, column, tile, end);
        for (int i = 0; i < SLICES; i++) {
            slice b1 = splat_slice(0.0f), b2 = b1, b4 = b1, bl = b1, be = b1, bs = b1, high = get(most, i);
            each_slice(x, tile, end, i, [&](slice v, int, int k) INLINE {
                slice size = magnitude(v), square = mul(v, v);
                high = larger(high, size);
                b1 = add(b1, v);
                b2 = add(b2, square);
                b4 = fma(square, square, b4);
                bl = add(bl, size);
                be = add(be, energy_log(square, size));
                bs = add(bs, flip(v, (u32)signs[k], i));
            });
            set(a1, i, b1), set(a2, i, b2), set(a4, i, b4), set(al, i, bl), set(ae, i, be), set(as, i, bs), set(most, i, high);
        }
        float total[4], part[4];
        sum4(total, a1, a2, a4, al);
        s1 = s1 + total[0], s2 = s2 + total[1], s4 = s4 + total[2], l1 = l1 + total[3];
        energy = energy + sum(ae);
        quarters(part, as);
        for (int b = 0; b < 4; b++) sketch[b] = sketch[b] + part[b];
    }
    float high[4], floats = (float)n, bound = 2.0f * (l1 / floats);
    quarter_maxima(high, most);
    float least = high[0], absmax = high[0];  // at least 4 values reach the least of the 4 maxima
    for (int b = 1; b < 4; b++) least = high[b] < least ? high[b] : least, absmax = high[b] > absmax ? high[b] : absmax;
    float near = absmax * 0x1p-10f;
    tally zeros = {}, saturated = {}, small = {}, outside = {};
    u64 top[4] = {0, 0, 0, 0};
    for (int tile = 0; tile < n; tile += 1024) {
        int end = n < tile + 1024 ? n : tile + 1024;
        lanes as;
        if (n > 1024) sign_tile(signs, seed, column, tile, end);
        for (int i = 0; i < SLICES; i++) {
            slice bs = splat_slice(0.0f);
            each_slice(x, tile, end, i, [&](slice v, int c, int k) INLINE {
                slice size = magnitude(v);
                small = tally_below(small, size, near);
                outside = tally_above(outside, size, bound);
                zeros = tally_below(zeros, size, 0x1p-126f);
                bs = add(bs, flip(clamp(v, bound), (u32)(signs[k] >> 32), i));
                u32 marked = reaching(size, least);
                if (__builtin_expect(marked != 0, 0)) take_marked(top, x, c, n, marked);
            });
            set(as, i, bs);
        }
        float part[4];
        quarters(part, as);
        for (int b = 0; b < 4; b++) sketch[4 + b] = sketch[4 + b] + part[b];
    }
    if (absmax > 65504.0f)
        for (int c = 0; c < n; c += SLICE) saturated = tally_above(saturated, magnitude(load_slice(x + c, n - c)), 65504.0f);
    int none = (n + SLICE - 1) / SLICE * SLICE - n;  // columns behind the row were zeros
    int counts[4] = {counted(zeros) - none, counted(saturated), counted(small) - (near > 0.0f ? none : 0), counted(outside)};
    if (!LEADER) return;
    float mean_square = s2 / floats, rms = square_root(mean_square), fourth = mean_square * mean_square;
    float entropy = usable(logarithm(s2) - 0x1.62e43p+0f * (energy / s2)), wide = square_root(floats * 0.25f);
    bool is_usable = s2 > 0.0f && usable(s2) == s2;
    to[0] = bits(usable(rms));
    to[1] = bits(usable(s1 / floats));
    to[2] = bits(usable(l1));
    to[3] = bits(absmax);
    to[4] = bits(usable(fourth) == fourth ? ratio(s4 / floats, fourth) : 0.0f);
    to[5] = bits(is_usable && entropy > 0.0f ? entropy : 0.0f);
    to[6] = index_of(top[0]);
    to[7] = 0;
    for (int k = 0; k < 4; k++) {
        to[8 + k] = index_of(top[k]);
        to[12 + k] = bits(x[index_of(top[k])]);
    }
    for (int s = 0; s < 8; s += 4) {
        u32x4 words = philox({{position, column, (u32)s / 4, 1}}, seed);
        for (int i = s; i < s + 4; i++) {
            u32 begin = (u32)((i64)n * i / 8), length = (u32)((i64)n * (i + 1) / 8) - begin;
            to[16 + i] = bits(x[begin + (u32)((u64)words.word[i - s] * length >> 32)]);
        }
    }
    u32 half[8];
    for (int b = 0; b < 8; b++) half[b] = half_bits(ratio(sketch[b], (b < 4 ? usable(rms) : bound) * wide));
    for (int b = 0; b < 4; b++) to[24 + b] = half[2 * b] | half[2 * b + 1] << 16;
    for (int i = 0; i < 4; i++) to[28 + i] = (u32)counts[i];
}

HD void probe_item(u32* record, ProbePoint point, i64 t, int ld, const u64* seed, const i32* position, const i32* row) {
    i64 at = row ? row[t] : t;
    probe_row(record + 32 * (t * ld + (i64)point.column), (const float*)point.rows + t * (i64)point.stride, (int)point.width,
              seed[at], (u32)position[at], (u32)point.column);
}

#ifdef ON_CUDA
#define FOR_ROWS(t, p, T, P) \
    FOR_ITEMS(item, (i64)(T) * (P)) for (i64 t = item / (P), p = item % (P), once = 1; once; once = 0)
#else
#define WORTH 256  // values that a row costs beside its own
// The rows whose first value falls into this thread's share.
#define FOR_ROWS(t, p, T, P)                                                                                        \
    i64 per_token = 0, at = 0;                                                                                      \
    for (int i = 0; i < (P); i++) per_token += (i64)points[i].width + WORTH;                                        \
    i64 first = per_token * (T) * share.index / share.count, end = per_token * (T) * (share.index + 1) / share.count; \
    for (i64 t = first / per_token; t < (T) && (at = t * per_token) < end; t++)                                     \
        for (i64 p = 0; p < (P) && at < end; at += (i64)points[p].width + WORTH, p++)                               \
            if (at >= first)
#endif

KERNEL(probe, u32* record, const ProbePoint* points, const u64* seed, const i32* position, const i32* row, const i32* T, int P,
       int ld) {
    FOR_ROWS(t, p, *T, P) probe_item(record, points[p], t, ld, seed, position, row);
}

KERNEL(finite, u8* flaw, const ProbePoint* points, const i32* T, int P, int ld) {
    FOR_ROWS(t, p, *T, P) {
        const u32* x = (const u32*)points[p].rows + t * (i64)points[p].stride;
        u32 bad = 0;
        FOR_LANES(c, (int)points[p].width) bad |= (u32)((x[c] & 0x7f800000u) == 0x7f800000u);
        bad = all_max(bad);
        if (LEADER) flaw[t * ld + (i64)points[p].column] = (u8)bad;
    }
}
