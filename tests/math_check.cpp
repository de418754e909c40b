// math_check: drives math.cu for test_math.py and measures it against libm's double functions.
//
//   math_check NAME WHAT              x from stdin
//   math_check NAME WHAT FIRST COUNT  x = the floats whose bits are FIRST, FIRST + 1, ...
//   math_check philox                 records of four counter words and two key words from stdin
//
// WHAT is "values": y to stdout; or "errors": y to stdout, and to stderr the largest error in ulps
// (spacings of floats at the exact value), the largest distance in floats from the rounded
// reference, and the bits of x at the largest error. The reference is off by 2^-28 ulps at most.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

struct Share { int index, count, thread; };  // as in lanes_host.cuh
typedef void Launch(Share, const uint64_t*);
extern "C" Launch launch_math_exp, launch_math_log, launch_math_sin_cos, launch_math_tanh,
    launch_math_erf, launch_math_philox;

template <class T> static T as(const void* p) { T t; memcpy(&t, p, sizeof t); return t; }
static uint32_t bits(float x) { return as<uint32_t>(&x); }
static uint64_t word(const void* p) { return (uint64_t)(uintptr_t)p; }

static double sine(double x) { return fabs(x) <= 0x1p24 ? sin(x) : NAN; }
static double cosine(double x) { return fabs(x) <= 0x1p24 ? cos(x) : NAN; }
static const struct Function {
    const char* name;
    double (*reference)(double);
    Launch* launch;
    int output, outputs;
} functions[] = {
    {"exp", exp, launch_math_exp, 0, 1},        {"log", log, launch_math_log, 0, 1},
    {"sin", sine, launch_math_sin_cos, 0, 2},   {"cos", cosine, launch_math_sin_cos, 1, 2},
    {"tanh", tanh, launch_math_tanh, 0, 1},     {"erf", erf, launch_math_erf, 0, 1},
};

// Three shares after each other, so that chunks are split as threads would split them.
static void launch(Launch* kernel, const uint64_t* words) {
    for (int i = 0; i < 3; i++) kernel({i, 3}, words);
}

struct Worst { double ulps; int64_t floats; uint32_t at; };

static int64_t ordered(float x) {  // -0 and +0 are neighbours
    int64_t u = bits(x);
    return u >> 31 ? 0x7fffffff - u : u;
}

static void measure(Worst& worst, float x, float y, double exact) {
    float rounded = (float)exact;
    double ulps;
    int64_t floats;
    if (exact != exact) {
        ulps = floats = bits(y) == 0x7fc00000u ? 0 : INT32_MAX;
    } else if (y != y || std::isinf(y) || std::isinf(rounded)) {
        ulps = floats = bits(y) == bits(rounded) ? 0 : INT32_MAX;
    } else {
        uint64_t exponent = as<uint64_t>(&exact) >> 52 & 2047;
        uint64_t per_spacing = (2069 - (exponent < 897 ? 897 : exponent)) << 52;  // 2^149 at most
        ulps = fabs(y - exact) * as<double>(&per_spacing);
        floats = llabs(ordered(y) - ordered(rounded));
    }
    if (ulps > worst.ulps) worst.ulps = ulps, worst.at = bits(x);
    if (floats > worst.floats) worst.floats = floats;
}

static int philox() {
    uint32_t record[6], out[4];
    while (fread(record, sizeof record, 1, stdin) == 1) {
        uint64_t words[] = {word(out), word(record), word(record + 4), 1};
        launch(launch_math_philox, words);
        fwrite(out, sizeof out, 1, stdout);
    }
    return 0;
}

int main(int count, char** arguments) {
    if (count == 2 && !strcmp(arguments[1], "philox")) return philox();
    if (count != 3 && count != 5) return 2;
    const Function* f = functions;
    while (strcmp(f->name, arguments[1])) f++;
    bool errors = !strcmp(arguments[2], "errors"), range = count == 5;
    uint64_t next = range ? strtoull(arguments[3], nullptr, 0) : 0;
    uint64_t end = range ? next + strtoull(arguments[4], nullptr, 0) : 0;
    const size_t piece = 1 << 16;
    static float x[piece], y[piece], other[piece];
    Worst worst = {};
    for (;;) {
        size_t n = 0;
        if (range) {
            for (; n < piece && next < end; n++, next++) {
                uint32_t u = (uint32_t)next;
                x[n] = as<float>(&u);
            }
        } else {
            n = fread(x, 4, piece, stdin);
        }
        if (!n) break;
        uint64_t one[] = {word(y), word(x), n};
        uint64_t two[] = {word(f->output ? other : y), word(f->output ? y : other), word(x), n};
        launch(f->launch, f->outputs == 2 ? two : one);
        if (fwrite(y, 4, n, stdout) != n) return 2;
        if (errors)
            for (size_t i = 0; i < n; i++) measure(worst, x[i], y[i], f->reference(x[i]));
    }
    if (errors) fprintf(stderr, "%.4f %lld %08x\n", worst.ulps, (long long)worst.floats, worst.at);
    return fflush(stdout) ? 2 : 0;
}
