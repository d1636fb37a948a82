// The scores of KV-Compress (arXiv 2410.00161) from the sums of headwise_score: per query head the
// maximum of seven neighbouring positions, the sum over the group, rounded to the 16 bits of a score
// at rest.
//
//   heads         [grid.y]: see Head
//   page_ids      [..]: page ids
//   sums          [slots, GROUP] f32
//   order         the slots of each table by position; null when they are in that order already
//   scores        by page, `stride` apart: see score.cuh
//
// Grid: x = any number of blocks, y = heads. Block: headwise_score_pool_threads threads, no dynamic
// shared memory.
#include "score.cuh"

using namespace hw;

namespace {

struct Head {
    u32 pages;  // index in the page ids of the table's first page
    u32 slots;  // slots in use
    u32 sums;   // index in the sums and in the order of its slot 0
};

constexpr u32 POOL = 7;
constexpr u32 THREADS = 256;

}  // namespace

extern "C" __device__ const u32 headwise_score_pool_threads = THREADS;
extern "C" __device__ const u32 headwise_score_pool_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_score_pool(const Head* __restrict__ heads, const u32* __restrict__ page_ids,
                        const float* __restrict__ sums, const u32* __restrict__ order,
                        u16* __restrict__ scores, u32 stride) {
    const Head head = heads[blockIdx.y];
    const auto slot_at = [&](u32 rank) { return order ? order[head.sums + rank] : rank; };
    for (u32 rank = blockIdx.x * THREADS + threadIdx.x; rank < head.slots;
         rank += gridDim.x * THREADS) {
        const u32 begin = rank < POOL / 2 ? 0 : rank - POOL / 2;
        const u32 end = min(rank + POOL / 2 + 1, head.slots);
        float most[GROUP];
#pragma unroll
        for (u32 g = 0; g < GROUP; ++g) most[g] = 0.0f;
        for (u32 near = begin; near < end; ++near) {
            const float* const row = sums + static_cast<u64>(head.sums + slot_at(near)) * GROUP;
#pragma unroll
            for (u32 g = 0; g < GROUP; ++g) most[g] = fmaxf(most[g], row[g]);
        }
        float sum = 0.0f;
#pragma unroll
        for (u32 g = 0; g < GROUP; ++g) sum += most[g];
        scores[datum_of(page_ids, head.pages, slot_at(rank), stride)] = quantize(sum);
    }
}
