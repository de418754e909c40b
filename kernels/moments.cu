// moments: what a probe records of a row x[t,0..C-1], 32 words:
//   0 rms = sqrt(sum x^2 / C)   1 mean = sum x / C   2 l1 = sum |x|   3 absmax   4 kurtosis about 0 = (sum x^4 / C) / rms^4
//   5 index of absmax (u32)     6, 7 zero            8-11 indices (u32) and 12-15 values of the 4 largest |x|
//   16-23 indices (u32) and 24-31 values of 8 samples, one from each eighth of the row
//
//   x        (T,C) f32, row stride ldx, padded with zeros
//   seed     (T,) u64; position (T,) i32: sample s stands at begin + ((word * length) >> 32) of its eighth, word s % 4 of
//            Philox4x32-10 with key seed and counter (position, point, s / 4, 1): fixed before the run, not by its values
//   record   (T,32) u32, row stride ldr
//
// Order of sums: tiles of 1024 columns, each as lanes.cuh says, added in order. Ties of |x| go to the lowest index.
// kurtosis is 0 where rms^4 is 0 or not finite. One item a row.
#include "lanes.cuh"
#include "math.cuh"
#include "philox.cuh"

KERNEL(moments, u32* record, const float* x, const u64* seed, const i32* position, const i32* T, int C, int ldr, int ldx,
       int point) {
    FOR_ITEMS(t, *T) {
        const float* row = x + t * ldx;
        u32* to = record + t * ldr;
        float s1 = 0.0f, s2 = 0.0f, s4 = 0.0f, l1 = 0.0f;
        for (int tile = 0; tile < C; tile += 1024) {
            lanes a1 = zero(), a2 = zero(), a4 = zero(), al = zero();
            for (int c = tile; c < C && c < tile + 1024; c += 32) {
                lanes v = load(row + c), square = mul(v, v);
                a1 = add(a1, v);
                a2 = add(a2, square);
                a4 = fma(square, square, a4);
                al = add(al, magnitude(v));
            }
            s1 = s1 + sum(a1);
            s2 = s2 + sum(a2);
            s4 = s4 + sum(a4);
            l1 = l1 + sum(al);
        }
        u64 top[4], below = ~0ull;
        for (int k = 0; k < 4; k++) {
            u64 best = 0;
            FOR_LANES(c, C) {
                u64 key = (u64)(bits(row[c]) & 0x7fffffffu) << 32 | (0xffffffffu - (u32)c);
                best = key < below && key > best ? key : best;
            }
            top[k] = below = all_max(best);
        }
        if (LEADER) {
            float n = (float)C, mean_square = s2 / n, rms = square_root(mean_square), fourth = mean_square * mean_square;
            bool usable = fourth > 0.0f && fourth < from_bits(0x7f800000u);
            to[0] = bits(rms);
            to[1] = bits(s1 / n);
            to[2] = bits(l1);
            to[3] = (u32)(top[0] >> 32);
            to[4] = usable ? bits(s4 / n / fourth) : 0;
            to[5] = 0xffffffffu - (u32)top[0];
            to[6] = to[7] = 0;
            for (int k = 0; k < 4; k++) {
                u32 at = top[k] ? 0xffffffffu - (u32)top[k] : 0;  // a row of fewer than 4 repeats index 0
                to[8 + k] = at;
                to[12 + k] = bits(row[at]);
            }
            for (int s = 0; s < 8; s++) {
                u32 word = philox({{(u32)position[t], (u32)point, (u32)s / 4, 1}}, seed[t]).word[s % 4];
                u32 begin = (u32)((i64)C * s / 8), end = (u32)((i64)C * (s + 1) / 8);
                u32 at = begin + (u32)((u64)word * (end - begin) >> 32);
                to[16 + s] = at;
                to[24 + s] = bits(row[at]);
            }
        }
    }
}
