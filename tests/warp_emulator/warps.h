// warps.h: enough of CUDA to run the device half of kernels/ on a CPU, one thread block at a time.
//
// Every CUDA thread is a fiber. It runs until it meets __syncwarp or a shuffle and waits there for the other 31
// of its warp; between two such points the threads of a block run one after another, in an order that the caller
// chooses. So a result that moves with the order is a race, and a warp of which some threads wait and others have
// ended, or wait elsewhere, is reported as what it is: undefined on a GPU.
// Not here: __syncthreads, memory that is seen late, and everything that a GPU's own arithmetic could do.
#pragma once
#include <ucontext.h>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#define __CUDACC_RTC__
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(n)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static  // blocks run one after another, all their fibers in one thread of the system

struct alignas(16) int4 { int x, y, z, w; };

namespace emulator {

constexpr int WARP = 32, BLOCK = 128, STACK = 1 << 16;
constexpr unsigned BROADCAST = 0x40, BALLOT = 0x80, KIND = 0xc0;  // of a point; a shuffle by xor is neither
struct Index { unsigned x, y, z; };

struct Fiber {
    ucontext_t context;
    alignas(64) char stack[STACK];
    enum { READY, WAITING, ENDED } state;
    unsigned point;  // what it waits for: 1 for __syncwarp, else the kind of a shuffle
    uint64_t given, received;
};

static Fiber fibers[BLOCK];
static ucontext_t scheduler;
static int running;
static void (*kernel)(const uint64_t*);
static const uint64_t* arguments;
static Index thread, block, threads = {BLOCK, 1, 1}, blocks = {1, 1, 1};

inline uint64_t wait(unsigned point, uint64_t given) {
    Fiber& self = fibers[running];
    self.state = Fiber::WAITING, self.point = point, self.given = given;
    swapcontext(&self.context, &scheduler);
    return self.received;
}

inline void enter() {
    kernel(arguments);
    fibers[running].state = Fiber::ENDED;
}

// Lets a warp go on whose threads all wait at the same point; false where they never will.
inline bool release(Fiber* warp) {
    int waiting = 0;
    for (int i = 0; i < WARP; i++) waiting += warp[i].state == Fiber::WAITING;
    if (waiting == 0) return true;
    for (int i = 0; i < WARP; i++)
        if (waiting < WARP || warp[i].point != warp[0].point) return false;
    int lane = (int)(warp[0].point >> 8);
    uint64_t votes = 0;
    for (int i = 0; i < WARP; i++) votes |= (uint64_t)(warp[i].given & 1) << i;
    for (int i = 0; i < WARP; i++) {
        unsigned kind = warp[i].point & KIND;
        warp[i].received = kind == BALLOT ? votes : warp[kind == BROADCAST ? lane : i ^ lane].given;
        warp[i].state = Fiber::READY;
    }
    return true;
}

// order 0: thread 0 first; 1: thread 127 first; others: shuffled anew each time, from this seed.
inline void arrange(int* turn, unsigned order, unsigned& seed) {
    for (int i = 0; i < BLOCK; i++) turn[i] = order == 1 ? BLOCK - 1 - i : i;
    for (int i = BLOCK - 1; order > 1 && i > 0; i--) {
        seed = seed * 1664525u + 1013904223u;
        std::swap(turn[i], turn[(seed >> 8) % (i + 1)]);
    }
}

inline bool run_block(unsigned order, unsigned& seed) {
    for (Fiber& fiber : fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &scheduler;
        fiber.state = Fiber::READY;
        makecontext(&fiber.context, enter, 0);
    }
    for (bool alive = true; alive;) {
        int turn[BLOCK];
        arrange(turn, order, seed);
        for (int i : turn) {
            if (fibers[i].state != Fiber::READY) continue;
            running = i, thread.x = i;
            swapcontext(&scheduler, &fibers[i].context);
        }
        alive = false;
        for (int first = 0; first < BLOCK; first += WARP) {
            if (!release(fibers + first)) return false;
            alive = alive || fibers[first].state == Fiber::READY;
        }
    }
    return true;
}

// 0, or 1 where the threads of a warp parted.
inline int run(void (*body)(const uint64_t*), const uint64_t* words, unsigned grid, unsigned order) {
    unsigned seed = order;
    kernel = body, arguments = words, blocks.x = grid;
    for (block.x = 0; block.x < grid; block.x++)
        if (!run_block(order, seed)) return 1;
    return 0;
}

template <class T> T shuffle(unsigned mask, T value, int lane, unsigned kind) {
    if (mask != ~0u) abort();
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    word = wait((unsigned)lane << 8 | kind | (unsigned)sizeof(T) << 1, word);
    memcpy(&value, &word, sizeof value);
    return value;
}

template <class To, class From> To as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

inline float widened(uint16_t half) {  // a half float that is no NaN
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    float size = exponent == 31 ? __builtin_inff() : __builtin_ldexpf(exponent ? 1024 + mantissa : mantissa, (exponent ? exponent : 1) - 25);
    return half & 0x8000 ? -size : size;
}

inline int dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += (int8_t)(a >> i) * (int8_t)(b >> i);
    return c;
}

struct Matrices { int c[4], a[4], b[2]; };

// c (16,8) += a (16,32) by b (32,8) in 8 bits, each thread with its share of them as PTX has it.
inline void mma(int (&c)[4], const Matrices& mine) {
    const Matrices* of[WARP];
    for (int i = 0; i < WARP; i++) of[i] = (const Matrices*)shuffle(~0u, (uint64_t)&mine, i, BROADCAST);
    int lane = (int)(thread.x % WARP), found[4];
    for (int i = 0; i < 4; i++) {
        found[i] = mine.c[i];
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 32; k++) {
            int part = k % 16 / 4, byte = 8 * (k % 4);
            int a = of[row % 8 * 4 + part]->a[k / 16 * 2 + row / 8], b = of[column * 4 + part]->b[k / 16];
            found[i] += (int8_t)(a >> byte) * (int8_t)(b >> byte);
        }
    }
    wait(1, 0);  // all have read
    memcpy(c, found, sizeof found);
}

template <class T> T argument(uint64_t word) { T value; memcpy(&value, &word, sizeof value); return value; }
template <class... A, size_t... I>
void call(void (*body)(A...), const uint64_t* words, std::index_sequence<I...>) { body(argument<A>(words[I])...); }
template <class... A>
void call(void (*body)(A...), const uint64_t* words) { call(body, words, std::index_sequence_for<A...>{}); }

}  // namespace emulator

#define threadIdx emulator::thread
#define blockIdx emulator::block
#define blockDim emulator::threads
#define gridDim emulator::blocks
#define __syncwarp() emulator::wait(1, 0)
#define __shfl_xor_sync(mask, value, distance) emulator::shuffle(mask, value, distance, 0)
#define __shfl_sync(mask, value, lane) emulator::shuffle(mask, value, lane, emulator::BROADCAST)
#define __ballot_sync(mask, vote) ((unsigned)emulator::wait(emulator::BALLOT, (vote) ? 1 : 0))
#define __popc(x) __builtin_popcount(x)
#define __ffs(x) __builtin_ffs((int)(x))
#define __float_as_uint(x) emulator::as<unsigned>(x)
#define __uint_as_float(x) emulator::as<float>(x)
#define __double_as_longlong(x) emulator::as<long long>(x)
#define __longlong_as_double(x) emulator::as<double>(x)
#define __fmaf_rn(a, b, c) __builtin_fmaf(a, b, c)
#define __fadd_rn(a, b) ((a) + (b))
#define __dadd_rn(a, b) ((a) + (b))
#define __dmul_rn(a, b) ((a) * (b))
#define __fmul_rn(a, b) ((a) * (b))
#define __fdiv_rn(a, b) ((a) / (b))
#define __fsqrt_rn(x) __builtin_sqrtf(x)
#define __dp4a(a, b, c) emulator::dp4a(a, b, c)
#define __umul64hi(a, b) ((unsigned long long)(((unsigned __int128)(a) * (b)) >> 64))
#define asm(...) y = emulator::widened(x.bits)  // the one instruction that lanes.cuh writes out

#define MMA_S8
static void mma_s8(int (&c)[4], int a0, int a1, int a2, int a3, int b0, int b1) {
    emulator::mma(c, {{c[0], c[1], c[2], c[3]}, {a0, a1, a2, a3}, {b0, b1}});
}

#include "lanes.cuh"

#undef KERNEL
#define KERNEL(name, ...)                                                                  \
    static void name(__VA_ARGS__);                                                         \
    static void body_##name(const uint64_t* words) { emulator::call(name, words); }        \
    extern "C" int warps_##name(const uint64_t* words, unsigned grid, unsigned order) {    \
        return emulator::run(body_##name, words, grid, order);                             \
    }                                                                                      \
    static void name(__VA_ARGS__)
