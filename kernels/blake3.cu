// blake3: digest[t,p,:] = BLAKE3 of row t of point p, little-endian float32; the same as the package `blake3`
//
//   point   (P,4) u64: address of row 0, row stride in floats, floats a row, column of the digest
//   digest  (T, ld) of 8 u32 each: row t, column p
//   flaw    (T, ld) u8: 1 where the row holds a NaN or an infinity
//
// Integers only: a row is cut into chunks of 1024 bytes, chunks are joined pairwise, left to right, level by
// level (the odd one is carried up), which is BLAKE3's tree. Host: as many chunks side by side as a
// vector register has words, of any rows. CUDA: a chunk a thread; one item a row of a point.
// Source: https://github.com/BLAKE3-team/BLAKE3-specs
#include "lanes.cuh"

#define CHUNK_START 1u
#define CHUNK_END 2u
#define PARENT 4u
#define ROOT 8u
#define MOST_CHUNKS 4096  // of one row: 2^20 floats

struct Point { u64 rows, stride, width, column; };

#define IV0 0x6A09E667u
#define IV1 0xBB67AE85u
#define IV2 0x3C6EF372u
#define IV3 0xA54FF53Au

#ifdef ON_CUDA
typedef u32 word;  // one chunk a thread
HD word word_of(u32 x) { return x; }
#else
#if defined(__AVX512F__)
#define WIDE 16  // chunks side by side in one vector word
#elif defined(__AVX2__)
#define WIDE 8
#else
#define WIDE 4
#endif
typedef u32 word __attribute__((vector_size(4 * WIDE)));
HD word word_of(u32 x) { return word{} + x; }
#endif

// Rotations to the right. Vectors of bytes turn by whole bytes in one step.
HD word by_12(word x) { return x >> 12 | x << 20; }
HD word by_7(word x) { return x >> 7 | x << 25; }
#if !defined(ON_CUDA) && defined(__AVX2__) && !defined(__AVX512F__)
typedef u8 bytes __attribute__((vector_size(sizeof(word))));
#ifdef __clang__
#define TURN(x, ...) (word) __builtin_shufflevector((bytes)x, (bytes)x, __VA_ARGS__)
#else
#define TURN(x, ...) (word) __builtin_shuffle((bytes)x, bytes{__VA_ARGS__})
#endif
HD word by_16(word x) {
    return TURN(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 18, 19, 16, 17, 22, 23, 20, 21, 26, 27, 24, 25, 30, 31, 28, 29);
}
HD word by_8(word x) {
    return TURN(x, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12, 17, 18, 19, 16, 21, 22, 23, 20, 25, 26, 27, 24, 29, 30, 31, 28);
}
#else
HD word by_16(word x) { return x >> 16 | x << 16; }
HD word by_8(word x) { return x >> 8 | x << 24; }
#endif

HD void mix(word& a, word& b, word& c, word& d, word x, word y) {
    a = a + b + x;
    d ^= a;
    d = by_16(d);
    c = c + d;
    b ^= c;
    b = by_12(b);
    a = a + b + y;
    d ^= a;
    d = by_8(d);
    c = c + d;
    b ^= c;
    b = by_7(b);
}

// cv = the compression of block m under cv; the counter is below 2^32 here.
ONCE void compress(word cv[8], const word m[16], word counter, word length, word flags) {
    constexpr u8 order[7][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
        {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
        {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
        {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13}};
    word v[16] = {cv[0], cv[1], cv[2], cv[3], cv[4], cv[5], cv[6], cv[7],
                  word_of(IV0), word_of(IV1), word_of(IV2), word_of(IV3), counter, word_of(0), length, flags};
#if defined(__clang__) || defined(ON_CUDA)
#pragma unroll
#else
#ifndef ON_CUDA
#pragma GCC unroll 7
#endif
#endif
    for (int r = 0; r < 7; r++) {
        const u8* o = order[r];
        mix(v[0], v[4], v[8], v[12], m[o[0]], m[o[1]]);
        mix(v[1], v[5], v[9], v[13], m[o[2]], m[o[3]]);
        mix(v[2], v[6], v[10], v[14], m[o[4]], m[o[5]]);
        mix(v[3], v[7], v[11], v[15], m[o[6]], m[o[7]]);
        mix(v[0], v[5], v[10], v[15], m[o[8]], m[o[9]]);
        mix(v[1], v[6], v[11], v[12], m[o[10]], m[o[11]]);
        mix(v[2], v[7], v[8], v[13], m[o[12]], m[o[13]]);
        mix(v[3], v[4], v[9], v[14], m[o[14]], m[o[15]]);
    }
    for (int i = 0; i < 8; i++) cv[i] = v[i] ^ v[i + 8];
}

HD void first_cv(word cv[8]) {
    cv[0] = word_of(IV0), cv[1] = word_of(IV1), cv[2] = word_of(IV2), cv[3] = word_of(IV3);
    cv[4] = word_of(0x510E527Fu), cv[5] = word_of(0x9B05688Cu), cv[6] = word_of(0x1F83D9ABu), cv[7] = word_of(0x5BE0CD19u);
}
HD int chunks_of(u64 width) { return width <= 256 ? 1 : (int)((width + 255) / 256); }  // 256 floats a chunk

#ifdef ON_CUDA

KERNEL(blake3, u32* digest, u8* flaw, const Point* points, const i32* T, int P, int ld) {
    SCRATCH(u32, cvs, 8 * 64);  // a window of 64 chunks: a subtree; finished subtrees wait on the stack
    SCRATCH(u32, stack, 8 * 16);
    FOR_ITEMS(item, (i64)*T * P) {
        i64 t = item / P;
        Point point = points[item % P];
        const u32* row = (const u32*)point.rows + t * point.stride;
        int chunks = chunks_of(point.width), depth = 0;
        u32 bad = 0;
        for (int window = 0; window < chunks; window += 64) {
            int here = chunks - window < 64 ? chunks - window : 64;
            for (int c = LANE; c < here; c += 32) {
                int at = (window + c) * 256, floats = (int)point.width - at < 256 ? (int)point.width - at : 256;
                int blocks = floats <= 16 ? 1 : (floats + 15) / 16;
                word cv[8];
                first_cv(cv);
                for (int b = 0; b < blocks; b++) {
                    word m[16];
                    int left = floats - 16 * b < 16 ? floats - 16 * b : 16;
#pragma unroll
                    for (int i = 0; i < 16; i++) {
                        m[i] = i < left ? row[at + 16 * b + i] : 0;
                        bad |= (m[i] & 0x7f800000u) == 0x7f800000u;
                    }
                    u32 flags = (b ? 0 : CHUNK_START) | (b == blocks - 1 ? CHUNK_END | (chunks == 1 ? ROOT : 0) : 0);
                    compress(cv, m, (u32)(window + c), 4u * left, flags);
                }
                for (int i = 0; i < 8; i++) cvs[8 * c + i] = cv[i];
            }
            SYNC_LANES();
            for (int n = here; n > 1; n = (n + 1) / 2) {  // join the window, level by level
                word cv[8];
                int pair = LANE;  // at most 32 pairs
                bool joins = 2 * pair + 1 < n, carried = 2 * pair + 1 == n;
                if (joins) {
                    word m[16];
                    for (int i = 0; i < 16; i++) m[i] = cvs[16 * pair + i];
                    first_cv(cv);
                    compress(cv, m, 0, 64, PARENT | (n == 2 && chunks <= 64 ? ROOT : 0));
                } else if (carried) {
                    for (int i = 0; i < 8; i++) cv[i] = cvs[16 * pair + i];
                }
                SYNC_LANES();
                if (joins || carried) for (int i = 0; i < 8; i++) cvs[8 * pair + i] = cv[i];
                SYNC_LANES();
            }
            // A full window is a subtree of 64 chunks: equal subtrees join as in a binary counter.
            bool last = window + 64 >= chunks;
            if (LEADER) {
                word top[8];
                for (int i = 0; i < 8; i++) top[i] = cvs[i];
                int joins = 0;
                if (last) joins = depth;
                else for (int n = window / 64; n & 1; n >>= 1) joins++;
                for (int k = 0; k < joins; k++) {
                    word m[16], cv[8];
                    for (int i = 0; i < 8; i++) { m[i] = stack[8 * (depth - 1 - k) + i]; m[8 + i] = top[i]; }
                    first_cv(cv);
                    compress(cv, m, 0, 64, PARENT | (last && k == joins - 1 ? ROOT : 0));
                    for (int i = 0; i < 8; i++) top[i] = cv[i];
                }
                u32* to = last ? digest + 8 * (t * ld + point.column) : stack + 8 * (depth - joins);
                for (int i = 0; i < 8; i++) to[i] = top[i];
            }
            if (!last) {
                int joins = 0;
                for (int n = window / 64; n & 1; n >>= 1) joins++;
                depth += 1 - joins;
            }
            SYNC_LANES();
        }
        bad = all_max(bad);
        if (LEADER) flaw[t * ld + point.column] = (u8)bad;
    }
}

#else
#include "blake3_host.cuh"
#endif
