// Moves slots: the survivors of an eviction into the holes that its victims leave.
//
//   pages     the page arena; page_ids [..]: page ids
//   heads     [grid.y]: where in page_ids the head's pages start, as they are read and as they are
//             written (the same, or copies made because others share the originals), and its first
//             move
//   moves     (from, to) slots of the head; no slot is an end twice, no source is a destination
//   counts    [grid.y]: the head's moves (headwise_select writes them)
//   scores, positions  by page, `stride` apart: see score.cuh. They move with their slots; either may
//             be null and is then left out
//
// Grid: x = any number of blocks, y = heads. Block: headwise_compact_threads threads, no dynamic
// shared memory. A warp moves one slot at a time, byte for byte: payloads in 16-byte chunks, then
// scales.
#include "score.cuh"

using namespace hw;

namespace {

struct Head {
    u32 read_pages;
    u32 written_pages;
    u32 first_move;
};

constexpr u32 THREADS = 128;

template <class S>
__device__ __forceinline__ void move_slot(const u8* from, u32 from_slot, u8* to, u32 to_slot,
                                          u32 lane) {
    const uint4* const source = reinterpret_cast<const uint4*>(S::payload(from, from_slot));
    uint4* const target = reinterpret_cast<uint4*>(S::payload(to, to_slot));
#pragma unroll
    for (u32 chunk = lane; chunk < S::CHUNKS; chunk += WARP) target[chunk] = source[chunk];
    if constexpr (S::SCALED) {
        if (lane < S::SCALE_GROUPS)
            reinterpret_cast<u16*>(S::scale(to, to_slot))[lane] =
                reinterpret_cast<const u16*>(S::scale(from, from_slot))[lane];
    }
}

}  // namespace

extern "C" __device__ const u32 headwise_compact_threads = THREADS;
extern "C" __device__ const u32 headwise_compact_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_compact(u8* pages, const u32* __restrict__ page_ids, const Head* __restrict__ heads,
                     const uint2* __restrict__ moves, const u32* __restrict__ counts,
                     u16* scores, u32* positions, u32 stride) {
    const Head head = heads[blockIdx.y];
    const u32 lane = threadIdx.x % WARP;
    const u32 warps = gridDim.x * (THREADS / WARP);
    const u32 count = counts[blockIdx.y];
    for (u32 i = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP; i < count; i += warps) {
        const uint2 move = moves[head.first_move + i];
        const u8* const from =
            page_at(const_cast<const u8*>(pages), page_ids[head.read_pages + move.x / PAGE_SLOTS]);
        u8* const to = page_at(pages, page_ids[head.written_pages + move.y / PAGE_SLOTS]);
        move_slot<Keys>(from, move.x % PAGE_SLOTS, to, move.y % PAGE_SLOTS, lane);
        move_slot<Values>(from, move.x % PAGE_SLOTS, to, move.y % PAGE_SLOTS, lane);
        if (lane == 0 && (scores || positions)) {
            const u64 source = datum_of(page_ids, head.read_pages, move.x, stride);
            const u64 target = datum_of(page_ids, head.written_pages, move.y, stride);
            if (scores) scores[target] = scores[source];
            if (positions) positions[target] = positions[source];
        }
    }
}
