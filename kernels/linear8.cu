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

#ifdef ON_CUDA
// tensor_linear8: the same by tensor cores; a group is two multiplications
#include "tensor_cuda.cuh"

template <int M, int S>
HD void tensor_tile8(float* y, const i8* w, const bf16* ws, const i8* q, const float* xs, const float* bias, int n, int t, int T,
                     int N, i64 G, i64 ldy) {
    Tile<M, S> at = tile_at<M, S>(n, t, N, T);
    float acc[M][S][4];
#pragma unroll
    for (int i = 0; i < M * S * 4; i++) acc[i / 4 / S][i / 4 % S][i % 4] = 0.0f;
    for (i64 g = 0; g < G; g++) {
        int4 a[M][2];
        float by[M][2];
#pragma unroll
        for (int m = 0; m < 2 * M; m++) {
            i64 group = at.row[m / 2][m % 2] * G + g;
            a[m / 2][m % 2] = *(const int4*)(w + group * 64 + PART_OF_THREAD * 16);
            by[m / 2][m % 2] = from_bits((u32)ws[group].bits << 16);
        }
#pragma unroll
        for (int s = 0; s < S; s++) {
            int4 b = *(const int4*)(q + (at.token[s] * G + g) * 64 + PART_OF_THREAD * 16);
            float x[2] = {xs[at.found[s][0] * G + g], xs[at.found[s][1] * G + g]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                i32 c[4] = {0, 0, 0, 0};
                mma_s8(c, a[m][0].x, a[m][1].x, a[m][0].y, a[m][1].y, b.x, b.y);
                mma_s8(c, a[m][0].z, a[m][1].z, a[m][0].w, a[m][1].w, b.z, b.w);
#pragma unroll
                for (int i = 0; i < 4; i++) acc[m][s][i] = fma((float)c[i], __fmul_rn(by[m][i / 2], x[i % 2]), acc[m][s][i]);
            }
        }
    }
    write_tile<M, S>(y, ldy, acc, bias, n, t, N, T);
}

KERNEL(tensor_linear8, float* y, const i8* w, const bf16* ws, const i8* q, const float* xs, const i16*, const float* bias,
       const i32* count, int N, int K, int ldy) {
    int G = (K + 63) / 64, T = *count;
    if (are_enough(N, T, 4, 4)) {
        FOR_TILES(n, t, 4, 4, N, T) tensor_tile8<4, 4>(y, w, ws, q, xs, bias, n, t, T, N, G, ldy);
    } else {
        FOR_TILES(n, t, 1, 2, N, T) tensor_tile8<1, 2>(y, w, ws, q, xs, bias, n, t, T, N, G, ldy);
    }
}
#endif
