// probe_host.cuh: digests and probe records by one pass of a core over the rows. The bits are those of blake3.cu and probe.cu.
//
// blake3_probe  what `blake3` and then `probe` write; arguments as there, shapes as there
//
// Order: that of probe.cu. A batch of rows is digested, then each of them measured while it is in the second-level cache.
// Include behind blake3.cu and probe.cu.
#pragma once
#include "lanes.cuh"

#define NEAR_CHUNKS 256  // of 1024 bytes: the rows of a batch

KERNEL(blake3_probe, u32* digest, u8* flaw, u32* record, const Point* points, const u64* seed, const i32* position,
       const i32* row, const i32* T, int P, int ld) {
    digest_rows(share, digest, flaw, points, T, P, ld, NEAR_CHUNKS, [&](Point point, i64 t) {
        probe_item(record, {point.rows, point.stride, point.width, point.column}, t, ld, seed, position, row);
    });
}
