// rms_norm: scale[t] = sqrt(mean(x[t,:]^2) + eps);  normalized[t,:] = x[t,:] / scale[t];  y[t,:] = normalized[t,:] * gain
//
//   x      (.,C) f32, row stride ldx, padded with zeros to a multiple of 32
//   row    (T,)  i32 the rows of x to take, or null: rows 0..T-1
//   gain   (C,)  f32, padded with zeros
//   scale  (T,)  f32;  normalized, y  (T,C) f32, row stride ldx
//
// Order: tiles of 1024 columns, each summed as lanes.cuh says, added in order; one division by C.
// One item a row.
#include "lanes.cuh"

KERNEL(rms_norm, float* y, float* normalized, float* scale, const float* x, const float* gain, const i32* row,
       const i32* T, int C, int ldx, float eps) {
    FOR_ITEMS(t, *T) {
        const float* xt = x + (i64)(row ? row[t] : t) * ldx;
        float total = 0.0f;
        for (int tile = 0; tile < C; tile += 1024) {
            lanes squares = zero();
            for (int c = tile; c < C && c < tile + 1024; c += 32) {
                lanes v = load(xt + c);
                squares = fma(v, v, squares);
            }
            total = total + sum(squares);
        }
        float s = square_root(total / (float)C + eps);
        if (LEADER) scale[t] = s;
        for (int c = 0; c < C; c += 32) {
            lanes v = div(load(xt + c), splat(s));
            store(normalized + t * ldx + c, v);
            store(y + t * ldx + c, mul(v, load(gain + c)));
        }
    }
}
