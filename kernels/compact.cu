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
// shared memory. A warp moves one slot at a time, byte for byte: first it reads all of K, V and their
// scales, payloads in 16-byte chunks, then it writes them.
#include "score.cuh"

using namespace hw;

namespace {

struct Head {
    u32 read_pages;
    u32 written_pages;
    u32 first_move;
};

constexpr u32 THREADS = 128;

// Chunks of K, then of V; how many of them a lane has.
constexpr u32 CHUNKS = Keys::CHUNKS + Values::CHUNKS;
constexpr u32 MINE = ceil_div(CHUNKS, WARP);
constexpr u32 KEY_SCALES = Keys::SCALED ? Keys::SCALE_GROUPS : 0;
constexpr u32 SCALES = KEY_SCALES + (Values::SCALED ? Values::SCALE_GROUPS : 0);
static_assert(SCALES <= WARP, "a lane a scale");

// Where a chunk or a scale of a slot is.
template <class P>
__device__ __forceinline__ P* chunk_at(P* page, u32 slot, u32 chunk) {
    return chunk < Keys::CHUNKS ? Keys::payload(page, slot) + 16 * chunk
                                : Values::payload(page, slot) + 16 * (chunk - Keys::CHUNKS);
}
template <class P>
__device__ __forceinline__ P* scale_at(P* page, u32 slot, u32 group) {
    return group < KEY_SCALES ? Keys::scale(page, slot) + 2 * group
                              : Values::scale(page, slot) + 2 * (group - KEY_SCALES);
}

template <u32 SCALES>
__device__ __forceinline__ void move_slot(const u8* from, u32 from_slot, u8* to, u32 to_slot,
                                          u32 lane) {
    uint4 held[MINE];
#pragma unroll
    for (u32 i = 0; i < MINE; ++i)
        if (lane + i * WARP < CHUNKS)
            held[i] = *reinterpret_cast<const uint4*>(chunk_at(from, from_slot, lane + i * WARP));
    u16 scale = 0;
    if constexpr (SCALES > 0)
        if (lane < SCALES) scale = *reinterpret_cast<const u16*>(scale_at(from, from_slot, lane));
#pragma unroll
    for (u32 i = 0; i < MINE; ++i)
        if (lane + i * WARP < CHUNKS)
            *reinterpret_cast<uint4*>(chunk_at(to, to_slot, lane + i * WARP)) = held[i];
    if constexpr (SCALES > 0)
        if (lane < SCALES) *reinterpret_cast<u16*>(scale_at(to, to_slot, lane)) = scale;
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
        move_slot<SCALES>(from, move.x % PAGE_SLOTS, to, move.y % PAGE_SLOTS, lane);
        if (lane == 0 && (scores || positions)) {
            const u64 source = datum_of(page_ids, head.read_pages, move.x, stride);
            const u64 target = datum_of(page_ids, head.written_pages, move.y, stride);
            if (scores) scores[target] = scores[source];
            if (positions) positions[target] = positions[source];
        }
    }
}
