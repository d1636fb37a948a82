// Decodes the slots of head tables into contiguous rows, in the order of the table.
//
//   pages       the page arena; page_ids [..]: page ids
//   tables      [grid.y]: a head table's first page in page_ids, its slots, and the row its slot 0
//               goes to
//   keys, values  [rows, D] of the IO format; either may be null and is then left out
//
// Grid: x = any number of blocks, y = tables. Block: headwise_gather_threads threads, no dynamic
// shared memory. A warp decodes a slot at a time, four channels a lane.
#include "format.cuh"

using namespace hw;

namespace {

struct Table {
    u32 pages;
    u32 slots;
    u32 row;
};

constexpr u32 THREADS = 128;

template <class S>
__device__ __forceinline__ void read_row(const u8* page, u32 slot, u8* row, u32 lane) {
#pragma unroll
    for (u32 first = 0; first < D; first += 4 * WARP) {
        const u32 channel = first + 4 * lane;
        if (channel < D)
            Io::store_4(row, nullptr, channel,
                        S::load_4(S::payload(page, slot), S::scale(page, slot), channel));
    }
}

}  // namespace

extern "C" __device__ const u32 headwise_gather_threads = THREADS;
extern "C" __device__ const u32 headwise_gather_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_gather(const u8* __restrict__ pages, const u32* __restrict__ page_ids,
                    const Table* __restrict__ tables, u8* __restrict__ keys,
                    u8* __restrict__ values) {
    const Table table = tables[blockIdx.y];
    const u32 lane = threadIdx.x % WARP;
    const u32 warps = gridDim.x * (THREADS / WARP);
    for (u32 slot = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP; slot < table.slots;
         slot += warps) {
        const u8* const page = page_at(pages, page_ids[table.pages + slot / PAGE_SLOTS]);
        const u64 row = static_cast<u64>(table.row + slot) * Io::payload(D);
        if (keys) read_row<Keys>(page, slot % PAGE_SLOTS, keys + row, lane);
        if (values) read_row<Values>(page, slot % PAGE_SLOTS, values + row, lane);
    }
}
