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
HD void compress(word cv[8], const word m[16], word counter, word length, word flags) {
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

HD word each_lane(const u32* x) { word w; memcpy(&w, x, sizeof w); return w; }

// m[i] lane j = word i of the 64 bytes at from[j].
HD void gather_block(word m[16], const u32* const from[WIDE]) {
#if WIDE > 4
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, word{__VA_ARGS__})
#endif
#define SWAP(a, b, low, high)                                       \
    {                                                               \
        word x = PICK(m[a], m[b], low), y = PICK(m[a], m[b], high); \
        m[a] = x;                                                   \
        m[b] = y;                                                   \
    }
#ifdef __AVX512F__  // a transposition, by halves, quarters and so on: of 16x16
    for (int j = 0; j < 16; j++) memcpy(&m[j], from[j], 64);
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
    for (int j = 0; j < 8; j++) SWAP(j, j + 8, LOW8, HIGH8)
    for (int h = 0; h < 16; h += 8) for (int j = h; j < h + 4; j++) SWAP(j, j + 4, LOW4, HIGH4)
    for (int h = 0; h < 16; h += 4) for (int j = h; j < h + 2; j++) SWAP(j, j + 2, LOW2, HIGH2)
    for (int j = 0; j < 16; j += 2) SWAP(j, j + 1, LOW1, HIGH1)
#else  // of two times 8x8
    for (int j = 0; j < 8; j++) {
        memcpy(&m[j], from[j], 32);
        memcpy(&m[j + 8], from[j] + 8, 32);
    }
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15
#define LOW2 0, 1, 8, 9, 4, 5, 12, 13
#define HIGH2 2, 3, 10, 11, 6, 7, 14, 15
#define LOW1 0, 8, 2, 10, 4, 12, 6, 14
#define HIGH1 1, 9, 3, 11, 5, 13, 7, 15
    for (int h = 0; h < 16; h += 8) for (int j = h; j < h + 4; j++) SWAP(j, j + 4, LOW4, HIGH4)
    for (int h = 0; h < 16; h += 4) for (int j = h; j < h + 2; j++) SWAP(j, j + 2, LOW2, HIGH2)
    for (int j = 0; j < 16; j += 2) SWAP(j, j + 1, LOW1, HIGH1)
#endif
#undef SWAP
#else
    alignas(64) u32 t[16][WIDE];
    for (int j = 0; j < WIDE; j++)
        for (int i = 0; i < 16; i++) t[i][j] = from[j][i];
    for (int i = 0; i < 16; i++) m[i] = each_lane(t[i]);
#endif
}

HD void scatter_cvs(u32* const to[WIDE], const word cv[8], int count) {
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < count; j++) to[j][i] = cv[i][j];
}

// Up to WIDE chunks of any rows, waiting to be compressed side by side.
struct Chunks {
    const u32* from[WIDE];
    u32* to[WIDE];
    u32 floats[WIDE], counter[WIDE], root[WIDE];
    u8* flaw[WIDE];
    int count;
};

HD void flush(Chunks& c) {
    if (c.count == 0) return;
    alignas(64) static const u32 nothing[16] = {};
    alignas(64) u32 tail[WIDE][16];
    u32 blocks[WIDE], most = 0;
    for (int j = 0; j < WIDE; j++) {
        if (j >= c.count) c.floats[j] = 0, c.counter[j] = 0, c.root[j] = 0;
        blocks[j] = j >= c.count ? 0 : c.floats[j] <= 16 ? 1 : (c.floats[j] + 15) / 16;
        most = blocks[j] > most ? blocks[j] : most;
    }
    word cv[8], counter = each_lane(c.counter), bad = word_of(0), last = each_lane(blocks) - 1;
    word root = each_lane(c.root), floats = each_lane(c.floats);
    first_cv(cv);
    for (u32 b = 0; b < most; b++) {
        const u32* from[WIDE];
        for (int j = 0; j < WIDE; j++) {
            if (b >= blocks[j]) from[j] = nothing;
            else if (16 * b + 16 <= c.floats[j]) from[j] = c.from[j] + 16 * b;
            else {
                u32 left = c.floats[j] - 16 * b;
                memset(tail[j], 0, 64);
                memcpy(tail[j], c.from[j] + 16 * b, 4 * left);
                from[j] = tail[j];
            }
        }
        word m[16], next[8];
        gather_block(m, from);
        for (int i = 0; i < 16; i++) bad |= (word)((m[i] & 0x7f800000u) == 0x7f800000u);
        word at = word_of(b), is_last = (word)(at == last), active = (word)(at <= last) & (word)(last + 1 != 0);
        word left = floats - 16 * b;
        word length = (is_last & left * 4) | (~is_last & 64);
        word flags = word_of(b ? 0 : CHUNK_START) | (is_last & (CHUNK_END | root));
        for (int i = 0; i < 8; i++) next[i] = cv[i];
        compress(next, m, counter, length, flags);
        for (int i = 0; i < 8; i++) cv[i] = (active & next[i]) | (~active & cv[i]);
    }
    scatter_cvs(c.to, cv, c.count);
    for (int j = 0; j < c.count; j++) *c.flaw[j] |= bad[j] & 1;
    c.count = 0;
}

// One level of all rows at once: pairs of neighbours are joined in place, an odd one is carried up.
HD void join_level(u32* cvs, const int* begin, int* count, int rows) {
    const u32* from[WIDE];
    u32 *to[WIDE], flag[WIDE];
    int n = 0;
    auto flush_pairs = [&]() {
        if (n == 0) return;
        for (int j = n; j < WIDE; j++) from[j] = from[0], flag[j] = 0;
        word m[16], cv[8];
        gather_block(m, from);
        first_cv(cv);
        compress(cv, m, word_of(0), word_of(64), each_lane(flag) | PARENT);
        scatter_cvs(to, cv, n);
        n = 0;
    };
    for (int r = 0; r < rows; r++)
        for (int pair = 0; 2 * pair + 1 < count[r]; pair++) {
            from[n] = cvs + 8 * (begin[r] + 2 * pair);
            to[n] = cvs + 8 * (begin[r] + pair);
            flag[n] = count[r] == 2 ? ROOT : 0;
            if (++n == WIDE) flush_pairs();
        }
    flush_pairs();
    for (int r = 0; r < rows; r++) {
        if (count[r] > 1 && count[r] & 1) memcpy(cvs + 8 * (begin[r] + count[r] / 2), cvs + 8 * (begin[r] + count[r] - 1), 32);
        count[r] = (count[r] + 1) / 2;
    }
}

// Digests this thread's share of the rows, in batches of about `near` chunks, so that then(point, t), called for each
// row of a batch after it, still finds the row in a cache. Shares are cut by chunks, not rows: rows differ in length.
template <class Then>
HD void digest_rows(Share share, u32* digest, u8* flaw, const Point* points, const i32* T, int P, int ld, int near, Then then) {
    constexpr int BATCH = 256;
    alignas(64) static thread_local u32 cvs[8 * (MOST_CHUNKS + BATCH)];
    int begin[BATCH], count[BATCH], column[BATCH], rows = 0, used = 0, most = 0;
    i64 token[BATCH];
    Chunks waiting;
    waiting.count = 0;
    i64 per_token = 0;
    for (int p = 0; p < P; p++) per_token += chunks_of(points[p].width);
    i64 all = per_token * *T, first = all * share.index / share.count, end = all * (share.index + 1) / share.count, at = 0;
    auto finish = [&]() {
        flush(waiting);
        for (; most > 1; most = (most + 1) / 2) join_level(cvs, begin, count, rows);
        for (int r = 0; r < rows; r++) {
            memcpy(digest + 8 * (token[r] * ld + (i64)points[column[r]].column), cvs + 8 * begin[r], 32);
            then(points[column[r]], token[r]);
        }
        rows = used = most = 0;
    };
    for (i64 t = first / per_token; t < *T && at < end; t++) {
        at = t * per_token;
        for (int p = 0; p < P && at < end; p++) {
            Point point = points[p];
            int chunks = chunks_of(point.width);
            i64 here = at;
            at += chunks;
            if (here < first) continue;
            if (rows == BATCH || (rows && used + chunks > near)) finish();
            const u32* row = (const u32*)point.rows + t * point.stride;
            u8* mark = flaw + t * ld + point.column;
            *mark = 0;
            begin[rows] = used;
            count[rows] = chunks;
            token[rows] = t;
            column[rows++] = p;
            most = chunks > most ? chunks : most;
            for (int c = 0; c < chunks; c++) {
                int n = waiting.count++;
                waiting.from[n] = row + 256 * c;
                waiting.to[n] = cvs + 8 * (used + c);
                waiting.floats[n] = (u32)(c == chunks - 1 ? point.width - 256 * c : 256);
                waiting.counter[n] = (u32)c;
                waiting.root[n] = chunks == 1 ? ROOT : 0;
                waiting.flaw[n] = mark;
                if (waiting.count == WIDE) flush(waiting);
            }
            used += chunks;
        }
    }
    finish();
}

KERNEL(blake3, u32* digest, u8* flaw, const Point* points, const i32* T, int P, int ld) {
    digest_rows(share, digest, flaw, points, T, P, ld, MOST_CHUNKS, [](Point, i64) {});
}

#endif
