// tensor_cuda.cuh: what linear8 and linear4 share on the tensor cores of a GPU: mma.sync of 16 rows by 8 tokens by 32 inputs,
// 8 bits each, the sums exact in 32.
//
// Thread LANE holds of the rows LANE/4 and LANE/4 + 8, of the token LANE/4, and of the result those rows by the tokens
// 2 (LANE%4) and one more (PTX ISA, "Matrix fragments for mma.m16n8k32"). Which inputs a thread holds is free as long as
// rows and tokens agree, since the sums of a group are exact: so that it loads 16 bytes at a time.
// A tile is M times 16 rows by S times 8 tokens; rows and tokens behind the last are computed as the last, and not written.
#pragma once
#include "lanes.cuh"

#define ROW_OF_THREAD (LANE / 4)
#define PART_OF_THREAD (LANE % 4)

// Large tiles where there are enough of them to keep a GPU busy.
#define ENOUGH_TILES 1024

template <int M, int S> struct Tile {
    int row[M][2];    // of the weights; what a thread loads, and what it has results of
    int token[S];     // that it loads
    int found[S][2];  // that it has results of
};
template <int M, int S> HD Tile<M, S> tile_at(int n, int t, int N, int T) {
    Tile<M, S> tile;
#pragma unroll
    for (int m = 0; m < 2 * M; m++) {
        int at = n + 8 * m + ROW_OF_THREAD;
        tile.row[m / 2][m % 2] = at < N ? at : N - 1;
    }
#pragma unroll
    for (int s = 0; s < S; s++) {
        int at = t + 8 * s + ROW_OF_THREAD;
        tile.token[s] = at < T ? at : T - 1;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            at = t + 8 * s + 2 * PART_OF_THREAD + i;
            tile.found[s][i] = at < T ? at : T - 1;
        }
    }
    return tile;
}

// Writes what a thread has, unless it is behind the last.
template <int M, int S>
HD void write_tile(float* y, i64 ldy, const float (&total)[M][S][4], const float* bias, int n, int t, int N, int T) {
#pragma unroll
    for (int i = 0; i < M * S * 4; i++) {
        int m = i / 4 / S, s = i / 4 % S;
        i64 row = n + 16 * m + i / 2 % 2 * 8 + ROW_OF_THREAD, token = t + 8 * s + 2 * PART_OF_THREAD + i % 2;
        float end = __fadd_rn(total[m][s][i % 4], 0.0f);
        if (row < N && token < T) y[token * ldy + row] = bias ? __fadd_rn(end, bias[row]) : end;
    }
}

// Runs `each` on all tiles of M times 16 rows by S times 8 tokens.
#define FOR_TILES(n, t, M, S, N, T)                                                                       \
    FOR_ITEMS(item, ((i64)(N) + 16 * (M) - 1) / (16 * (M)) * (((T) + 8 * (S) - 1) / (8 * (S))))            \
        for (int panels = ((N) + 16 * (M) - 1) / (16 * (M)), n = (int)(item % panels) * 16 * (M),          \
                 t = (int)(item / panels) * 8 * (S), once = 1; once; once = 0)
HD bool are_enough(int N, int T, int M, int S) {
    return (i64)((N + 16 * M - 1) / (16 * M)) * ((T + 8 * S - 1) / (8 * S)) >= ENOUGH_TILES;
}
