// Encodes the K and V rows of one decode step where the work items end, and counts them there: the host
// plans once, then several steps run from what the device knows.
//
//   pages         the page arena; page_ids [..]: page ids, with the pages of the steps to come
//   items [..]    the work of headwise_decode
//   growing       [rows]: which item holds the end of the row's head; all different
//   tokens        [sequences]: tokens seen, this step's included
//   keys, values  rows of D values of the IO format: head h of sequence s is row s × heads + h and
//                 starts at element s × stride + h × D; stride is a multiple of 4
//   score_heads   [rows]: heads of headwise_score_step, which are counted too; may be null
//   scores, positions  by page, `slot_stride` apart: see score.cuh. The new slot's score is zero and
//                 its position the sequence's newest; either may be null and is then left out
//   advance       1: the items' slots do not have the new slot yet and are counted; 0: another launch
//                 of this step counted it (layers that share their tables)
//   total_saturated  one counter: values that the page's formats cannot hold are added to it. They are
//                 stored as the largest that the format holds, NaN as zero: nothing that is not finite
//
// Grid: any number of blocks. Block: headwise_append_step_threads threads, no dynamic shared memory.
// A warp takes a row at a time, four channels a lane.
#include "append.cuh"
#include "score.cuh"
#include "work.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 128;

// The head of headwise_score_step.
struct ScoreHead {
    u32 pages;
    u32 slots;
    u32 logits;
    u32 row;
    u32 head;
    u32 sequence;
};

}  // namespace

extern "C" __device__ const u32 headwise_append_step_threads = THREADS;
extern "C" __device__ const u32 headwise_append_step_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_append_step(u8* __restrict__ pages, const u32* __restrict__ page_ids,
                         WorkItem* __restrict__ items, const u32* __restrict__ growing,
                         const u32* __restrict__ tokens, const u8* __restrict__ keys,
                         const u8* __restrict__ values, ScoreHead* __restrict__ score_heads,
                         u16* __restrict__ scores, u32* __restrict__ positions, u32 slot_stride,
                         u32 stride, u32 heads, u32 rows, u32 advance,
                         u64* __restrict__ total_saturated) {
    const u32 lane = threadIdx.x % WARP;
    const u32 warps = gridDim.x * (THREADS / WARP);
    u32 saturated = 0;
    for (u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP; row < rows; row += warps) {
        WorkItem* const item = items + growing[row];
        const u32 at = item->slots - (advance ? 0 : 1);
        const u32 id = page_ids[item->pages + at / PAGE_SLOTS];
        u8* const page = page_at(pages, id);
        const u32 slot = at % PAGE_SLOTS;
        const u32 sequence = row / heads;
        const u64 from = Io::payload(1) * (static_cast<u64>(sequence) * stride + row % heads * D);
        saturated += store_row<Keys>(page, slot, keys + from, lane);
        saturated += store_row<Values>(page, slot, values + from, lane);
        // All lanes have read the item.
        __syncwarp();
        if (lane == 0) {
            if (advance) {
                item->slots = at + 1;
                if (score_heads) ++score_heads[row].slots;
            }
            const u64 datum = static_cast<u64>(id) * slot_stride + slot;
            if (scores) scores[datum] = 0;
            if (positions) positions[datum] = tokens[sequence] - 1;
        }
    }
    count_saturated(total_saturated, saturated, lane);
}
