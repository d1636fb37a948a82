// What each page that a head could give up costs: the highest score that dies for it. The j-th page of
// a head, from 0, takes its evictable slots up to the (j · PAGE_SLOTS + h)-th lowest score with it, h
// the slots of its last page.
//
//   heads      [grid.x]: see Head
//   page_ids   [..]: page ids
//   scores     by page, `stride` apart (see score.cuh): bit patterns that sort like their values
//   positions  likewise; null when slot i is position i
//   costs      [grid.x, most]: scores, ascending
//   counts     [grid.x]: how many a head has: pages that its evictable slots fill, Head::most, `most`
//
// Grid: x = heads. Block: headwise_price_threads threads, no dynamic shared memory.
//
// One histogram over the high halves of the scores, then one over the low halves for each high half
// that a cost falls in: no sort and no temporary memory.
#include "scan.cuh"
#include "score.cuh"

using namespace hw;

namespace {

struct Head {
    u32 pages;       // index in the page ids of its first page
    u32 slots;       // slots in use
    u32 begin, end;  // positions that may die
    u32 most;        // pages that may go at most
};

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 BINS = 256;
static_assert(BINS == THREADS, "a thread a bin");

}  // namespace

extern "C" __device__ const u32 headwise_price_threads = THREADS;
extern "C" __device__ const u32 headwise_price_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_price(const Head* __restrict__ heads, const u32* __restrict__ page_ids,
                   const u16* __restrict__ scores, const u32* __restrict__ positions,
                   u16* __restrict__ costs, u32* __restrict__ counts, u32 most, u32 stride) {
    __shared__ u32 bins[WARPS][BINS];
    __shared__ u32 warp_sums[WARPS];
    // Slots in the bins before a bin, and up to and with the last one.
    __shared__ u32 high_before[BINS + 1], low_before[BINS + 1];

    const Head head = heads[blockIdx.x];
    const u32 warp = threadIdx.x / WARP;
    if (head.slots == 0 || head.most == 0) {
        if (threadIdx.x == 0) counts[blockIdx.x] = 0;
        return;
    }
    // Counts the evictable slots whose score's high half is `high` by their low half; all slots by
    // their high half if it is BINS.
    const auto count = [&](u32 high, u32 (&before)[BINS + 1]) {
        for (u32 w = 0; w < WARPS; ++w) bins[w][threadIdx.x] = 0;
        __syncthreads();
        for (u32 slot = threadIdx.x; slot < head.slots; slot += THREADS) {
            const u64 datum = datum_of(page_ids, head.pages, slot, stride);
            const u32 position = positions ? positions[datum] : slot;
            if (position < head.begin || position >= head.end) continue;
            const u32 score = scores[datum];
            if (high == BINS) {
                atomicAdd(&bins[warp][score >> 8], 1u);
            } else if (score >> 8 == high) {
                atomicAdd(&bins[warp][score % BINS], 1u);
            }
        }
        __syncthreads();
        u32 here = 0;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) here += bins[w][threadIdx.x];
        const u32 sum = exclusive_sum<WARPS>(here, warp_sums);
        before[threadIdx.x] = sum;
        if (threadIdx.x == BINS - 1) before[BINS] = sum + here;
        __syncthreads();
    };
    // The bin of the `rank`-th slot, from 0.
    const auto bin_of = [&](u32 rank, const u32 (&before)[BINS + 1]) {
        u32 low = 0, high = BINS;
        while (high - low > 1) {
            const u32 middle = (low + high) / 2;
            if (before[middle] <= rank) low = middle; else high = middle;
        }
        return low;
    };

    count(BINS, high_before);
    const u32 evictable = high_before[BINS];
    const u32 last = (head.slots - 1) % PAGE_SLOTS + 1;
    const u32 possible = evictable < last ? 0 : 1 + (evictable - last) / PAGE_SLOTS;
    const u32 pages = min(possible, min(head.most, most));
    u32 counted = BINS;
    for (u32 j = 0; j < pages; ++j) {
        const u32 rank = j * PAGE_SLOTS + last - 1;
        const u32 high = bin_of(rank, high_before);
        if (high != counted) {
            // The bins may be counted anew when all threads have used them.
            __syncthreads();
            count(high, low_before);
            counted = high;
        }
        if (threadIdx.x == 0) {
            const u32 low = bin_of(rank - high_before[high], low_before);
            costs[static_cast<u64>(blockIdx.x) * most + j] = static_cast<u16>(high << 8 | low);
        }
    }
    if (threadIdx.x == 0) counts[blockIdx.x] = pages;
}
