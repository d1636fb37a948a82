// Which slots of each head die, and the moves that close the gaps: the `dying` lowest evictable
// slots, equal scores by position, the lowest first.
//
//   heads      [grid.x]: see Head
//   page_ids   [..]: page ids
//   scores     by page, `stride` apart (see score.cuh): bit patterns that sort like their values
//   positions  likewise; null when slot i is position i
//   moves      (from, to) slots of the head, both ascending: survivors behind the head's new end,
//              and victims before it
//   counts     [grid.x]: how many
//
// Grid: x = heads. Block: headwise_select_threads threads, no dynamic shared memory.
//
// A radix selection over (score, position): 256 bins a pass, six passes at most, no sort and no
// temporary memory. A head must have at least `dying` evictable slots.
#include "scan.cuh"
#include "score.cuh"

using namespace hw;

namespace {

struct Head {
    u32 pages;        // index in the page ids of its first page
    u32 slots;        // slots in use
    u32 begin, end;   // positions that may die
    u32 dying;        // slots to give up
    u32 first_move;   // index in moves
};

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 BINS = 256;
static_assert(BINS == THREADS, "a thread a bin");
// 16 bits of score above 32 bits of position.
constexpr u32 KEY_BITS = 48;

}  // namespace

extern "C" __device__ const u32 headwise_select_threads = THREADS;
extern "C" __device__ const u32 headwise_select_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_select(const Head* __restrict__ heads, const u32* __restrict__ page_ids,
                    const u16* __restrict__ scores, const u32* __restrict__ positions,
                    uint2* __restrict__ moves, u32* __restrict__ counts, u32 stride) {
    __shared__ u32 bins[WARPS][BINS];
    __shared__ u32 warp_sums[WARPS];
    __shared__ u32 found_bin, found_before, found_count;

    const Head head = heads[blockIdx.x];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (head.dying == 0) {
        if (threadIdx.x == 0) counts[blockIdx.x] = 0;
        return;
    }
    const auto datum = [&](u32 slot) { return datum_of(page_ids, head.pages, slot, stride); };
    const auto position_of = [&](u32 slot) { return positions ? positions[datum(slot)] : slot; };
    const auto key_of = [&](u32 slot, u32 position) {
        return static_cast<u64>(scores[datum(slot)]) << 32 | position;
    };
    const auto evictable = [&](u32 position) {
        return position >= head.begin && position < head.end;
    };

    // Bits of the last victim's key found so far, and how many victims share them.
    u64 prefix = 0;
    u32 left = head.dying;
    u32 shift = KEY_BITS;
    bool all = false;
    while (shift > 0 && !all) {
        shift -= 8;
        for (u32 w = 0; w < WARPS; ++w) bins[w][threadIdx.x] = 0;
        __syncthreads();
        for (u32 slot = threadIdx.x; slot < head.slots; slot += THREADS) {
            const u32 position = position_of(slot);
            if (!evictable(position)) continue;
            const u64 key = key_of(slot, position);
            if (key >> shift >> 8 == prefix)
                atomicAdd(&bins[warp][static_cast<u32>(key >> shift) % BINS], 1u);
        }
        __syncthreads();
        u32 count = 0;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) count += bins[w][threadIdx.x];
        const u32 before = exclusive_sum<WARPS>(count, warp_sums);
        if (before < left && left <= before + count) {
            found_bin = threadIdx.x;
            found_before = before;
            found_count = count;
        }
        __syncthreads();
        prefix = prefix << 8 | found_bin;
        left -= found_before;
        // The whole bin dies: the bits below no longer matter.
        all = left == found_count;
        __syncthreads();
    }
    const auto dies = [&](u32 slot) {
        const u32 position = position_of(slot);
        return evictable(position) && key_of(slot, position) >> shift <= prefix;
    };

    const u32 after = head.slots - head.dying;
    const auto list = [&](u32 begin, u32 end, bool victims, bool to) {
        u32 written = 0;
        for (u32 first = begin; first < end; first += THREADS) {
            const u32 slot = first + threadIdx.x;
            const bool member = slot < end && dies(slot) == victims;
            const u32 ballot = __ballot_sync(ALL, member);
            if (lane == 0) warp_sums[warp] = __popc(ballot);
            __syncthreads();
            u32 at = written + __popc(ballot & ((1u << lane) - 1));
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) {
                if (w < warp) at += warp_sums[w];
                written += warp_sums[w];
            }
            if (member) {
                uint2* const move = moves + head.first_move + at;
                (to ? move->y : move->x) = slot;
            }
            __syncthreads();
        }
        return written;
    };
    list(0, after, true, true);
    const u32 count = list(after, head.slots, false, false);
    if (threadIdx.x == 0) counts[blockIdx.x] = count;
}
