// What a decode step adds to the scores at rest of KV-Compress (arXiv 2410.00161): Σ over the group of
// p², from the step's logits.
//
//   heads     [grid.y]: see Head
//   page_ids  [..]: page ids
//   tokens    [sequences]: tokens seen, this step's included; with head and slot they seed the dither
//   logits    [slots, GROUP] f32 as headwise_decode writes them
//   lse       [rows], natural logarithms
//   scores    by page, `stride` apart: see score.cuh
//   weight    what the step counts for: 1, or the number of steps of which one is scored
//
// Grid: x = any number of blocks, y = heads. Block: headwise_score_step_threads threads, no dynamic
// shared memory.
#include "score.cuh"

using namespace hw;

namespace {

struct Head {
    u32 pages;     // index in the page ids of the table's first page
    u32 slots;     // slots in use, the step's own included
    u32 logits;    // index in the logits of its slot 0
    u32 row;       // first of the GROUP rows in lse
    u32 head;      // its place among all heads of its sequence
    u32 sequence;  // index in the tokens
};

constexpr u32 THREADS = 256;

}  // namespace

extern "C" __device__ const u32 headwise_score_step_threads = THREADS;
extern "C" __device__ const u32 headwise_score_step_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_score_step(const Head* __restrict__ heads, const u32* __restrict__ page_ids,
                        const u32* __restrict__ tokens, const float* __restrict__ logits,
                        const float* __restrict__ lse, u16* __restrict__ scores, u32 stride,
                        float weight) {
    const Head head = heads[blockIdx.y];
    const u32 step = tokens[head.sequence];
    float norm[GROUP];
#pragma unroll
    for (u32 g = 0; g < GROUP; ++g) norm[g] = lse[head.row + g] * LOG2_E;
    for (u32 slot = blockIdx.x * THREADS + threadIdx.x; slot < head.slots;
         slot += gridDim.x * THREADS) {
        const float* const row = logits + static_cast<u64>(head.logits + slot) * GROUP;
        float x[GROUP];
        if constexpr (GROUP % 4 == 0) {
#pragma unroll
            for (u32 g = 0; g < GROUP; g += 4) {
                const float4 v = *reinterpret_cast<const float4*>(row + g);
                x[g] = v.x, x[g + 1] = v.y, x[g + 2] = v.z, x[g + 3] = v.w;
            }
        } else {
#pragma unroll
            for (u32 g = 0; g < GROUP; ++g) x[g] = row[g];
        }
        float sum = 0.0f;
#pragma unroll
        for (u32 g = 0; g < GROUP; ++g) sum += exp2_fast(2.0f * (x[g] - norm[g]));
        u16* const score = scores + datum_of(page_ids, head.pages, slot, stride);
        *score = accumulate(*score, weight * sum, dither(static_cast<u64>(head.head) << 32 | slot, step));
    }
}
