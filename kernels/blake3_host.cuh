// blake3_host.cuh: BLAKE3 on a core: as many chunks side by side as a vector register has words, of any rows.
//
// blake3  formula and shapes as in blake3.cu, which includes this. All is integers: no order to keep.
#pragma once
#include "lanes.cuh"

typedef u32 unaligned_word __attribute__((vector_size(sizeof(word)), aligned(4)));
HD word each_lane(const u32* x) { return *(const unaligned_word*)x; }  // gcc would split a memcpy

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
    for (int j = 0; j < 16; j++) m[j] = each_lane(from[j]);
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
        m[j] = each_lane(from[j]);
        m[j + 8] = each_lane(from[j] + 8);
    }
#define LOW1 0, 8, 1, 9, 4, 12, 5, 13  // each one instruction
#define HIGH1 2, 10, 3, 11, 6, 14, 7, 15
#define LOW2 0, 1, 8, 9, 4, 5, 12, 13
#define HIGH2 2, 3, 10, 11, 6, 7, 14, 15
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15
    for (int j = 0; j < 16; j += 2) SWAP(j, j + 1, LOW1, HIGH1)
    for (int h = 0; h < 16; h += 4) for (int j = h; j < h + 2; j++) SWAP(j, j + 2, LOW2, HIGH2)
    for (int h = 0; h < 16; h += 8) for (int j = h; j < h + 4; j++) SWAP(j, j + 4, LOW4, HIGH4)
    for (int j = 1; j < 16; j += 4) {  // words came as 0, 2, 1, 3
        word x = m[j];
        m[j] = m[j + 1];
        m[j + 1] = x;
    }
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

HD bool all_whole(const Chunks& c) {
    bool whole = c.count == WIDE;
    for (int j = 0; whole && j < WIDE; j++) whole = c.floats[j] == 256;
    return whole;
}

// Asks for what comes next while it works: one row is not beside the other, no core would foresee it.
HD void flush_whole(Chunks& c, const Chunks& coming) {
    word cv[8], m[16], most = word_of(0), counter = each_lane(c.counter), root = each_lane(c.root);
    first_cv(cv);
    for (u32 b = 0; b < 16; b++) {
        const u32* from[WIDE];
        for (int j = 0; j < coming.count; j++) PREFETCH(coming.from[j] + 16 * b);
        for (int j = 0; j < WIDE; j++) from[j] = c.from[j] + 16 * b;
        gather_block(m, from);
        for (int i = 0; i < 16; i++) most = most > m[i] << 1 ? most : m[i] << 1;
        compress(cv, m, counter, word_of(64), b == 0 ? word_of(CHUNK_START) : b == 15 ? root | CHUNK_END : word_of(0));
    }
    scatter_cvs(c.to, cv, WIDE);
    for (int j = 0; j < WIDE; j++) *c.flaw[j] |= most[j] >= 0xff000000u;
    c.count = 0;
}

// Compresses what waits.
ONCE void flush(Chunks& c, const Chunks& coming) {
    if (c.count == 0) return;
    if (all_whole(c)) return flush_whole(c, coming);
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
    Chunks pair[2], *older = &pair[0], *newer = &pair[1];  // what is compressed next, and what after it
    older->count = newer->count = 0;
    i64 per_token = 0;
    for (int p = 0; p < P; p++) per_token += chunks_of(points[p].width);
    i64 all = per_token * *T, first = all * share.index / share.count, end = all * (share.index + 1) / share.count, at = 0;
    auto finish = [&]() {
        flush(*older, *newer);
        flush(*newer, *older);
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
                if (newer->count == WIDE) {
                    flush(*older, *newer);
                    Chunks* empty = older;
                    older = newer, newer = empty;
                }
                int n = newer->count++;
                newer->from[n] = row + 256 * c;
                newer->to[n] = cvs + 8 * (used + c);
                newer->floats[n] = (u32)(c == chunks - 1 ? point.width - 256 * c : 256);
                newer->counter[n] = (u32)c;
                newer->root[n] = chunks == 1 ? ROOT : 0;
                newer->flaw[n] = mark;
            }
            used += chunks;
        }
    }
    finish();
}

KERNEL(blake3, u32* digest, u8* flaw, const Point* points, const i32* T, int P, int ld) {
    digest_rows(share, digest, flaw, points, T, P, ld, MOST_CHUNKS, [](Point, i64) {});
}
