// wide:           y[t,i] = sum_k w[i,k] * x[t,k] + bias[i], in float64: what a linear layer should have given
// wide_sum:       partial[s,k] = sum of w[n,k] over the 256 rows n of stretch s
// wide_attention: z[t,h,:] = sum_j softmax_j(q[t,h,:] · k[j,:]) v[j,:] over j < visible[t], in float64
//
//   w        (R,K) or (N,K) bf16, f16 or f32, row stride ldw, padded with zeros to a multiple of 32
//   x        (T,K) f64, row stride ldx, padded with zeros;  bias (R,) f32, or null
//   y        (T,R) f64, row stride ldy;  partial  (ceil(N/256), ldp) f64
//   q, z     (T,H*D) f64; q is scaled already;  visible (T,) i32
//   keys     (G,D,S) f64, S a multiple of 32;  values (S,G*D) f64
//   weight   (T,H,S) f64 scratch: the softmax weights before their division
//
// Order: wide: lane i takes k = i, i+32, ..., a product and an addition each from +0; tree 16, 8, 4, 2, 1; + (+0); the bias last.
// wide_sum: the rows of a stretch in order. wide_attention: scores over d in order; the denominator as wide; the mix over j in order.
// One item an output of up to 4 tokens; a stretch; a head of a token.
#include "wide.cuh"

#define ROWS_OF_STRETCH 256
#if defined(ON_CUDA) || defined(__AVX512F__)
#define WIDE_TOKENS 4
#else
#define WIDE_TOKENS 1  // more of them would not fit the registers
#endif

template <int S, class W>
HD void wide_dots(double* y, i64 ldy, const W* w, const double* x, i64 ldx, int K, const float* bias) {
    wide acc[S];
#pragma unroll
    for (int s = 0; s < S; s++) acc[s] = wide_zero();
    for (int k = 0; k < K; k += 32) {
        wide a = widened(w + k);
#pragma unroll
        for (int s = 0; s < S; s++) acc[s] = add(acc[s], mul(a, widened(x + s * ldx + k)));
    }
#pragma unroll
    for (int s = 0; s < S; s++) {
        double total = sum(acc[s]);
        if (LEADER) y[s * ldy] = bias ? total + (double)*bias : total;
    }
}

template <class W>
HD void wide_linear(Share share, double* y, const W* w, const double* x, const float* bias, const i32* count, int R, int K,
                    int ldy, int ldw, int ldx) {
    int T = *count, tiles = (T + WIDE_TOKENS - 1) / WIDE_TOKENS;
    FOR_ITEMS(item, (i64)R * tiles) {
        i64 i = item / tiles, t = item % tiles * WIDE_TOKENS;
        const W* wi = w + i * ldw;
        const float* b = bias ? bias + i : bias;
        if (t + WIDE_TOKENS <= T) wide_dots<WIDE_TOKENS>(y + t * ldy + i, ldy, wi, x + t * ldx, ldx, K, b);
        else
            for (; t < T; t++) wide_dots<1>(y + t * ldy + i, ldy, wi, x + t * ldx, ldx, K, b);
    }
}

template <class W> HD void wide_stretches(Share share, double* partial, const W* w, int N, int K, int ldp, int ldw) {
    FOR_ITEMS(s, (N + ROWS_OF_STRETCH - 1) / ROWS_OF_STRETCH) {
        double* to = partial + s * ldp;
        i64 begin = s * ROWS_OF_STRETCH, end = begin + ROWS_OF_STRETCH < N ? begin + ROWS_OF_STRETCH : N;
        for (int k = 0; k < K; k += 32) store(to + k, wide_zero());
        for (i64 n = begin; n < end; n++)
            for (int k = 0; k < K; k += 32) store(to + k, add(widened((const double*)to + k), widened(w + n * ldw + k)));
    }
}

#define WIDE_LINEAR(W)                                                                                               \
    KERNEL(wide_##W, double* y, const W* w, const double* x, const float* bias, const i32* T, int R, int K, int ldy, \
           int ldw, int ldx) {                                                                                       \
        wide_linear(share, y, w, x, bias, T, R, K, ldy, ldw, ldx);                                                   \
    }
WIDE_LINEAR(bf16)
WIDE_LINEAR(f16)
WIDE_LINEAR(f32)

#define WIDE_SUM(W)                                                                                  \
    KERNEL(wide_sum_##W, double* partial, const W* w, int N, int K, int ldp, int ldw) {             \
        wide_stretches(share, partial, w, N, K, ldp, ldw);                                           \
    }
WIDE_SUM(bf16)
WIDE_SUM(f16)
WIDE_SUM(f32)

// exp(x) for x <= 0, to about 2^-52; 0 below -708.
//
// x = k ln 2 + r, k = rint(x / ln 2); the first piece of ln 2 has 32 bits, so k times it is exact. Taylor's series to r^13.
HD double wide_exponential(double x) {
    double clamped = x < -708.0 ? -708.0 : x;
    double shifted = clamped * 0x1.71547652b82fep+0 + 0x1.8p+52, k = shifted - 0x1.8p+52;
    double r = (clamped - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    double p = 0x1.6124613a86d09p-33;
    p = p * r + 0x1.1eed8eff8d898p-29;
    p = p * r + 0x1.ae64567f544e4p-26;
    p = p * r + 0x1.27e4fb7789f5cp-22;
    p = p * r + 0x1.71de3a556c734p-19;
    p = p * r + 0x1.a01a01a01a01ap-16;
    p = p * r + 0x1.a01a01a01a01ap-13;
    p = p * r + 0x1.6c16c16c16c17p-10;
    p = p * r + 0x1.1111111111111p-7;
    p = p * r + 0x1.5555555555555p-5;
    p = p * r + 0x1.5555555555555p-3;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    i64 n = (i64)(bits(shifted) - 0x4338000000000000ull);
    return x < -708.0 ? 0.0 : p * from_bits((u64)(n + 1023) << 52);
}

HD u64 wide_ordered(double x) { u64 u = bits(x), minus = (u64)1 << 63; return u & minus ? ~u : u | minus; }
HD double wide_unordered(u64 u) { u64 minus = (u64)1 << 63; return from_bits(u & minus ? u & ~minus : ~u); }

KERNEL(wide_attention, double* z, double* weight, const double* q, const double* keys, const double* values,
       const i32* visible, const i32* T, int H, int G, int D, int S) {
    FOR_ITEMS(item, (i64)*T * H) {
        i64 t = item / H, h = item % H, g = h / (H / G);
        int count = visible[t], whole = (count + 31) / 32 * 32;
        const double *qh = q + t * H * D + h * D, *kg = keys + g * D * S, *vg = values + g * D;
        double *p = weight + item * S, *zh = z + t * H * D + h * D;
        FOR_LANES(j, whole) p[j] = 0.0;
        for (int d = 0; d < D; d++) {
            double factor = qh[d];
            const double* kd = kg + (i64)d * S;
            FOR_LANES(j, count) p[j] = p[j] + factor * kd[j];
        }
        u64 top = 0;
        FOR_LANES(j, count) { u64 u = wide_ordered(p[j]); top = u > top ? u : top; }
        double most = wide_unordered(all_max(top));
        FOR_LANES(j, count) p[j] = wide_exponential(p[j] - most);
        SYNC_LANES();
        wide chain = wide_zero();
        for (int j = 0; j < whole; j += 32) chain = add(chain, widened((const double*)p + j));
        double total = sum(chain);
        FOR_LANES(d, D) zh[d] = 0.0;
        for (int j = 0; j < count; j++) {
            double share_of_j = p[j];
            const double* vj = vg + (i64)j * G * D;
            FOR_LANES(d, D) zh[d] = zh[d] + share_of_j * vj[d];
        }
        FOR_LANES(d, D) zh[d] = zh[d] / total;
    }
}
