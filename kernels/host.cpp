// host.cpp: runs launch lists on a pool of threads. The whole CPU library is this one translation unit.
//
// A launch is a kernel and its arguments as 64-bit words. All threads run every launch, each its own share of
// the items; a barrier stands between launches, so a kernel sees all that the one before it wrote.
// The caller is thread 0; the others sleep between runs. Every thread sets the floating-point mode
// (nearest-even, subnormals kept, no traps) on entry; the caller's is restored.
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kernels {  // apart from the math library's names, which some compilers put everywhere
#include "attention.cu"
#include "blake3.cu"
#include "elementwise.cu"
#include "embed.cu"
#include "linear.cu"
#include "math.cu"
#include "moments.cu"
#include "probe.cu"
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
    if (++spins > 4000) { std::this_thread::yield(); return; }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
  public:
    explicit Pool(int count) : count(count) {
        for (int i = 1; i < count; i++) threads.emplace_back([this, i] { work(i); });
    }
    ~Pool() {
        { std::lock_guard<std::mutex> hold(lock); closing = true; generation++; }
        wake.notify_all();
        for (auto& t : threads) t.join();
    }
    void run(const Launch* launches, int n, bool alone) {
        if (n == 0) return;
        if (alone || count == 1) {  // too little work to be worth a barrier: the others sleep on
            Mode mode;
            for (int i = 0; i < n; i++) launches[i].kernel(Share{0, 1}, launches[i].words);
            return;
        }
        list = launches, length = n;
        { std::lock_guard<std::mutex> hold(lock); generation++; }
        wake.notify_all();
        share(0);
    }

  private:
    void share(int index) {
        Mode mode;
        const Launch* launches = list;  // the caller may set the next list as soon as the last barrier opens
        for (int i = 0, n = length; i < n; i++) {
            launches[i].kernel(Share{index, count}, launches[i].words);
            barrier();
        }
    }
    void barrier() {
        unsigned now = passed.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
            arrived.store(0, std::memory_order_relaxed);
            passed.store(now + 1, std::memory_order_release);
        } else {
            for (int spins = 0; passed.load(std::memory_order_acquire) == now;) relax(spins);
        }
    }
    void work(int index) {
        for (u64 seen = 0;;) {
            {   // spin a little first: the next run often comes at once
                int spins = 0;
                while (generation.load(std::memory_order_acquire) == seen && spins < 2000) relax(spins);
                std::unique_lock<std::mutex> hold(lock);
                wake.wait(hold, [&] { return generation.load() != seen; });
                seen = generation.load();
                if (closing) return;
            }
            share(index);
        }
    }

    int count;
    std::vector<std::thread> threads;
    std::mutex lock;
    std::condition_variable wake;
    std::atomic<u64> generation{0};
    bool closing = false;
    const Launch* list = nullptr;
    int length = 0;
    std::atomic<int> arrived{0};
    std::atomic<unsigned> passed{0};
};

}  // namespace

extern "C" void* pool_open(int threads) { return new Pool(threads); }
extern "C" void pool_close(void* pool) { delete static_cast<Pool*>(pool); }
extern "C" void pool_run(void* pool, const Launch* launches, int n, int alone) {
    static_cast<Pool*>(pool)->run(launches, n, alone);
}
