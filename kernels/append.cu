// Encodes new K and V rows into pages.
//
//   keys, values  [rows, D] of the IO format, a row per (token, KV head); rows may stand apart:
//                 key_stride and value_stride are in elements, multiples of 4
//   slots         [rows]: page id × PAGE_SLOTS + slot in the page; NO_SLOT skips the row
//   pages         the page arena
//   scores, positions  by page, `slot_stride` apart: see score.cuh. A new slot's score is zero, and its
//                 position row_positions[row]; either may be null and is then left out
//   total_saturated  one counter: values that the page's formats cannot hold are added to it. They are
//                 stored as the largest that the format holds, NaN as zero: nothing that is not finite
//
// Grid: any number of blocks. Block: headwise_append_threads threads, no dynamic shared memory.
// A warp takes a row at a time, four channels a lane. Rows must name different slots.
#include "append.cuh"
#include "score.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 128;
constexpr u64 NO_SLOT = ~0ull;

}  // namespace

extern "C" __device__ const u32 headwise_append_threads = THREADS;
extern "C" __device__ const u32 headwise_append_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_append(u8* __restrict__ pages, const u64* __restrict__ slots,
                    const u8* __restrict__ keys, const u8* __restrict__ values,
                    const u32* __restrict__ row_positions, u16* __restrict__ scores,
                    u32* __restrict__ positions, u32 slot_stride, u32 key_stride,
                    u32 value_stride, u32 rows, u64* __restrict__ total_saturated) {
    const u32 lane = threadIdx.x % WARP;
    const u32 warps = gridDim.x * (THREADS / WARP);
    u32 saturated = 0;
    for (u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP; row < rows; row += warps) {
        const u64 at = slots[row];
        if (at == NO_SLOT) continue;
        const u32 id = static_cast<u32>(at / PAGE_SLOTS);
        u8* const page = page_at(pages, id);
        const u32 slot = static_cast<u32>(at % PAGE_SLOTS);
        const u8* const key = keys + static_cast<u64>(row) * Io::payload(key_stride);
        const u8* const value = values + static_cast<u64>(row) * Io::payload(value_stride);
        saturated += store_row<Keys>(page, slot, key, lane);
        saturated += store_row<Values>(page, slot, value, lane);
        if (lane == 0) {
            const u64 datum = static_cast<u64>(id) * slot_stride + slot;
            if (scores) scores[datum] = 0;
            if (positions) positions[datum] = row_positions[row];
        }
    }
    count_saturated(total_saturated, saturated, lane);
}
