// sample: draws a token from a row of logits, in integers; and its log-probability at temperature 1
//
//   logits       (T,V) f32, row stride ld
//   temperature  (T,) f32, 0: argmax;  top_k (T,) i32, 0: all;  top_p (T,) u64 in 2^-32, 2^32: all;  seed (T,) u64
//   row, position   the draw of logits row t is at position[row[t]], the position of the token that was fed
//   weight       (T,V) u32 scratch; of a core (threads,V)
//   token        (T,) i32;  logprob (T,) f32
//
//   u[v] = rint(exp((logits[v] - max) / temperature) * 2^31)
//   candidates: the top_k largest (logit, lowest id); of them the shortest prefix with sum u >= ceil(top_p * S / 2^32), at least one
//   r = word1 << 32 | word0 of Philox4x32-10, key seed, counter (position, 0, 0, 0);  target = (r * S') >> 64
//   token = the first candidate in id order whose cumulative u exceeds target
//   logprob = (logits[token] - max) - log(float(S1) * 2^-31), S1 = sum u at temperature 1
//
// All sums are over integers and have no order. Selection needs no sort: candidates are ranked by the unique
// key ordered(logit) << 32 | ~id, and a threshold on it is found bit by bit. One item a row.
#include "lanes.cuh"
#include "math.cuh"
#include "ordered.cuh"
#include "philox.cuh"

HD u32 weigh(float x) {
    float y = exponential(x) * 0x1p31f;
    return (u32)(y < 0x1p23f ? (y + 0x1p23f) - 0x1p23f : y);  // from 2^23 on a float is an integer
}
HD u64 rank_key(float logit, int id) { return (u64)ordered(logit) << 32 | (0xffffffffu - (u32)id); }

// The largest threshold whose candidates {key >= threshold} weigh at least `need`; weight(v) is that of one.
template <class F> HD u64 threshold(const float* logits, int V, u64 floor, u64 need, F weight) {
    u64 found = 0;
    for (int bit = 63; bit >= 0; bit--) {
        u64 trial = found | 1ull << bit, total = 0;
        FOR_LANES(v, V) {
            u64 key = rank_key(logits[v], v);
            total += key >= trial && key >= floor ? weight(v) : 0;
        }
        if (all_sum(total) >= need) found = trial;
    }
    return found > floor ? found : floor;
}

// What the candidates of `count` ids weigh; all are candidates where the floor is 0.
HD u64 mass(const float* logits, const u32* u, int begin, int count, u64 floor) {
    u64 total = 0;
    if (!floor) FOR_LANES(i, count) total += u[begin + i];
    else FOR_LANES(i, count) total += rank_key(logits[begin + i], begin + i) >= floor ? u[begin + i] : 0;
    return all_sum(total);
}

KERNEL(sample, i32* token, float* logprob, u32* weight, const float* logits, const float* temperature, const i32* top_k,
       const u64* top_p, const u64* seed, const i32* row, const i32* position, const i32* T, int V, int ld) {
    FOR_ITEMS(t, *T) {
        const float* x = logits + t * ld;
        u64 best = 0;
        FOR_LANES(v, V) { u64 key = rank_key(x[v], v); best = key > best ? key : best; }
        best = all_max(best);
        float max = unordered((u32)(best >> 32));
#ifdef ON_CUDA
        u32* u = weight + t * V;
#else
        u32* u = weight + (i64)share.thread * V;
#endif
        FOR_LANES(v, V) u[v] = weigh(x[v] - max);
        SYNC_LANES();
        u64 unit = mass(x, u, 0, V, 0);
        SYNC_LANES();
        int chosen = (int)(0xffffffffu - (u32)best);
        if (temperature[t] != 0.0f) {
            float heat = temperature[t];
            FOR_LANES(v, V) u[v] = weigh((x[v] - max) / heat);
            SYNC_LANES();
            u64 floor = 0;
            if (top_k[t] > 0 && top_k[t] < V) floor = threshold(x, V, 0, (u64)top_k[t], [](int) { return (u64)1; });
            u64 total = mass(x, u, 0, V, floor);
            if (top_p[t] < 1ull << 32) {
                u64 high = mul_high(top_p[t], total), low = top_p[t] * total;
                u64 need = (high << 32 | low >> 32) + ((low & 0xffffffffu) != 0);
                if (need == 0) floor = best;
                else floor = threshold(x, V, floor, need, [u](int v) { return (u64)u[v]; });
                total = mass(x, u, 0, V, floor);
            }
            u64 target = mul_high(random_word(seed[t], (u32)position[row[t]]), total), below = 0;
            int span = 1;
            while (span < V) span *= 2;
            chosen = 0;  // the largest prefix of ids that weighs at most target
            for (; span > 0; span /= 2) {
                int end = chosen + span;
                if (end > V) continue;
                u64 part = mass(x, u, chosen, span, floor);
                if (below + part <= target) { below += part; chosen = end; }
            }
        }
        if (chosen >= V) chosen = V - 1;  // logits of which none is finite: the run ends, but nothing is read past them
        if (LEADER) {
            token[t] = chosen;
            logprob[t] = (x[chosen] - max) - logarithm((float)unit * 0x1p-31f);
        }
    }
}
