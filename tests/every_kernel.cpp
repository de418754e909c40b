// Runs every kernel on random and adversarial values and prints one digest a kernel.
// Built for several hosts; all must print the same.
#include "host.cpp"
#include <stdio.h>

// As much of std::vector as is used here: not every build has the C++ library. Nothing is freed.
template <class T> struct List {
    T* first;
    size_t count;
    List(size_t n, T value = {}) : first((T*)calloc(n, sizeof(T))), count(n) { for (T& x : *this) x = value; }
    T* begin() const { return first; }
    T* end() const { return first + count; }
    T* data() const { return first; }
    size_t size() const { return count; }
    T& operator[](size_t i) const { return first[i]; }
};

static u64 state = 1;
static u32 next() { state = state * 6364136223846793005ull + 1442695040888963407ull; return (u32)(state >> 32); }

// Mostly around 1, with zeros of both signs, subnormals, tiny and large values between.
static float value() {
    u32 u = next();
    switch (u >> 28) {
        case 0: return from_bits(u & 0x80000000u);
        case 1: return from_bits(next() & 0x807fffffu);
        case 2: return from_bits((next() & 0x807fffffu) | 0x0d000000u);
        case 3: return from_bits((next() & 0x807fffffu) | 0x49000000u);
        default: return from_bits((next() & 0x81ffffffu) | 0x3e000000u);
    }
}
static List<float> values(size_t n) { List<float> v(n); for (auto& x : v) x = value(); return v; }
static List<float> padded(size_t rows, size_t width, size_t ld) {
    auto v = values(rows * ld);
    for (size_t r = 0; r < rows; r++) for (size_t c = width; c < ld; c++) v[r * ld + c] = 0;
    return v;
}
template <class T> static void report(const char* name, const List<T>& v) {
    u64 h = 1469598103934665603ull;
    const u8* p = (const u8*)v.data();
    for (size_t i = 0; i < v.size() * sizeof(T); i++) h = (h ^ p[i]) * 1099511628211ull;
    printf("%s %016llx\n", name, (unsigned long long)h);
}
static u64 argument(const void* p) { return (u64)(uintptr_t)p; }
static u64 argument(int i) { return (u32)i; }
static u64 argument(float f) { return bits(f); }
static void* pool;
template <class... A> static void launch(Kernel kernel, A... args) {
    u64 words[] = {argument(args)...};
    Launch list{kernel, words};
    pool_run(pool, &list, 1, 0);
}

static const i32 five = 5;

static void weights() {
    constexpr int N = 37, K = 1090, ld = 1120;
    auto x = padded(5, K, ld), bias = values(N);
    List<u16> w(N * ld);
    for (int r = 0; r < N; r++) for (int k = 0; k < K; k++) w[r * ld + k] = (u16)(bits(value()) >> 16);
    List<float> y(5 * N), wide = padded(N, K, ld);
    launch(launch_linear_bf16, y.data(), w.data(), x.data(), bias.data(), &five, N, K, N, ld, ld);
    report("linear_bf16", y);
    for (auto& h : w) h &= 0xbfff;  // finite halves
    launch(launch_linear_f16, y.data(), w.data(), x.data(), (const void*)nullptr, &five, N, K, N, ld, ld);
    report("linear_f16", y);
    i32 some[] = {1, 2, 5};
    for (i32& rows : some) {
        launch(launch_linear_f32, y.data(), wide.data(), x.data(), bias.data(), &rows, N, K, N, ld, ld);
        report("linear_f32", y);
    }
    i32 token[] = {3, 0, 36, 3, 9};
    List<float> rows(5 * ld);
    launch(launch_embed_f16, rows.data(), w.data(), (const i32*)token, &five, K, ld, ld);
    report("embed_f16", rows);
    launch(launch_embed_bf16, rows.data(), w.data(), (const i32*)token, &five, K, ld, ld);
    report("embed_bf16", rows);
    List<float> normalized(5 * ld), scale(5);
    auto gain = padded(1, K, ld);
    launch(launch_rms_norm, rows.data(), normalized.data(), scale.data(), x.data(), gain.data(), (const void*)nullptr, &five, K, ld, 1e-5f);
    report("rms_norm", rows);
    report("rms_norm scale", scale);
    List<u32> record(5 * 32);
    u64 seed[] = {1, 2, 3, ~0ull, 5};
    launch(launch_moments, record.data(), x.data(), (const u64*)seed, (const i32*)token, &five, K, 32, ld, 7);
    report("moments", record);
}

// A core's outer products have the bits of rows: a step of 29 tokens, bias and tails.
static void tiles() {
    constexpr int N = 37, K = 1090, ld = 1120, T = 29;
    auto x = padded(T, K, ld), bias = values(N), single = padded(N, K, ld);
    List<u16> w(N * ld);
    for (auto& half : w) half = (u16)(bits(value()) >> 16);
    List<float> y(T * N), z(T * N), at((T + 12) * ld), wide(2 * 32 * ld);
    i32 count[] = {T};
    launch(launch_lane_major, at.data(), x.data(), (const i32*)count, K, ld);
    launch(launch_linear_bf16, y.data(), w.data(), x.data(), bias.data(), (const i32*)count, N, K, N, ld, ld);
    launch(launch_tiled_linear_bf16, z.data(), w.data(), x.data(), at.data(), wide.data(), bias.data(), (const i32*)count, N, K, N, ld, ld);
    if (memcmp(y.data(), z.data(), 4 * y.size())) abort();
    launch(launch_linear_f32, y.data(), single.data(), x.data(), (const void*)nullptr, (const i32*)count, N, K, N, ld, ld);
    launch(launch_tiled_linear_f32, z.data(), single.data(), x.data(), at.data(), wide.data(), (const void*)nullptr, (const i32*)count, N, K, N, ld, ld);
    if (memcmp(y.data(), z.data(), 4 * y.size())) abort();
}

static void ceilings() {
    auto x = values(12 * 32);
    List<i8> w(64 * 4), q(12 * 4);
    for (auto& each : w) each = (i8)(bits(value()) & 127);
    for (auto& each : q) each = (i8)(bits(value()) % 255 - 127);
    List<float> y(5);
    List<i32> total(5);
    launch(launch_ceiling_float, y.data(), x.data(), &five, 3);
    report("ceiling_float", y);
    launch(launch_ceiling_integer, total.data(), w.data(), q.data(), &five, 3);
    report("ceiling_integer", total);
}

// Linear layers in integers: what rows and weights become, and what a core makes of them interleaved.
static void integers() {
    constexpr int N = 37, K = 1090, ld = 1120, G = 18;
    const int held = (N + panel_rows() - 1) / panel_rows() * panel_rows(), unit = panel_unit8();
    auto x = padded(5, K, ld), bias = values(N);
    List<u16> w(N * ld);
    for (int r = 0; r < N; r++) for (int k = 0; k < K; k++) w[r * ld + k] = (u16)(bits(value()) >> 16 & 0xbfff);
    List<i8> q(5 * 64 * G), w8(N * 64 * G);
    List<i16> wide(5 * 64 * G), sums(5 * 2 * G);
    List<float> xs(5 * G), found(N * 4 * G), units(N * 2), y(5 * N), z(5 * N);
    List<u16> scale(N * G);
    List<u8> w4(N * 32 * G), scale4(N * 2 * G), low(N * 2 * G);
    launch(launch_quantize, q.data(), xs.data(), sums.data(), x.data(), &five, K, ld);
    report("quantize", q);
    report("quantize scale", xs);
    report("quantize sums", sums);
    launch(launch_quantize8_bf16, w8.data(), scale.data(), w.data(), N, K, ld);
    report("quantize8_bf16", w8);
    launch(launch_linear8, y.data(), w8.data(), scale.data(), q.data(), xs.data(), sums.data(), bias.data(), &five, N, K, N);
    report("linear8", y);
    List<u8> held8(held * 64 * G), held4(held * 32 * G);
    List<u16> held_scale(held * G), held_low(held * G);
    List<float> held_unit(held * 2);
    launch(launch_interleave, held8.data(), w8.data(), N, 64 * G / unit, unit, 1);
    launch(launch_interleave, held_scale.data(), scale.data(), N, G, 2, 0);
    launch(launch_factors, wide.data(), xs.data(), sums.data(), x.data(), &five, K, ld);
    launch(launch_panel_linear8, z.data(), held8.data(), held_scale.data(), wide.data(), xs.data(), sums.data(), bias.data(), &five, N, K, N);
    if (memcmp(y.data(), z.data(), 4 * y.size())) abort();
#ifdef MATRIX
    if (matrix_ready()) {
        for (auto& each : z) each = 77;
        launch(launch_matrix_panel_linear8, z.data(), held8.data(), held_scale.data(), wide.data(), xs.data(), sums.data(), bias.data(), &five, N, K, N);
        if (memcmp(y.data(), z.data(), 4 * y.size())) abort();
    }
#endif
    launch(launch_fit4_bf16, found.data(), w.data(), N, K, ld);
    report("fit4_bf16", found);
    launch(launch_quantize4_bf16, w4.data(), scale4.data(), low.data(), units.data(), found.data(), w.data(), N, K, ld);
    report("quantize4_bf16", w4);
    report("quantize4_bf16 low", low);
    launch(launch_linear4, y.data(), w4.data(), scale4.data(), low.data(), units.data(), q.data(), xs.data(), sums.data(), (const void*)nullptr, &five, N, K, N);
    report("linear4", y);
    launch(launch_interleave, held4.data(), w4.data(), N, 8 * G, 4, 0);
    launch(launch_interleave, held_scale.data(), scale4.data(), N, G, 2, 0);
    launch(launch_interleave, held_low.data(), low.data(), N, G, 2, 0);
    launch(launch_interleave, held_unit.data(), units.data(), N, 2, 4, 0);
    launch(launch_panel_linear4, z.data(), held4.data(), held_scale.data(), held_low.data(), held_unit.data(), q.data(), xs.data(), sums.data(), (const void*)nullptr, &five, N, K, N);
    if (memcmp(y.data(), z.data(), 4 * y.size())) abort();
#ifdef MATRIX
    if (matrix_ready()) {
        for (auto& each : z) each = 77;
        launch(launch_matrix_panel_linear4, z.data(), held4.data(), held_scale.data(), held_low.data(), held_unit.data(), q.data(), xs.data(), sums.data(), (const void*)nullptr, &five, N, K, N);
        if (memcmp(y.data(), z.data(), 4 * y.size())) abort();
    }
#endif
    for (auto& h : w) h &= 0x3bff;  // halves up to 1
    launch(launch_quantize8_f16, w8.data(), scale.data(), w.data(), N, K, ld);
    report("quantize8_f16", w8);
    launch(launch_fit4_f16, found.data(), w.data(), N, K, ld);
    report("fit4_f16", found);
    launch(launch_quantize4_f16, w4.data(), scale4.data(), low.data(), units.data(), found.data(), w.data(), N, K, ld);
    report("quantize4_f16", w4);
    auto single = padded(N, K, ld);
    launch(launch_quantize8_f32, w8.data(), scale.data(), single.data(), N, K, ld);
    report("quantize8_f32", w8);
    launch(launch_fit4_f32, found.data(), single.data(), N, K, ld);
    report("fit4_f32", found);
    launch(launch_quantize4_f32, w4.data(), scale4.data(), low.data(), units.data(), found.data(), single.data(), N, K, ld);
    report("quantize4_f32", w4);
}

static void elements() {
    auto a = values(5 * 700), b = values(5 * 700);
    List<float> y(5 * 700);
    launch(launch_silu_mul, y.data(), a.data(), b.data(), &five, 700, 700, 700);
    report("silu_mul", y);
    launch(launch_add, y.data(), a.data(), b.data(), &five, 700, 700);
    report("add", y);
}

// A tile's keys by dimension, whatever order a cache has them in: 4 D rows of 32 here.
template <class T> static List<T> by_dimension(const List<T>& keys, int D) {
    List<T> made(keys.size());
    for (size_t i = 0; i < keys.size(); i++) {
        size_t tile = i / (128 * D), span = i / (32 * D) % 4, d = i / 32 % D;
        made[(tile * D + d) * 128 + span * 32 + i % 32] = keys[i];
    }
    return made;
}

static void heads() {
    constexpr int H = 4, G = 2, D = 40, P = 300, wide = 64;
    i32 rows = P;
    List<i32> position(P), tile0(P, 1), table(P, 0);
    for (int t = 0; t < P; t++) position[t] = t;
    List<float> cosine(P * D / 2), sine(P * D / 2), frequency(D / 2), factor(1, 1.5f), q(P * H * D), z(P * H * D);
    for (int i = 0; i < D / 2; i++) frequency[i] = 1.0f / (float)(1 + i * i);
    launch(launch_angles, cosine.data(), sine.data(), position.data(), table.data(), frequency.data(), factor.data(), &rows, D / 2, D / 2);
    report("angles", cosine);
    auto small = [](size_t n) { List<float> v(n); for (auto& x : v) x = from_bits((next() & 0x80ffffffu) | 0x3e000000u); return v; };
    auto x = small(P * H * D), k = small(P * G * D), v = values(P * G * D);
    launch(launch_rope, q.data(), x.data(), cosine.data(), sine.data(), &rows, H, D / 2, D / 2, H * D, H * D);
    report("rope", q);
    List<float> keys(4 * G * D * 128), vals(4 * G * 128 * wide);
    launch(launch_kv_append, keys.data(), vals.data(), k.data(), v.data(), position.data(), tile0.data(), &rows, G, D, wide, G * D, G * D);
    report("kv_append keys", by_dimension(keys, D));
    report("kv_append values", vals);
    launch(launch_attention_2, z.data(), q.data(), keys.data(), vals.data(), position.data(), tile0.data(), &rows, H, G, D, H * D, H * D, 0.25f);
    report("attention_2", z);
    List<float> again(P * H * D), records(P * H * 8);
    launch(launch_probed_attention_2, again.data(), records.data(), q.data(), keys.data(), vals.data(), position.data(), tile0.data(),
           &rows, H, G, D, H * D, 8 * H, H * D, 0.25f);
    if (memcmp(again.data(), z.data(), 4 * z.size())) abort();  // a probe moves no bit
    report("probed_attention_2", records);
}

static void heads8() {
    constexpr int H = 4, G = 2, D = 40, P = 300, wide = 64;
    i32 rows = P;
    List<i32> position(P), tile0(P, 1);
    for (int t = 0; t < P; t++) position[t] = t;
    auto small = [](size_t n) { List<float> v(n); for (auto& x : v) x = from_bits((next() & 0x80ffffffu) | 0x3e000000u); return v; };
    auto q = small(P * H * D), k = small(P * G * D), v = values(P * G * D);
    List<i8> keys(4 * G * D * 128), vals(4 * G * 128 * wide);
    List<float> by_key(4 * G * 128), by_value(4 * G * 128), z(P * H * D), again(P * H * D), records(P * H * 8);
    launch(launch_kv_append8, keys.data(), vals.data(), by_key.data(), by_value.data(), k.data(), v.data(), position.data(), tile0.data(),
           &rows, G, D, wide, G * D, G * D);
    report("kv_append8 keys", by_dimension(keys, D));
    report("kv_append8 values", vals);
    report("kv_append8 scales", by_value);
    launch(launch_attention8_2, z.data(), q.data(), keys.data(), vals.data(), by_key.data(), by_value.data(), position.data(), tile0.data(),
           &rows, H, G, D, H * D, H * D, 0.25f);
    report("attention8_2", z);
    launch(launch_probed_attention8_2, again.data(), records.data(), q.data(), keys.data(), vals.data(), by_key.data(), by_value.data(),
           position.data(), tile0.data(), &rows, H, G, D, H * D, 8 * H, H * D, 0.25f);
    if (memcmp(again.data(), z.data(), 4 * z.size())) abort();
    report("probed_attention8_2", records);
}

static void draws() {
    constexpr int V = 1003;
    List<float> logits(5 * V), logprob(5);
    for (auto& x : logits) x = (float)(i32)(next() >> 24) / 16 - 8;  // many ties
    float heat[] = {0.0f, 0.5f, 1.0f, 2.0f, 100.0f};
    i32 top_k[] = {0, 0, 7, 50, 1}, row[] = {0, 1, 2, 3, 4}, position[] = {4, 9, 1, 0, 77};
    List<i32> token(5);
    u64 top_p[] = {1ull << 32, 1ull << 31, 3ull << 30, 1, 1ull << 32}, seed[] = {0, 1, ~0ull, 3, 4};
    List<u32> weight(5 * V);
    launch(launch_sample, token.data(), logprob.data(), weight.data(), logits.data(), (const float*)heat, (const i32*)top_k, (const u64*)top_p,
           (const u64*)seed, (const i32*)row, (const i32*)position, &five, V, V);
    report("sample", token);
    report("sample logprob", logprob);
    List<u32> digest(5 * 3 * 8);
    List<u8> flaw(5 * 3);
    Point points[] = {{argument(logits.data()), V, V, 0}, {argument(logits.data()), V, 1, 1}, {argument(logits.data()), V, 256, 2}};
    launch(launch_blake3, digest.data(), flaw.data(), (const Point*)points, &five, 3, 3);
    report("blake3", digest);
}

static void probes() {
    constexpr int A = 1090, B = 64, P = 2;
    auto a = values(5 * A), b = values(5 * B);
    ProbePoint points[] = {{argument(a.data()), A, A, 0}, {argument(b.data()), B, 37, 1}};
    u64 seed[] = {1, 2, 3, ~0ull, 5};
    i32 position[] = {0, 1, 2, 300, 4}, token[] = {0, 7, 1000, 3, 1089};
    List<u32> record(5 * P * 32), drawn(5 * 4);
    launch(launch_probe, record.data(), (const ProbePoint*)points, (const u64*)seed, (const i32*)position, (const void*)nullptr, &five, P, P);
    report("probe", record);
    List<u8> flaw(5 * P, 9);
    a[3] = from_bits(0x7f800000u);
    launch(launch_finite, flaw.data(), (const ProbePoint*)points, &five, P, P);
    report("finite", flaw);
    a[3] = 1;
    auto logprob = values(5);
    launch(launch_token, drawn.data(), a.data(), (const i32*)token, logprob.data(), &five, A, A);
    report("token", drawn);
}

static List<double> widened(const List<float>& v) {
    List<double> w(v.size());
    for (size_t i = 0; i < v.size(); i++) w[i] = v[i];
    return w;
}

static void scores() {
    constexpr int N = 300, K = 1090, ld = 1120;
    auto x = widened(padded(5, K, ld));
    auto bias = values(N), single = padded(N, K, ld);
    List<u16> w(N * ld);
    for (auto& half : w) half = (u16)(bits(value()) >> 16);
    i32 row[] = {299, 0, 17};
    List<double> y(5 * N), some(5 * 3), sums(2 * ld);
    launch(launch_wide_bf16, y.data(), w.data(), x.data(), bias.data(), &five, N, K, N, ld, ld);
    report("wide_bf16", y);
    List<float> chosen(3 * ld);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < ld; k++) chosen[i * ld + k] = single[row[i] * ld + k];
    launch(launch_wide_f32, some.data(), chosen.data(), x.data(), (const void*)nullptr, &five, 3, K, 3, ld, ld);
    report("wide_f32", some);
    launch(launch_wide_sum_bf16, sums.data(), w.data(), N, K, ld, ld);
    report("wide_sum_bf16", sums);
    for (auto& half : w) half &= 0xbfff;  // finite halves
    launch(launch_wide_f16, y.data(), w.data(), x.data(), bias.data(), &five, N, K, N, ld, ld);
    report("wide_f16", y);
    constexpr int H = 4, G = 2, D = 24, S = 96;
    auto near = [](size_t n) { List<double> v(n); for (auto& x : v) x = from_bits((next() & 0x80ffffffu) | 0x3e000000u); return v; };
    auto q = near(5 * H * D), k = near(G * D * S), v = widened(values(S * G * D));
    i32 visible[] = {1, 31, 32, 64, 95};
    List<double> z(5 * H * D), weight(5 * H * S);
    launch(launch_wide_attention, z.data(), weight.data(), q.data(), k.data(), v.data(), (const i32*)visible, &five, H, G, D, S);
    report("wide_attention", z);
}

int main() {
    pool = pool_open(2);
    weights();
    elements();
    heads();
    draws();
    auto x = values(100000);
    List<float> y(x.size()), z(x.size());
    int n = (int)x.size();
    launch(launch_math_exp, y.data(), x.data(), n);
    report("exp", y);
    launch(launch_math_log, y.data(), x.data(), n);
    report("log", y);
    launch(launch_math_sin_cos, y.data(), z.data(), x.data(), n);
    report("sin", y);
    report("cos", z);
    launch(launch_math_tanh, y.data(), x.data(), n);
    report("tanh", y);
    launch(launch_math_erf, y.data(), x.data(), n);
    report("erf", y);
    probes();
    scores();
    tiles();
    integers();
    heads8();
    ceilings();
    exit(0);
}
