// embed: x[t,:] = table[token[t],:], widened exactly
//
//   x      (T,C) f32, row stride ldx; the columns from C to ldx stay zero
//   table  (V,C) bf16, f16 or f32, row stride ldw
//   token  (T,)  i32, each in [0,V)
//
// Nothing is summed. One item a row.
#include "lanes.cuh"

template <class W>
HD void embed(Share share, float* x, const W* table, const i32* token, const i32* T, int C, int ldx, int ldw) {
    FOR_ITEMS(t, *T) {
        const W* row = table + (i64)token[t] * ldw;
        for (int c = 0; c < C; c += 32) store(x + t * ldx + c, load(row + c));
    }
}

#define EMBED(W) \
    KERNEL(embed_##W, float* x, const W* table, const i32* token, const i32* T, int C, int ldx, int ldw) { \
        embed(share, x, table, token, T, C, ldx, ldw);                                                   \
    }

EMBED(bf16)
EMBED(f16)
EMBED(f32)
