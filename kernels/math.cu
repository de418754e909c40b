// math.cu: math.cuh and philox.cuh over arrays, for the tests that compare targets.
//
//   x, y, s, c    (n,) f32     y may alias x
//   counter, out  (n,4) u32    out may alias counter
//   key           (n,) u64
#include "math.cuh"
#include "philox.cuh"

#define CHUNK 1024  // elements of an item
#define FOR_ELEMENTS(k, n)                                                                    \
    FOR_ITEMS(chunk, ((i64)(n) + CHUNK - 1) / CHUNK)                                          \
        FOR_LANES(offset, (n) - chunk * CHUNK < CHUNK ? (int)((n) - chunk * CHUNK) : CHUNK)   \
            if (i64 k = chunk * CHUNK + offset; true)

KERNEL(math_exp, float* y, const float* x, int n) { FOR_ELEMENTS(k, n) y[k] = exponential(x[k]); }

KERNEL(math_log, float* y, const float* x, int n) { FOR_ELEMENTS(k, n) y[k] = logarithm(x[k]); }

KERNEL(math_sin_cos, float* s, float* c, const float* x, int n) {
    FOR_ELEMENTS(k, n) sine_cosine(x[k], &s[k], &c[k]);
}

KERNEL(math_tanh, float* y, const float* x, int n) {
    FOR_ELEMENTS(k, n) y[k] = hyperbolic_tangent(x[k]);
}

KERNEL(math_erf, float* y, const float* x, int n) {
    FOR_ELEMENTS(k, n) y[k] = error_function(x[k]);
}

KERNEL(math_philox, u32* out, const u32* counter, const u64* key, int n) {
    FOR_ELEMENTS(k, n) {
        const u32* w = counter + 4 * k;
        u32x4 r = philox({{w[0], w[1], w[2], w[3]}}, key[k]);
        for (int j = 0; j < 4; j++) out[4 * k + j] = r.word[j];
    }
}
