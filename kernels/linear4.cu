// linear4: y[t,n] = sum_g xs[t,g] (unit[n,0] D - unit[n,1] M) + bias[n], a linear layer of 4-bit weights. g = k/64, and with
// h = k/32 the two halves of a group: D = sum_h ws[n,h] sum_k q[t,k] w[n,k], M = sum_h low[n,h] sums[t,h]
//
//   w, ws, low, unit  (N,32 G) u8, (N,2 G) u8, (N,2 G) u8, (N,2) f32: weights of quantize4, G = ceil(K/64)
//   q, xs, sums       (T,64 G) i8, (T,G) f32, (T,2 G) i16: activations of quantize
//   bias              (N,)  f32, or null
//   y                 (T,N) f32, row stride ldy
//
// Order: D and M are exact, |D| < 2^25, |M| < 2^22. Groups in order, each with one fma from +0: a = fma(float(D), xs, a) and
// b = fma(float(M), xs, b); then fma(-unit[1], b, unit[0] a) + (+0) and the bias.
#include "lanes.cuh"

struct Totals { float a, b; };

#ifdef ON_CUDA
// 1024 inputs at a time: a half of a group for each thread.
HD Totals dot4(const u8* w, const u8* ws, const u8* low, const i8* q, const float* xs, const i16* sums, int G) {
    Totals acc = {0.0f, 0.0f};
    for (int g = 0; g < G; g += 16) {
        i32 d = 0, m = 0;
        int half = 2 * g + LANE;
        float scale = 0.0f;
        if (half < 2 * G) {
            int4 a = *(const int4*)(w + (i64)half * 16), x = *(const int4*)(q + (i64)half * 32), z = *(const int4*)(q + (i64)half * 32 + 16);
            d = __dp4a(a.x & 0x0f0f0f0f, x.x, __dp4a(a.y & 0x0f0f0f0f, x.y, __dp4a(a.z & 0x0f0f0f0f, x.z, __dp4a(a.w & 0x0f0f0f0f, x.w, 0))));
            d = __dp4a(a.x >> 4 & 0x0f0f0f0f, z.x, __dp4a(a.y >> 4 & 0x0f0f0f0f, z.y, __dp4a(a.z >> 4 & 0x0f0f0f0f, z.z, __dp4a(a.w >> 4 & 0x0f0f0f0f, z.w, d))));
            d *= ws[half], m = low[half] * sums[half];
            scale = xs[half / 2];
        }
        d += __shfl_xor_sync(~0u, d, 1);
        m += __shfl_xor_sync(~0u, m, 1);
        for (int i = 0; i < 16 && g + i < G; i++) {
            float x = __shfl_sync(~0u, scale, 2 * i);
            acc.a = fma((float)__shfl_sync(~0u, d, 2 * i), x, acc.a);
            acc.b = fma((float)__shfl_sync(~0u, m, 2 * i), x, acc.b);
        }
    }
    return acc;
}
#else
HD Totals dot4(const u8* w, const u8* ws, const u8* low, const i8* q, const float* xs, const i16* sums, int G) {
    Totals acc = {0.0f, 0.0f};
    for (int g = 0; g < G; g++) {
        i32 d = 0, m = 0;
        for (int half = 2 * g; half < 2 * g + 2; half++, w += 16, q += 32) {
            i32 dot = 0;
            for (int i = 0; i < 16; i++) dot += (w[i] & 15) * q[i] + (w[i] >> 4) * q[i + 16];
            d += ws[half] * dot, m += low[half] * sums[half];
        }
        acc = {fma((float)d, xs[g], acc.a), fma((float)m, xs[g], acc.b)};
    }
    return acc;
}
#endif

KERNEL(linear4, float* y, const u8* w, const u8* ws, const u8* low, const float* unit, const i8* q, const float* xs,
       const i16* sums, const float* bias, const i32* count, int N, int K, int ldy) {
    i64 G = (K + 63) / 64;
    int T = *count;
    FOR_ITEMS(n, N) {
        for (int t = 0; t < T; t++) {
            Totals acc = dot4(w + n * G * 32, ws + n * G * 2, low + n * G * 2, q + t * G * 64, xs + t * G, sums + t * G * 2, (int)G);
            float total = fma(-unit[2 * n + 1], acc.b, unit[2 * n] * acc.a) + 0.0f;
            if (LEADER) y[(i64)t * ldy + n] = bias ? total + bias[n] : total;
        }
    }
}

#ifdef ON_CUDA
// tensor_linear4: the same by tensor cores; half a group is one multiplication
#include "tensor_cuda.cuh"

template <int M, int S>
HD void tensor_tile4(float* y, const u8* w, const u8* ws, const u8* low, const float* unit, const i8* q, const float* xs,
                     const i16* sums, const float* bias, int n, int t, int T, int N, i64 G, i64 ldy) {
    Tile<M, S> at = tile_at<M, S>(n, t, N, T);
    float a[M][S][4], b[M][S][4];
#pragma unroll
    for (int i = 0; i < M * S * 4; i++) a[i / 4 / S][i / 4 % S][i % 4] = b[i / 4 / S][i / 4 % S][i % 4] = 0.0f;
    for (i64 g = 0; g < G; g++) {
        i32 part[2][M][2], scale[2][M][2], lowest[2][M][2];  // by half of the group
#pragma unroll
        for (int i = 0; i < 4 * M; i++) {
            int half = i / (2 * M), m = i / 2 % M;
            i64 group = (at.row[m][i % 2] * G + g) * 2 + half;
            part[half][m][i % 2] = *(const i32*)(w + group * 16 + PART_OF_THREAD * 4);
            scale[half][m][i % 2] = ws[group], lowest[half][m][i % 2] = low[group];
        }
#pragma unroll
        for (int s = 0; s < S; s++) {
            i32 d[M][4], l[M][4];
#pragma unroll
            for (int i = 0; i < M * 4; i++) d[i / 4][i % 4] = l[i / 4][i % 4] = 0;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const i8* fed = q + (at.token[s] * G + g) * 64 + 32 * half + PART_OF_THREAD * 4;
                i32 x0 = *(const i32*)fed, x1 = *(const i32*)(fed + 16);
                i32 sum[2] = {sums[(at.found[s][0] * G + g) * 2 + half], sums[(at.found[s][1] * G + g) * 2 + half]};
#pragma unroll
                for (int m = 0; m < M; m++) {
                    i32 c[4] = {0, 0, 0, 0}, p = part[half][m][0], r = part[half][m][1];
                    mma_s8(c, p & 0x0f0f0f0f, r & 0x0f0f0f0f, p >> 4 & 0x0f0f0f0f, r >> 4 & 0x0f0f0f0f, x0, x1);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        d[m][i] += scale[half][m][i / 2] * c[i];
                        l[m][i] += lowest[half][m][i / 2] * sum[i % 2];
                    }
                }
            }
            float x[2] = {xs[at.found[s][0] * G + g], xs[at.found[s][1] * G + g]};
#pragma unroll
            for (int i = 0; i < M * 4; i++) {
                int m = i / 4, e = i % 4;
                a[m][s][e] = fma((float)d[m][e], x[e % 2], a[m][s][e]);
                b[m][s][e] = fma((float)l[m][e], x[e % 2], b[m][s][e]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < M * S * 4; i++) {
        int m = i / 4 / S, s = i / 4 % S, e = i % 4, row = at.row[m][e / 2];
        a[m][s][e] = fma(-unit[2 * row + 1], b[m][s][e], __fmul_rn(unit[2 * row], a[m][s][e]));
    }
    write_tile<M, S>(y, ldy, a, bias, n, t, N, T);
}

KERNEL(tensor_linear4, float* y, const u8* w, const u8* ws, const u8* low, const float* unit, const i8* q, const float* xs,
       const i16* sums, const float* bias, const i32* count, int N, int K, int ldy) {
    int G = (K + 63) / 64, T = *count;
    if (are_enough(N, T, 2, 4)) {
        FOR_TILES(n, t, 2, 4, N, T) tensor_tile4<2, 4>(y, w, ws, low, unit, q, xs, sums, bias, n, t, T, N, G, ldy);
    } else {
        FOR_TILES(n, t, 1, 2, N, T) tensor_tile4<1, 2>(y, w, ws, low, unit, q, xs, sums, bias, n, t, T, N, G, ldy);
    }
}
#endif
