// lanes_host.cuh: the lanes of lanes.cuh are the registers of a core: two of 512 bits (AVX-512), four of 256
// (AVX2), or an array that the compiler spreads over what there is.

#define HD static inline __attribute__((always_inline))
#define ONCE static __attribute__((noinline))
#define INLINE __attribute__((always_inline))  // of a lambda: gcc calls one that stands in two places, its sums in memory
#define LEADER true
struct Share { i32 index, count, thread; };  // this one of so many, and who works on it
#define FOR_ITEMS(i, total)                                                         \
    for (i64 i##_all = (total), i = i##_all * share.index / share.count,            \
             i##_end = i##_all * (share.index + 1) / share.count; i < i##_end; i++)
#define FOR_LANES(i, n) for (int i = 0, i##_n = (n); i < i##_n; i++)
#define SCRATCH(T, name, n) alignas(64) T name[n]
#define SYNC_LANES()
#define PREFETCH(p) __builtin_prefetch(p)
#define PREFETCH_LATER(p) __builtin_prefetch(p, 0, 2)  // not yet into the nearest cache

// A launch list holds a function and its arguments as 64-bit words; call() unpacks them.
template <class T> HD T from_word(u64 word) { T value; memcpy(&value, &word, sizeof value); return value; }
template <int... I> struct Indices {};
template <int N, int... I> struct Below : Below<N - 1, N - 1, I...> {};  // 0, 1, ... N - 1
template <int... I> struct Below<0, I...> { typedef Indices<I...> all; };
template <class... A, int... I> HD void call(void (*kernel)(Share, A...), Share share, const u64* words, Indices<I...>) {
    kernel(share, from_word<A>(words[I])...);
}
template <class... A> HD void call(void (*kernel)(Share, A...), Share share, const u64* words) {
    call(kernel, share, words, typename Below<sizeof...(A)>::all());
}
#define KERNEL(name, ...)                                                                      \
    static void name(Share share, __VA_ARGS__);                                                \
    extern "C" void launch_##name(Share share, const u64* words) { call(name, share, words); } \
    static void name([[maybe_unused]] Share share, __VA_ARGS__)

HD u32 bits(float x) { u32 u; memcpy(&u, &x, 4); return u; }
HD float from_bits(u32 u) { float x; memcpy(&x, &u, 4); return x; }
HD u64 bits(double x) { u64 u; memcpy(&u, &x, 8); return u; }
HD double from_bits(u64 u) { double x; memcpy(&x, &u, 8); return x; }
HD float square_root(float x) { return __builtin_sqrtf(x); }  // -fno-math-errno: the instruction
HD u64 mul_high(u64 a, u64 b) { return (u64)(((unsigned __int128)a * b) >> 64); }
HD u64 all_sum(u64 x) { return x; }
HD u64 all_max(u64 x) { return x; }
HD u32 all_max(u32 x) { return x; }
HD float widen(f16 x) {  // exact: a subnormal half is m * 2^-24
    u32 sign = (u32)(x.bits & 0x8000) << 16, e = (x.bits >> 10) & 31, m = x.bits & 1023;
    float small = (float)m * 0x1p-24f;
    u32 big = ((e == 31 ? 255 : e + 112) << 23) | m << 13;
    return from_bits(sign | (e ? big : bits(small)));
}

#if defined(__FMA__) || defined(__aarch64__)
HD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
// Exact without the instruction: the product is exact in double; the sum is rounded to odd, so that
// the second rounding, to float, is the only one that counts (Boldo & Melquiond 2008).
HD float fma(float a, float b, float c) {
    double p = (double)a * b, d = c, s = p + d;
    double t = s - p, error = (p - (s - t)) + (d - t);
    u64 u = bits(s);
    bool odd = error == 0 || (u & 1) || (u & 0x7ff0000000000000ull) == 0x7ff0000000000000ull || error != error;
    u64 away = u + 1, toward = u - 1;
    return (float)from_bits(odd ? u : ((error > 0) == (s > 0) ? away : toward));
}
#endif

#define PARTS_OF(L) ((int)(sizeof(L) / sizeof(L::v[0])))
#if defined(__AVX512F__)
#include <immintrin.h>
struct lanes { __m512 v[2]; };
HD lanes in_registers(lanes a) { asm("" : "+v"(a.v[0]), "+v"(a.v[1])); return a; }
#define IN_REGISTERS(a) in_registers(a)  // gcc would load it again at each use
HD lanes splat(float x) { return {{_mm512_set1_ps(x), _mm512_set1_ps(x)}}; }
HD lanes load(const float* p) { return {{_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)}}; }
HD __m512 widen16(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
HD __m512 widen16(const i8* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }
HD __m512 widen16(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
template <class W> HD lanes load(const W* p) { return {{widen16(p), widen16(p + 16)}}; }
HD void store(float* p, const lanes& a) { _mm512_storeu_ps(p, a.v[0]); _mm512_storeu_ps(p + 16, a.v[1]); }
HD lanes fma(const lanes& a, const lanes& b, const lanes& c) {
    return {{_mm512_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm512_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
#define HAS_WORDS
template <int OP> HD u32 compare(const lanes& a, float x) {
    __m512 y = _mm512_set1_ps(x);
    return (u32)_mm512_cmp_ps_mask(a.v[0], y, OP) | (u32)_mm512_cmp_ps_mask(a.v[1], y, OP) << 16;
}
struct tally { int n; };
template <int OP> HD tally tallied(tally n, const lanes& a, float x) { return {n.n + __builtin_popcount(compare<OP>(a, x))}; }
HD int counted(tally n) { return n.n; }
HD lanes flip(lanes a, u32 signs, int) {
    __m512i minus = _mm512_set1_epi32((int)0x80000000u), u = _mm512_castps_si512(a.v[0]), w = _mm512_castps_si512(a.v[1]);
    return {{_mm512_castsi512_ps(_mm512_mask_xor_epi32(u, (__mmask16)signs, u, minus)),
             _mm512_castsi512_ps(_mm512_mask_xor_epi32(w, (__mmask16)(signs >> 16), w, minus))}};
}
HD float sum(const lanes& a) {
    __m512 t = _mm512_add_ps(a.v[0], a.v[1]);
    __m256 u = _mm256_add_ps(_mm512_castps512_ps256(t), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(t), 1)));
    __m128 w = _mm_add_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps(u, 1));
    w = _mm_add_ps(w, _mm_movehl_ps(w, w));
    w = _mm_add_ss(w, _mm_movehdup_ps(w));
    return _mm_cvtss_f32(w) + 0.0f;
}
// Four trees at once, each the tree of sum(): neighbours share the registers that a tree leaves empty.
#define HAS_SUM4
HD void sum4(float* to, const lanes& a, const lanes& b, const lanes& c, const lanes& d) {
    __m512 s = _mm512_add_ps(a.v[0], a.v[1]), t = _mm512_add_ps(b.v[0], b.v[1]);
    __m512 u = _mm512_add_ps(c.v[0], c.v[1]), v = _mm512_add_ps(d.v[0], d.v[1]);
    __m512 st = _mm512_add_ps(_mm512_shuffle_f32x4(s, t, 0x44), _mm512_shuffle_f32x4(s, t, 0xee));
    __m512 uv = _mm512_add_ps(_mm512_shuffle_f32x4(u, v, 0x44), _mm512_shuffle_f32x4(u, v, 0xee));
    __m512 w = _mm512_add_ps(_mm512_shuffle_f32x4(st, uv, 0x88), _mm512_shuffle_f32x4(st, uv, 0xdd));
    w = _mm512_add_ps(w, _mm512_permute_ps(w, 0x0e));
    w = _mm512_add_ps(w, _mm512_permute_ps(w, 0x01));
    __m128 sums = _mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0), w));
    _mm_storeu_ps(to, _mm_add_ps(sums, _mm_setzero_ps()));
}
#elif defined(__FMA__)
#include <immintrin.h>
struct lanes { __m256 v[4]; };
struct slice { __m256 v[1]; };  // of 8 lanes: more sums than registers are made a slice at a time
#define SLICES 4
typedef u32 word8 __attribute__((vector_size(32)));
HD lanes splat(float x) { __m256 s = _mm256_set1_ps(x); return {{s, s, s, s}}; }
HD __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
HD __m256 load8(const bf16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
HD __m256 load8(const f16* p) {
#ifdef __F16C__
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    alignas(32) float t[8];
    for (int i = 0; i < 8; i++) t[i] = widen(p[i]);
    return _mm256_load_ps(t);
#endif
}
HD __m256 load8(const i8* p) {
    int low, high;
    memcpy(&low, p, 4), memcpy(&high, p + 4, 4);
    __m128i a = _mm_cvtepi8_epi32(_mm_cvtsi32_si128(low)), b = _mm_cvtepi8_epi32(_mm_cvtsi32_si128(high));
    return _mm256_cvtepi32_ps(_mm256_insertf128_si256(_mm256_castsi128_si256(a), b, 1));
}
template <class W> HD lanes load(const W* p) { return {{load8(p), load8(p + 8), load8(p + 16), load8(p + 24)}}; }
HD void store(float* p, const lanes& a) { for (int i = 0; i < 4; i++) _mm256_storeu_ps(p + 8 * i, a.v[i]); }
HD lanes fma(const lanes& a, const lanes& b, const lanes& c) {
    return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1]),
             _mm256_fmadd_ps(a.v[2], b.v[2], c.v[2]), _mm256_fmadd_ps(a.v[3], b.v[3], c.v[3])}};
}
HD slice fma(slice a, slice b, slice c) { return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0])}}; }
#define HAS_WORDS
template <int OP> HD u32 compare(slice a, float x) { return (u32)_mm256_movemask_ps(_mm256_cmp_ps(a.v[0], _mm256_set1_ps(x), OP)); }
struct tally { word8 v; };
template <int OP> HD tally tallied(tally n, slice a, float x) {
    return {n.v - (word8)_mm256_cmp_ps(a.v[0], _mm256_set1_ps(x), OP)};  // what holds is -1
}
HD int counted(tally n) { return (int)((n.v[0] + n.v[1] + n.v[2] + n.v[3]) + (n.v[4] + n.v[5] + n.v[6] + n.v[7])); }
HD slice flip(slice a, u32 signs, int i) {
    word8 shift = word8{31, 30, 29, 28, 27, 26, 25, 24} - 8 * (u32)i;
    a.v[0] = (__m256)((word8)a.v[0] ^ ((word8{} + signs) << shift & 0x80000000u));
    return a;
}
HD float sum(const lanes& a) {
    __m256 u = _mm256_add_ps(_mm256_add_ps(a.v[0], a.v[2]), _mm256_add_ps(a.v[1], a.v[3]));
    __m128 w = _mm_add_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps(u, 1));
    w = _mm_add_ps(w, _mm_movehl_ps(w, w));
    w = _mm_add_ss(w, _mm_movehdup_ps(w));
    return _mm_cvtss_f32(w) + 0.0f;
}
// Of four registers each, at once: 0+4, 1+5, ...; then 0+2, 1+3; then 0+1, as both trees do.
template <class F> HD __m128 last_three(const __m256 x[4], F f) {
    __m128 t[4];
    for (int i = 0; i < 4; i++) t[i] = f(_mm256_castps256_ps128(x[i]), _mm256_extractf128_ps(x[i], 1));
    __m128 u = f(_mm_movelh_ps(t[0], t[1]), _mm_movehl_ps(t[1], t[0])), v = f(_mm_movelh_ps(t[2], t[3]), _mm_movehl_ps(t[3], t[2]));
    return f(_mm_shuffle_ps(u, v, 0x88), _mm_shuffle_ps(u, v, 0xdd));
}
HD __m256 first_two(const lanes& a) { return _mm256_add_ps(_mm256_add_ps(a.v[0], a.v[2]), _mm256_add_ps(a.v[1], a.v[3])); }
#define HAS_SUM4
HD void sum4(float* to, const lanes& a, const lanes& b, const lanes& c, const lanes& d) {
    __m256 x[4] = {first_two(a), first_two(b), first_two(c), first_two(d)};
    _mm_storeu_ps(to, last_three(x, [](__m128 s, __m128 t) { return s + t; }) + _mm_setzero_ps());
}
#define HAS_QUARTERS  // a register is a quarter
HD void quarters(float to[4], const lanes& a) { _mm_storeu_ps(to, last_three(a.v, [](__m128 s, __m128 t) { return s + t; })); }
HD void quarter_maxima(float to[4], const lanes& a) {
    _mm_storeu_ps(to, last_three(a.v, [](__m128 s, __m128 t) { return _mm_max_ps(s, t); }));
}
#else
struct lanes { float v[32]; };
HD float widen(float x) { return x; }
HD float widen(i8 x) { return (float)x; }
HD float widen(bf16 x) { return from_bits((u32)x.bits << 16); }
HD lanes splat(float x) { lanes a; for (int i = 0; i < 32; i++) a.v[i] = x; return a; }
template <class W> HD lanes load(const W* p) { lanes a; for (int i = 0; i < 32; i++) a.v[i] = widen(p[i]); return a; }
HD void store(float* p, const lanes& a) { memcpy(p, a.v, sizeof a.v); }
HD lanes fma(const lanes& a, const lanes& b, const lanes& c) {
    lanes d;
    for (int i = 0; i < 32; i++) d.v[i] = fma(a.v[i], b.v[i], c.v[i]);
    return d;
}
HD float sum(const lanes& a) {
    float t[32];
    memcpy(t, a.v, sizeof t);
    for (int h = 16; h > 0; h >>= 1)
        for (int i = 0; i < h; i++) t[i] += t[i + h];
    return t[0] + 0.0f;
}
#endif

#ifndef IN_REGISTERS
#define IN_REGISTERS(a) (a)
#endif
#ifndef HAS_SUM4
HD void sum4(float* to, const lanes& a, const lanes& b, const lanes& c, const lanes& d) {
    to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
}
#endif
constexpr int PARTS = PARTS_OF(lanes);
HD lanes zero() { return splat(0.0f); }
HD lanes add(lanes a, const lanes& b) { for (int i = 0; i < PARTS; i++) a.v[i] = a.v[i] + b.v[i]; return a; }
template <class L> HD L mul(L a, const L& b) { for (int i = 0; i < PARTS_OF(L); i++) a.v[i] = a.v[i] * b.v[i]; return a; }
HD lanes div(lanes a, const lanes& b) { for (int i = 0; i < PARTS; i++) a.v[i] = a.v[i] / b.v[i]; return a; }
#ifdef HAS_WORDS
typedef i32 whole __attribute__((vector_size(sizeof(lanes) / PARTS)));
typedef float real __attribute__((vector_size(sizeof(lanes) / PARTS)));
template <class L> HD L magnitude(L a) {
    for (int i = 0; i < PARTS_OF(L); i++) a.v[i] = (real)((whole)a.v[i] & 0x7fffffff);
    return a;
}
template <class L> HD L fraction(L a, L& exponent) {
    for (int i = 0; i < PARTS_OF(L); i++) {
        whole e = ((whole)a.v[i] - 0x3f400000) >> 23;
        exponent.v[i] = __builtin_convertvector(e, real);
        a.v[i] = (real)((whole)a.v[i] - (e << 23));
    }
    return a;
}
template <class L> HD tally tally_below(tally n, const L& a, float x) { return tallied<_CMP_LT_OQ>(n, a, x); }
template <class L> HD tally tally_above(tally n, const L& a, float x) { return tallied<_CMP_GT_OQ>(n, a, x); }
template <class L> HD u32 reaching(const L& a, float x) { return compare<_CMP_GE_OQ>(a, x); }
#else
HD lanes magnitude(lanes a) { for (int i = 0; i < 32; i++) a.v[i] = from_bits(bits(a.v[i]) & 0x7fffffffu); return a; }
HD lanes flip(lanes a, u32 signs, int) { for (int i = 0; i < 32; i++) a.v[i] = from_bits(bits(a.v[i]) ^ (signs >> i << 31)); return a; }
HD lanes fraction(lanes a, lanes& exponent) {
    for (int i = 0; i < 32; i++) {
        i32 e = (i32)(bits(a.v[i]) - 0x3f400000u) >> 23;
        exponent.v[i] = (float)e;
        a.v[i] = from_bits(bits(a.v[i]) - ((u32)e << 23));
    }
    return a;
}
struct tally { int n; };
HD tally tally_below(tally n, const lanes& a, float x) { for (int i = 0; i < 32; i++) n.n += a.v[i] < x; return n; }
HD tally tally_above(tally n, const lanes& a, float x) { for (int i = 0; i < 32; i++) n.n += a.v[i] > x; return n; }
HD int counted(tally n) { return n.n; }
HD u32 reaching(const lanes& a, float x) { u32 m = 0; for (int i = 0; i < 32; i++) m |= (u32)(a.v[i] >= x) << i; return m; }
#endif
template <class L> HD L larger(L a, const L& b) {
    for (int i = 0; i < PARTS_OF(L); i++) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
HD lanes load(const float* p, int n) {
    if (n >= 32) return load(p);
    float t[32] = {};
    for (int i = 0; i < n; i++) t[i] = p[i];
    return load((const float*)t);
}
HD lanes ramp() {  // 0, 1, ... 31
    float t[32];
    for (int i = 0; i < 32; i++) t[i] = (float)i;
    return load((const float*)t);
}
HD int lowest_bit(u32 x) { return __builtin_ctz(x); }
#ifndef HAS_QUARTERS
HD void quarters(float to[4], const lanes& a) {
    float t[32];
    store(t, a);
    for (int h = 4; h > 0; h >>= 1)
        for (int q = 0; q < 32; q += 8)
            for (int i = 0; i < h; i++) t[q + i] += t[q + i + h];
    for (int q = 0; q < 4; q++) to[q] = t[8 * q];
}
HD void quarter_maxima(float to[4], const lanes& a) {
    float t[32];
    store(t, a);
    for (int q = 0; q < 4; q++) {
        to[q] = t[8 * q];
        for (int i = 1; i < 8; i++) to[q] = t[8 * q + i] > to[q] ? t[8 * q + i] : to[q];
    }
}
#endif
HD void store(float* p, const lanes& a, int n) {
    if (n >= 32) return store(p, a);
    float t[32];
    store(t, a);
    for (int i = 0; i < n; i++) p[i] = t[i];
}

#ifdef SLICES
HD slice splat_slice(float x) { return {{_mm256_set1_ps(x)}}; }
template <class W> HD slice load_slice(const W* p) { return {{load8(p)}}; }
HD void store(float* p, slice a) { _mm256_storeu_ps(p, a.v[0]); }
HD slice add(slice a, slice b) { return {{a.v[0] + b.v[0]}}; }
HD slice load_slice(const float* p, int n) {
    if (n >= 8) return {{load8(p)}};
    float t[8] = {};
    for (int i = 0; i < n; i++) t[i] = p[i];
    return {{load8((const float*)t)}};
}
HD slice get(const lanes& a, int i) { return {{a.v[i]}}; }
HD void set(lanes& a, int i, slice x) { a.v[i] = x.v[0]; }
#else
#define SLICES 1
typedef lanes slice;
HD slice splat_slice(float x) { return splat(x); }
template <class W> HD slice load_slice(const W* p) { return load(p); }
HD slice load_slice(const float* p, int n) { return load(p, n); }
HD slice get(const lanes& a, int) { return a; }
HD void set(lanes& a, int, const slice& x) { a = x; }
#endif
HD slice clamp(slice a, float bound) {
    slice high = splat_slice(bound), low = splat_slice(-bound);
    for (int i = 0; i < PARTS_OF(slice); i++) {
        a.v[i] = a.v[i] > high.v[i] ? high.v[i] : a.v[i];
        a.v[i] = a.v[i] < low.v[i] ? low.v[i] : a.v[i];
    }
    return a;
}
