// token: what is said of each drawn token, 4 words
//   0 its logprob   1 entropy in nats of the whole distribution at temperature 1   2 margin: its logit less the largest other
//   3 rank (u32): how many tokens are more likely, of equal ones those of lower id
//
//   record   (T,4) u32;  logits (T,V) f32, row stride ld
//   token    (T,) i32 and logprob (T,) f32, as `sample` gave them
//
// entropy = log(S) - U / S, S = sum e, U = sum e d, e = exp(d), d = logit - max; 0 where that is negative.
// Order of sums: tiles of 1024 tokens, each as lanes.cuh says, added in order. margin is 0 in a vocabulary of one.
// One item a row.
#include "lanes.cuh"
#include "math.cuh"
#include "ordered.cuh"

KERNEL(token, u32* record, const float* logits, const i32* token, const float* logprob, const i32* T, int V, int ld) {
    SCRATCH(float, e, 32);
    SCRATCH(float, d, 32);
    FOR_ITEMS(t, *T) {
        const float* x = logits + t * ld;
        int chosen = token[t];
        u32 first = ordered(x[chosen]), rest = 0, before = 0;
        FOR_LANES(v, chosen) {
            u32 u = ordered(x[v]);
            before += u >= first;
            rest = u > rest ? u : rest;
        }
        FOR_LANES(i, V - chosen - 1) {
            u32 u = ordered(x[chosen + 1 + i]);
            before += u > first;
            rest = u > rest ? u : rest;
        }
        u64 above = all_sum(before);
        rest = all_max(rest);
        float max = unordered(first > rest ? first : rest), S = 0.0f, U = 0.0f;
        for (int tile = 0; tile < V; tile += 1024) {
            lanes weight = zero(), weighted = zero();
            for (int v = tile; v < V && v < tile + 1024; v += 32) {
                int count = V - v < 32 ? V - v : 32;
                SYNC_LANES();
                FOR_LANES(i, 32) {
                    float below = i < count ? x[v + i] - max : 0.0f;
                    d[i] = below;
                    e[i] = i < count ? exponential(below) : 0.0f;
                }
                SYNC_LANES();
                lanes a = load((const float*)e);
                weight = add(weight, a);
                weighted = fma(a, load((const float*)d), weighted);
            }
            S = S + sum(weight);
            U = U + sum(weighted);
        }
        float entropy = logarithm(S) - U / S;
        if (LEADER) {
            u32* to = record + 4 * t;
            to[0] = bits(logprob[t]);
            to[1] = bits(entropy > 0.0f ? entropy : 0.0f);
            to[2] = rest ? bits(x[chosen] - unordered(rest)) : 0;
            to[3] = (u32)above;
        }
    }
}
