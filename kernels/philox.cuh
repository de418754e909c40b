// philox.cuh: Philox4x32-10, a random word for every (seed, position) with no state between them.
//
// Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include "lanes.cuh"

struct u32x4 { u32 word[4]; };

// Ten rounds of counter under key; the key's low half is the published first key word.
HD u32x4 philox(u32x4 counter, u64 key) {
    u32 k0 = (u32)key, k1 = (u32)(key >> 32);
    u32 a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
    for (int round = 0; round < 10; round++) {
        u64 p = (u64)0xd2511f53u * a, q = (u64)0xcd9e8d57u * c;
        a = (u32)(q >> 32) ^ b ^ k0;
        b = (u32)q;
        c = (u32)(p >> 32) ^ d ^ k1;
        d = (u32)p;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {{a, b, c, d}};
}

// The r of sampling: word 1 * 2^32 + word 0 for the counter (position, 0, 0, 0).
HD u64 random_word(u64 seed, u32 position) {
    u32x4 r = philox({{position, 0, 0, 0}}, seed);
    return (u64)r.word[1] << 32 | r.word[0];
}
