// Copies whole pages: a fork's partial tail, swap between arenas, the pages a compression shares.
//
//   from, to    two arenas, which may be the same one
//   pairs       [2 · count]: page id in `from`, page id in `to`; no page is written twice, none that
//               is written is read
//
// Grid: any number of blocks. Block: headwise_copy_threads threads, no dynamic shared memory.
#include "format.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 256;
constexpr u32 CHUNKS = PAGE_BYTES / 16;
// Chunks a thread has under way before it stores the first.
constexpr u32 DEPTH = 4;

}  // namespace

extern "C" __device__ const u32 headwise_copy_threads = THREADS;
extern "C" __device__ const u32 headwise_copy_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_copy(const u8* from, u8* to, const u32* __restrict__ pairs, u32 count) {
    for (u32 pair = blockIdx.x; pair < count; pair += gridDim.x) {
        const uint4* const source = reinterpret_cast<const uint4*>(page_at(from, pairs[2 * pair]));
        uint4* const target = reinterpret_cast<uint4*>(page_at(to, pairs[2 * pair + 1]));
        for (u32 first = threadIdx.x; first < CHUNKS; first += THREADS * DEPTH) {
            uint4 held[DEPTH];
#pragma unroll
            for (u32 i = 0; i < DEPTH; ++i)
                if (first + i * THREADS < CHUNKS) held[i] = source[first + i * THREADS];
#pragma unroll
            for (u32 i = 0; i < DEPTH; ++i)
                if (first + i * THREADS < CHUNKS) target[first + i * THREADS] = held[i];
        }
    }
}
