// linear8: y[t,n] = sum_g (sum_k q[t,k] w[n,k]) * (ws[n,g] xs[t,g]) + bias[n], g = k/64: a linear layer in 8-bit integers
//
//   w, ws   (N,64 G) i8, (N,G) bf16: weights of quantize8, G = ceil(K/64)
//   q, xs   (T,64 G) i8, (T,G) f32:  activations of quantize
//   sums    (T,2 G) i16: of each 32 of q; what a variant needs
//   bias    (N,)  f32, or null
//   y       (T,N) f32, row stride ldy
//
// Order: the sums of a group are exact. Groups in order, each with one fma: acc = fma(float(sum), ws xs, acc) from +0, the
// product of the scales rounded first; then + (+0) and the bias.
#include "lanes.cuh"

#ifdef ON_CUDA
// 512 inputs at a time: 16 of a thread, four threads a group.
HD float dot8(const i8* w, const bf16* ws, const i8* q, const float* xs, int G) {
    float acc = 0.0f;
    for (int g = 0; g < G; g += 8) {
        i32 part = 0;
        int mine = g + LANE / 4;
        float scale = 0.0f;
        if (mine < G) {
            int4 a = *(const int4*)(w + (i64)g * 64 + LANE * 16), b = *(const int4*)(q + (i64)g * 64 + LANE * 16);
            part = __dp4a(a.x, b.x, __dp4a(a.y, b.y, __dp4a(a.z, b.z, __dp4a(a.w, b.w, 0))));
            scale = from_bits((u32)ws[mine].bits << 16) * xs[mine];
        }
        part += __shfl_xor_sync(~0u, part, 1);
        part += __shfl_xor_sync(~0u, part, 2);
        for (int i = 0; i < 8 && g + i < G; i++)
            acc = fma((float)__shfl_sync(~0u, part, 4 * i), __shfl_sync(~0u, scale, 4 * i), acc);
    }
    return acc + 0.0f;
}
#else
HD float dot8(const i8* w, const bf16* ws, const i8* q, const float* xs, int G) {
    float acc = 0.0f;
    for (int g = 0; g < G; g++, w += 64, q += 64) {
        i32 sum = 0;
        for (int k = 0; k < 64; k++) sum += w[k] * q[k];
        acc = fma((float)sum, from_bits((u32)ws[g].bits << 16) * xs[g], acc);
    }
    return acc + 0.0f;
}
#endif

KERNEL(linear8, float* y, const i8* w, const bf16* ws, const i8* q, const float* xs, const i16*, const float* bias,
       const i32* count, int N, int K, int ldy) {
    int G = (K + 63) / 64, T = *count;
    FOR_ITEMS(n, N) {  // the tokens of a row of w one after the other: it is near then
        for (int t = 0; t < T; t++) {
            float total = dot8(w + n * G * 64, ws + n * G, q + (i64)t * G * 64, xs + (i64)t * G, G);
            if (LEADER) y[(i64)t * ldy + n] = bias ? total + bias[n] : total;
        }
    }
}
