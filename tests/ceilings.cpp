// Ceilings of this machine: bandwidth of reading, float32 fma, products of whole numbers. Prints the best and the
// median of many short passes: the best is the machine's, the median what it had to give while others ran.
#include <immintrin.h>
#include <sys/mman.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
#ifdef __AVX512F__
enum { BYTES = 64, CHAINS = 24 };
#else
enum { BYTES = 32, CHAINS = 12 };
#endif
typedef std::chrono::steady_clock Clock;
typedef float floats __attribute__((vector_size(BYTES)));
typedef unsigned long long words __attribute__((vector_size(BYTES)));
typedef int ints __attribute__((vector_size(BYTES)));
const size_t SIZE = 512u << 20;  // a thread; far beyond any cache
const int PASSES = 15, STEPS = 1 << 19;
volatile float half = 0.5f, one = 1.0f, sink;
volatile unsigned long long word_sink;

void read(char* from) {
    words sum[8] = {};
    const words* at = (const words*)from;
    for (size_t i = 0; i < SIZE / BYTES; i += 8)
        for (int k = 0; k < 8; k++) sum[k] += at[i + k];
    for (int k = 1; k < 8; k++) sum[0] += sum[k];
    word_sink = sum[0][0];
}

void multiply(char*) {
    floats sum[CHAINS], a = half - floats{}, b = one - floats{};
    for (int k = 0; k < CHAINS; k++) sum[k] = one * k - floats{};  // equal chains would be one
    for (int i = 0; i < STEPS; i++) {
#pragma GCC unroll 32
        for (int k = 0; k < CHAINS; k++) sum[k] = sum[k] * a + b;
    }
    for (int k = 1; k < CHAINS; k++) sum[0] += sum[k];
    sink = sum[0][0];
}

#if defined(__AVX512VNNI__)
enum { PRODUCTS = BYTES };
ints whole(ints sum, ints a, ints b) { return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b); }
#elif defined(__AVX512BW__)
enum { PRODUCTS = BYTES / 2 };
ints whole(ints sum, ints a, ints b) { return sum + (ints)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
enum { PRODUCTS = BYTES / 2 };
ints whole(ints sum, ints a, ints b) { return sum + (ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#else
enum { PRODUCTS = BYTES / 4 };
ints whole(ints sum, ints a, ints b) { return sum + a * b; }
#endif
void multiply_whole(char*) {
    ints sum[CHAINS], a, b;
    for (int k = 0; k < CHAINS; k++) sum[k] = (int)word_sink + k - ints{};
    a = (int)word_sink - ints{}, b = a + 3;
    for (int i = 0; i < STEPS; i++) {
#pragma GCC unroll 32
        for (int k = 0; k < CHAINS; k++) {
            asm("" : "+x"(a));  // each product is made
            sum[k] = whole(sum[k], a, b);
        }
    }
    for (int k = 1; k < CHAINS; k++) sum[0] += sum[k];
    word_sink = sum[0][0];
}

std::vector<double> passes(int threads, std::vector<char*>& memory, void (*work)(char*)) {
    std::vector<double> seconds;
    for (int pass = 0; pass < PASSES; pass++) {
        std::atomic<int> ready{0};
        std::vector<std::thread> pool;
        auto body = [&](int i) {
            for (ready++; ready < threads;) {}
            work(memory[i]);
        };
        for (int i = 1; i < threads; i++) pool.emplace_back(body, i);
        while (ready < threads - 1) {}
        auto start = Clock::now();
        body(0);
        for (auto& t : pool) t.join();
        seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds;
}

int main(int, char** argv) {
    int threads = atoi(argv[1]);
    std::vector<char*> memory(threads);
    for (auto& each : memory) {
        each = (char*)mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(each, SIZE, MADV_HUGEPAGE);
        std::fill(each, each + SIZE, 1);
    }
    auto r = passes(threads, memory, read), f = passes(threads, memory, multiply);
    auto w = passes(threads, memory, multiply_whole);
    double gb = threads * SIZE / 1e9, giga = 2.0 * threads * STEPS * CHAINS / 1e9;
    printf("{\"read_gb_s\": [%.2f, %.2f], \"fma_gflop_s\": [%.1f, %.1f], \"int_gop_s\": [%.1f, %.1f]}\n",
           gb / r[0], gb / r[PASSES / 2], giga * (BYTES / 4) / f[0], giga * (BYTES / 4) / f[PASSES / 2],
           giga * PRODUCTS / w[0], giga * PRODUCTS / w[PASSES / 2]);
}
