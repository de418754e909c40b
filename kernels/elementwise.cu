// silu_mul: y[t,c] = (a / (1 + exp(-a))) * b, a = gate[t,c], b = up[t,c]
// add:      y[t,c] = a[t,c] + b[t,c]
// copy:     y[t,c] = x[t,c], to keep what a later block overwrites; row strides ldy, ldx
//
//   all (T,C) f32; row strides ldg of gate and up, ldy of y, a and b
//
// Nothing is summed. One item a row and 512 columns.
#include "lanes.cuh"
#include "math.cuh"

#define SPAN 512
#define FOR_SPANS(item, t, begin, end, T, C)                       \
    FOR_ITEMS(item, (i64)(T) * (((C) + SPAN - 1) / SPAN))          \
        for (i64 t = item / (((C) + SPAN - 1) / SPAN), begin = item % (((C) + SPAN - 1) / SPAN) * SPAN, \
                 end = begin + SPAN < (C) ? begin + SPAN : (C), once = 1; once; once = 0)

KERNEL(silu_mul, float* y, const float* gate, const float* up, const i32* T, int C, int ldy, int ldg) {
    FOR_SPANS(item, t, begin, end, *T, C) {
        const float *g = gate + t * ldg + begin, *u = up + t * ldg + begin;
        float* out = y + t * ldy + begin;
        FOR_LANES(c, (int)(end - begin)) {
            float a = g[c];
            out[c] = a / (1.0f + exponential(-a)) * u[c];
        }
    }
}

KERNEL(add, float* y, const float* a, const float* b, const i32* T, int C, int ld) {
    FOR_SPANS(item, t, begin, end, *T, C) {
        i64 at = t * ld + begin;
        FOR_LANES(c, (int)(end - begin)) y[at + c] = a[at + c] + b[at + c];
    }
}

KERNEL(copy, float* y, const float* x, const i32* T, int C, int ldy, int ldx) {
    FOR_SPANS(item, t, begin, end, *T, C) {
        FOR_LANES(c, (int)(end - begin)) y[t * ldy + begin + c] = x[t * ldx + begin + c];
    }
}
