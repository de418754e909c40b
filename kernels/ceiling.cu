// ceiling_float:   what a device adds and multiplies where nothing waits for memory: y[i] = sum of 10 chains of 32 lanes, each
//                  `steps` times a = fma(a, x[10], x[11]), from a = x[chain]
// ceiling_integer: the same in 8-bit integers, four products at a time: y[i] = steps * sum over n, t of w[n,:] . q[t,:]
//
//   x     (12,32) f32;  y (T,) f32
//   w, q  (64,4), (12,4) i8, w from 0 on;  y (T,) i32, modulo 2^32
//
// Order: chains in theirs, by sum(); integers have none. One item a y. Operations: 640 steps an item, 6144 steps an item.
// Included behind panel_host.cuh on a host, whose way of multiplying integers it takes; on a GPU dp4a. No matrix unit, no tensor core.
#include "lanes.cuh"

#define CHAINS 10
KERNEL(ceiling_float, float* y, const float* x, const i32* T, int steps) {
    FOR_ITEMS(item, *T) {
        lanes chain[CHAINS];
        for (int i = 0; i < SLICES; i++) {
            const int at = i * (32 / SLICES);
            slice acc[CHAINS], by = load_slice(x + 32 * CHAINS + at, 32), plus = load_slice(x + 32 * (CHAINS + 1) + at, 32);
#pragma unroll
            for (int c = 0; c < CHAINS; c++) acc[c] = load_slice(x + 32 * c + at, 32);
            for (int s = 0; s < steps; s++)
#pragma unroll
                for (int c = 0; c < CHAINS; c++) acc[c] = fma(acc[c], by, plus);
#pragma unroll
            for (int c = 0; c < CHAINS; c++) set(chain[c], i, acc[c]);
        }
        float total = 0.0f;
        for (int c = 0; c < CHAINS; c++) total += sum(chain[c]);
        if (LEADER) y[item] = total;
    }
}

#define INT_ROWS 64
#define INT_TOKENS 12
#ifdef ON_CUDA
KERNEL(ceiling_integer, i32* y, const i8* w, const i8* q, const i32* T, int steps) {
    FOR_ITEMS(item, *T) {
        const int *a = (const int*)w, *b = (const int*)q;
        i32 acc[2][INT_TOKENS], total = 0;
#pragma unroll
        for (int n = 0; n < 2 * INT_TOKENS; n++) acc[n & 1][n >> 1] = 0;
        for (int s = 0; s < steps; s++)
#pragma unroll
            for (int n = 0; n < 2 * INT_TOKENS; n++) acc[n & 1][n >> 1] = __dp4a(a[LANE + 32 * (n & 1)], b[n >> 1], acc[n & 1][n >> 1]);
#pragma unroll
        for (int n = 0; n < 2 * INT_TOKENS; n++) total += acc[n & 1][n >> 1];
        total = (i32)all_sum((u64)(u32)total);
        if (LEADER) y[item] = total;
    }
}
#else
KERNEL(ceiling_integer, i32* y, const i8* w, const i8* q, const i32* T, int steps) {
    alignas(64) u8 held[4 * INT_ROWS];
    FACTOR factor[4 * INT_TOKENS];
    for (int n = 0; n < INT_ROWS; n++)
        for (int k = 0; k < 4; k++) held[(n / SIDE * 4 + k / UNIT8 * UNIT8) * SIDE + n % SIDE * UNIT8 + k % UNIT8] = (u8)w[4 * n + k];
    for (int n = 0; n < 4 * INT_TOKENS; n++) factor[n] = q[n];
    FOR_ITEMS(item, *T) {
        u32 total = 0;
        for (int n = 0; n < INT_ROWS; n += PANEL_ROWS)
            for (int t = 0; t < INT_TOKENS; t += TOKENS8) {
                ints acc[PANELS][TOKENS8];
                Quad a[PANELS];
#pragma GCC unroll 8
                for (int r = 0; r < PANELS; r++) a[r] = read_quad(held + 4 * (n + r * SIDE));
                for (int i = 0; i < PANELS * TOKENS8; i++) acc[i / TOKENS8][i % TOKENS8] = ints{};
                for (int s = 0; s < steps; s++) {
                    asm volatile("" ::"r"(factor) : "memory");  // each is read again, as a linear layer reads the next
#pragma GCC unroll 8
                    for (int u = 0; u < TOKENS8; u++)
#pragma GCC unroll 8
                        for (int r = 0; r < PANELS; r++) acc[r][u] = dot8(acc[r][u], a[r], factor + 4 * (t + u));
                }
                for (int r = 0; r < PANELS; r++)
                    for (int u = 0; u < TOKENS8; u++)
                        for (int o = 0; o < SIDE; o++) total += (u32)acc[r][u][o];
            }
        y[item] = (i32)total;
    }
}
#endif
