// host.cpp: runs launch lists on a pool of threads. The whole CPU library is this one translation unit.
//
// A launch is a kernel and its arguments as 64-bit words. Its items are cut into shares, a few for each thread,
// and a thread takes the next one when it is done with one: some items are dearer than others, and so are some cores.
// A barrier stands between launches, so a kernel sees all that the one before it wrote.
// The caller is thread 0; the others sleep between runs. Every thread sets the floating-point mode
// (nearest-even, subnormals kept, no traps) on entry; the caller's is restored.
// Nothing here needs the C++ library: not every compiler brings one, and some build it first, for minutes.
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kernels {  // apart from the math library's names, which some compilers put everywhere
#include "attention.cu"
#include "blake3.cu"
#include "elementwise.cu"
#include "embed.cu"
#include "linear.cu"
#include "linear4.cu"
#include "linear8.cu"
#include "linear_host.cuh"
#include "math.cu"
#include "moments.cu"
#include "probe.cu"
#include "probe_host.cuh"
#include "quantize.cu"
#include "panel_host.cuh"
#include "matrix_host.cuh"
#include "ceiling.cu"
#include "rms_norm.cu"
#include "rope.cu"
#include "sample.cu"
#include "token.cu"
#include "wide.cu"
}  // namespace kernels
using namespace kernels;

typedef void (*Kernel)(Share, const u64*);
struct Launch { Kernel kernel; const u64* words; };

namespace {

struct Mode {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    Mode() { _mm_setcsr(0x1f80); }
    ~Mode() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    u64 before;
    Mode() { asm volatile("mrs %0, fpcr" : "=r"(before)); asm volatile("msr fpcr, %0" ::"r"((u64)0)); }
    ~Mode() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#endif
};

HD void relax(int& spins) {
    if (++spins > 4000) { sched_yield(); return; }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#define SHARES 4  // of a thread

struct Pool;
struct Worker { Pool* pool; int index; pthread_t thread; };

struct Pool {
    int count;  // of threads, the caller among them
    Worker* workers;
    pthread_mutex_t lock;  // of generation and closing
    pthread_cond_t wake;
    u64 generation;  // of lists: the others wait for the next
    bool closing;
    const Launch* list;
    int length;
    int taken;    // shares of this launch
    int arrived;  // at the barrier
    unsigned passed;  // barriers
};

void barrier(Pool& p) {
    unsigned now = __atomic_load_n(&p.passed, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&p.arrived, 1, __ATOMIC_ACQ_REL) == p.count) {
        __atomic_store_n(&p.arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&p.taken, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&p.passed, now + 1, __ATOMIC_RELEASE);
    } else {
        for (int spins = 0; __atomic_load_n(&p.passed, __ATOMIC_ACQUIRE) == now;) relax(spins);
    }
}

void share(Pool& p, int thread) {
    Mode mode;
    const Launch* list = p.list;  // the caller may set the next list as soon as the last barrier opens
    for (int i = 0, n = p.length, all = p.count * SHARES; i < n; i++) {
        for (int next; (next = __atomic_fetch_add(&p.taken, 1, __ATOMIC_RELAXED)) < all;)
            list[i].kernel(Share{next, all, thread}, list[i].words);
        barrier(p);
    }
}

void* work(void* worker) {
    Pool& p = *((Worker*)worker)->pool;
    for (u64 seen = 0;;) {
        // spin a little first: the next run often comes at once
        for (int spins = 0; __atomic_load_n(&p.generation, __ATOMIC_ACQUIRE) == seen && spins < 2000;) relax(spins);
        pthread_mutex_lock(&p.lock);
        while (p.generation == seen) pthread_cond_wait(&p.wake, &p.lock);
        seen = p.generation;
        bool closing = p.closing;
        pthread_mutex_unlock(&p.lock);
        if (closing) return nullptr;
        share(p, ((Worker*)worker)->index);
    }
}

void next_generation(Pool& p, bool closing) {
    pthread_mutex_lock(&p.lock);
    p.closing = closing;
    __atomic_add_fetch(&p.generation, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&p.lock);
    pthread_cond_broadcast(&p.wake);
}

}  // namespace

// Asks the system for what matrix_host.cuh needs, for all threads of this process to come; says whether it gives it.
extern "C" int matrix_ready() {
#ifdef MATRIX
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA of <asm/prctl.h>
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return 0;
#endif
}

// Opens a pool of so many threads, or of fewer where the system gives no more; null if it has no memory.
extern "C" void* pool_open(int threads) {
    Pool* p = (Pool*)calloc(1, sizeof(Pool));
    Worker* workers = (Worker*)calloc((size_t)threads, sizeof(Worker));
    if (!p || !workers) { free(p), free(workers); return nullptr; }
    pthread_mutex_init(&p->lock, nullptr);
    pthread_cond_init(&p->wake, nullptr);
    p->workers = workers;
    pthread_attr_t room;
    pthread_attr_init(&room);
    pthread_attr_setstacksize(&room, 4 << 20);  // some libraries give 128 KB, a linear layer takes 200
    for (p->count = 1; p->count < threads; p->count++) {
        Worker& worker = workers[p->count];
        worker.pool = p, worker.index = p->count;
        if (pthread_create(&worker.thread, &room, work, &worker)) break;
    }
    pthread_attr_destroy(&room);
    return p;
}

extern "C" void pool_close(void* pool) {
    Pool& p = *(Pool*)pool;
    next_generation(p, true);
    for (int i = 1; i < p.count; i++) pthread_join(p.workers[i].thread, nullptr);
    pthread_cond_destroy(&p.wake);
    pthread_mutex_destroy(&p.lock);
    free(p.workers);
    free(&p);
}

extern "C" void pool_run(void* pool, const Launch* launches, int n, int alone) {
    Pool& p = *(Pool*)pool;
    if (n == 0) return;
    if (alone || p.count == 1) {  // too little work to be worth a barrier: the others sleep on
        Mode mode;
        for (int i = 0; i < n; i++) launches[i].kernel(Share{0, 1, 0}, launches[i].words);
        return;
    }
    p.list = launches, p.length = n;
    next_generation(p, false);
    share(p, 0);
}
