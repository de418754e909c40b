// angles: cosine[t,i] = f * cos(a), sine[t,i] = f * sin(a), a = float32(position[t]) * frequency[table[t],i], f = factor[table[t]]
// rope:   for each head, with i < D/2 and j = i + D/2:
//           r[i] = fma(-x[j], sine[i], x[i] * cosine[i]);  r[j] = fma(x[i], sine[i], x[j] * cosine[i])
//
//   position   (T,)     i32
//   table      (T,)     i32 which row of frequency and factor: some scalings depend on the run's limit
//   frequency  (.,D/2)  f32 inverse frequencies, all scalings applied;  factor (.,) f32 attention factors
//   cosine, sine (T,D/2) f32, row stride lda
//   x  (T, heads*D) f32, row stride ldx;  r  (T, heads*D) f32, row stride ldr
//
// Nothing is summed. Angles: one item a row. Rope: one item a head of a row.
#include "lanes.cuh"
#include "math.cuh"

KERNEL(angles, float* cosine, float* sine, const i32* position, const i32* table, const float* frequency,
       const float* factor, const i32* T, int half, int lda) {
    FOR_ITEMS(t, *T) {
        float p = (float)position[t], f = factor[table[t]];
        const float* rate = frequency + (i64)table[t] * half;
        FOR_LANES(i, half) {
            float s, c;
            sine_cosine(p * rate[i], &s, &c);
            cosine[t * lda + i] = f * c;
            sine[t * lda + i] = f * s;
        }
    }
}

KERNEL(rope, float* r, const float* x, const float* cosine, const float* sine, const i32* T, int heads, int half, int lda,
       int ldr, int ldx) {
    FOR_ITEMS(item, (i64)*T * heads) {
        i64 t = item / heads;
        int h = (int)(item % heads);
        const float* xh = x + t * ldx + h * 2 * half;
        float* rh = r + t * ldr + h * 2 * half;
        FOR_LANES(i, half) {
            float a = xh[i], b = xh[i + half], c = cosine[t * lda + i], s = sine[t * lda + i];
            rh[i] = fma(-b, s, a * c);
            rh[i + half] = fma(a, s, b * c);
        }
    }
}
