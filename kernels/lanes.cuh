// lanes.cuh: the target, which no kernel knows. One kernel source, two targets, the same bits.
//
// CUDA: a kernel's work is cut into items and a warp takes one item at a time.
// Host: a kernel's work is cut into items and a thread takes a contiguous share of them.
//
//   KERNEL(name, ...)       defines a kernel
//   ONCE                    a function that many kernels share: on a host its body is compiled once, not into each
//   FOR_ITEMS(i, total)     the items that fall to this warp (CUDA) or thread (host)
//   FOR_LANES(i, n)         i = 0..n-1, spread over the 32 threads of the warp (CUDA) or all of them (host);
//                           for element-wise work and order-free (integer) reductions, finished by all_*()
//   LEADER                  true in the one thread that writes an item's scalar
//   SCRATCH(T, name, n)     n values private to the item, seen by all of its lanes after SYNC_LANES()
//   lanes                   32 float32 accumulators: a register of each thread of a warp, or two 512-bit
//                           (four 256-bit) registers of a core. For sums whose order the contract fixes
//   slice                   lanes / SLICES: as many as one register of a core holds where registers are few, else all;
//                           get and set give its place in lanes
//   sum(lanes)              tree a[i] += a[i+h] for h = 16, 8, 4, 2, 1; then + (+0), so never -0
//   quarters(to, lanes)     four sums of eight neighbours each: the tree's last three levels
//   flip(slice, signs, i)   changes the sign where the bit of `signs` for that lane of slice i is set
//   tally_below, tally_above  count 32 comparisons with a number; counted() gives what came together, to all lanes
//   reaching                such comparisons as the bits of a word that all lanes see
//
// Floating point: every operation rounds once, to nearest even, subnormals kept; the flags forbid
// contraction, so fma() happens where it is written and nowhere else. There is no float64 fma
// (a machine without the instruction has none that is both exact and fast).
#pragma once

#ifdef __CUDACC_RTC__
typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
#else
#include <stdint.h>
#include <string.h>
typedef int8_t i8;
typedef uint8_t u8;
typedef int16_t i16;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;
#endif
struct bf16 { u16 bits; };  // storage types: widened exactly, never computed with
struct f16 { u16 bits; };
typedef float f32;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define ON_CUDA 1
#include "lanes_cuda.cuh"
#else
#include "lanes_host.cuh"
#endif
