// What the planner hands to the attention kernels, and how they walk it.
#pragma once
#include "format.cuh"

namespace hw {

constexpr u32 NO_PARTIAL = 0xffffffffu;

// A range of the pages of one (sequence, KV head), for the query group that reads it.
struct __align__(8) WorkItem {
    u32 query;    // first of GROUP rows in queries, outputs and log-sum-exps
    u32 pages;    // index in the page ids of the first page of the range
    u32 slots;    // slots in use in the range, from slot 0 of its first page; may be 0
    u32 partial;  // which partial result to write; NO_PARTIAL writes the output itself
    u32 logits;   // index in the logits of the range's first slot (kernels built with logits)
    u32 reserved;
};

// The tiles of `slots` slots, page after page: a page's last tile may be a short one.
__device__ __forceinline__ u32 tiles_of(u32 slots) {
    return slots / PAGE_SLOTS * PAGE_TILES + ceil_div(slots % PAGE_SLOTS, TILE);
}

struct TileAt {
    u32 page;   // which page of the range
    u32 first;  // its first slot in that page
    u32 valid;  // slots in use
    __device__ __forceinline__ TileAt(u32 tile, u32 slots)
        : page(tile / PAGE_TILES), first(tile % PAGE_TILES * TILE) {
        valid = min(min(TILE, PAGE_SLOTS - first), slots - page * PAGE_SLOTS - first);
    }
    // Counted from the first slot of the range.
    __device__ __forceinline__ u32 slot() const { return page * PAGE_SLOTS + first; }
};

// Query heads that one matrix product takes together.
constexpr u32 ROWS = min_of(GROUP, 16);
// Up to eight rows leave half of the operand free: it holds what rounding took from the first half,
// so that queries and probabilities keep twice the bits at no cost.
constexpr bool PACKED = ROWS <= 8;
constexpr u32 SETS = PACKED ? 1 : 2;
constexpr u32 HALVES = PACKED ? 1 : 2;

// Operand rows of two groups of values: of row `lane / 4`, and of row `lane / 4 + 8` if not packed.
template <class M>
__device__ __forceinline__ void operand(const float (&v)[HALVES][NT][2], u32 (&a)[SETS][4]) {
#pragma unroll
    for (u32 n = 0; n < NT; ++n) {
        if constexpr (PACKED) {
            split<M>(v[0][n][0], v[0][n][1], a[0][2 * n], a[0][2 * n + 1]);
        } else {
#pragma unroll
            for (u32 half = 0; half < HALVES; ++half)
                split<M>(v[half][n][0], v[half][n][1], a[0][2 * n + half], a[1][2 * n + half]);
        }
    }
}

// Bytes of the query operands of a group in shared memory.
constexpr u32 QUERY_BYTES = SETS * STEPS * WARP * 16;

// Writes the operands of `rows` query rows, scaled, by a whole block.
template <u32 THREADS>
__device__ __forceinline__ void stage_queries(uint4* to, const u8* queries, u32 rows,
                                              float factor) {
    for (u32 at = threadIdx.x; at < STEPS * WARP; at += THREADS) {
        const u32 step = at / WARP, lane = at % WARP;
        float v[HALVES][NT][2];
#pragma unroll
        for (u32 half = 0; half < HALVES; ++half)
#pragma unroll
            for (u32 n = 0; n < NT; ++n)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    const u32 row = lane / 4 + 8 * half;
                    const u32 channel =
                        step * STEP + Keys::key_channel(lane % 4 * 2 + e + 8 * n);
                    v[half][n][e] =
                        row < rows
                            ? Io::load_1(queries + row * Io::payload(D), channel) * factor
                            : 0.0f;
                }
        u32 a[SETS][4];
        operand<Keys::Mma>(v, a);
#pragma unroll
        for (u32 set = 0; set < SETS; ++set)
            to[set * STEPS * WARP + at] = make_uint4(a[set][0], a[set][1], a[set][2], a[set][3]);
    }
}

}  // namespace hw
