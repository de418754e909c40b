// lanes_cuda.cuh: the lanes of lanes.cuh are the 32 threads of a warp.

#define HD static __device__ __forceinline__
#define ONCE HD
#define INLINE
#define WARPS 4  // warps of one thread block
#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(32 * WARPS) name(__VA_ARGS__)
#define LANE ((int)(threadIdx.x & 31))
#define LEADER (LANE == 0)
#define FOR_ITEMS(i, total)                                                             \
    for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) >> 5, i##_end = (total); \
         i < i##_end; i += ((i64)gridDim.x * blockDim.x) >> 5)
#define FOR_LANES(i, n) for (int i = LANE; i < (n); i += 32)
#define SCRATCH(T, name, n)                                 \
    __shared__ __align__(16) unsigned char name##_shared[WARPS * (n) * sizeof(T)]; \
    T* name = (T*)name##_shared + (threadIdx.x >> 5) * (n)
#define SYNC_LANES() __syncwarp()
#define PREFETCH(p)
#define PREFETCH_LATER(p)
#define IN_REGISTERS(a) (a)

HD u32 bits(float x) { return __float_as_uint(x); }
HD float from_bits(u32 u) { return __uint_as_float(u); }
HD u64 bits(double x) { return (u64)__double_as_longlong(x); }
HD double from_bits(u64 u) { return __longlong_as_double((long long)u); }
HD float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
HD float square_root(float x) { return __fsqrt_rn(x); }
HD u64 mul_high(u64 a, u64 b) { return __umul64hi(a, b); }
HD float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
#ifndef MMA_S8  // whoever emulates a GPU has its own
// c (16,8) += a (16,32) by b (32,8), integers of 8 bits, spread over a warp: see tensor_cuda.cuh.
HD void mma_s8(i32 (&c)[4], i32 a0, i32 a1, i32 a2, i32 a3, i32 b0, i32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

struct Share {};  // so that a body shared by several kernels can pass its share on
__device__ const Share share{};
struct lanes { float v; };  // a struct, so that a lane's value is never taken for a scalar
HD lanes zero() { return {0.0f}; }
HD lanes splat(float x) { return {x}; }
HD lanes load(const float* p) { return {p[LANE]}; }
HD lanes load(const bf16* p) { return {from_bits((u32)p[LANE].bits << 16)}; }
HD lanes load(const i8* p) { return {(float)p[LANE]}; }
HD lanes load(const f16* p) { return {widen(p[LANE])}; }
HD void store(float* p, lanes a) { p[LANE] = a.v; }
HD void store(float* p, lanes a, int n) { if (LANE < n) p[LANE] = a.v; }
HD lanes fma(lanes a, lanes b, lanes c) { return {__fmaf_rn(a.v, b.v, c.v)}; }
HD lanes add(lanes a, lanes b) { return {__fadd_rn(a.v, b.v)}; }
HD lanes mul(lanes a, lanes b) { return {__fmul_rn(a.v, b.v)}; }
HD lanes div(lanes a, lanes b) { return {__fdiv_rn(a.v, b.v)}; }
HD lanes magnitude(lanes a) { return {from_bits(bits(a.v) & 0x7fffffffu)}; }
HD lanes flip(lanes a, u32 signs, int) { return {from_bits(bits(a.v) ^ (signs >> LANE << 31))}; }
HD lanes fraction(lanes a, lanes& exponent) {
    int e = (i32)(bits(a.v) - 0x3f400000u) >> 23;
    exponent = {(float)e};
    return {from_bits(bits(a.v) - ((u32)e << 23))};
}
struct tally { int n; };  // of one lane
HD tally tally_below(tally n, lanes a, float x) { return {n.n + (a.v < x)}; }
HD tally tally_above(tally n, lanes a, float x) { return {n.n + (a.v > x)}; }
HD u32 reaching(lanes a, float x) { return __ballot_sync(~0u, a.v >= x); }
HD lanes larger(lanes a, lanes b) { return {a.v > b.v ? a.v : b.v}; }
HD lanes clamp(lanes a, float bound) { return {a.v > bound ? bound : a.v < -bound ? -bound : a.v}; }
HD lanes load(const float* p, int n) { return {LANE < n ? p[LANE] : 0.0f}; }
HD lanes ramp() { return {(float)LANE}; }
HD int lowest_bit(u32 x) { return __ffs(x) - 1; }
HD void quarters(float to[4], lanes a) {
    float t = a.v;
    for (int h = 4; h > 0; h >>= 1) t = __fadd_rn(t, __shfl_xor_sync(~0u, t, h));
    for (int i = 0; i < 4; i++) to[i] = __shfl_sync(~0u, t, 8 * i);
}
HD void quarter_maxima(float to[4], lanes a) {
    float t = a.v;
    for (int h = 4; h > 0; h >>= 1) { float u = __shfl_xor_sync(~0u, t, h); t = u > t ? u : t; }
    for (int i = 0; i < 4; i++) to[i] = __shfl_sync(~0u, t, 8 * i);
}
HD float sum(lanes a) {
    float t = a.v;
    for (int h = 16; h > 0; h >>= 1) t = __fadd_rn(t, __shfl_xor_sync(~0u, t, h));
    return __fadd_rn(t, 0.0f);
}
HD void sum4(float* to, lanes a, lanes b, lanes c, lanes d) { to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d); }
HD u64 all_sum(u64 x) {
    for (int h = 16; h > 0; h >>= 1) x += __shfl_xor_sync(~0u, x, h);
    return x;
}
HD u64 all_max(u64 x) {
    for (int h = 16; h > 0; h >>= 1) { u64 y = __shfl_xor_sync(~0u, x, h); x = y > x ? y : x; }
    return x;
}
HD int counted(tally n) { return (int)all_sum((u64)n.n); }
HD u32 all_max(u32 x) {
    for (int h = 16; h > 0; h >>= 1) { u32 y = __shfl_xor_sync(~0u, x, h); x = y > x ? y : x; }
    return x;
}
#define SLICES 1
typedef lanes slice;
HD slice splat_slice(float x) { return splat(x); }
HD slice load_slice(const float* p, int n) { return load(p, n); }
HD slice get(lanes a, int) { return a; }
HD void set(lanes& a, int, slice x) { a = x; }
