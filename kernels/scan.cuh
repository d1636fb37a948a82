// Sums over the threads of a block.
#pragma once
#include "intrin.cuh"

namespace hw {

// The sum of `v` over the threads of the block before this one. All WARPS × 32 threads call it.
template <u32 WARPS>
__device__ __forceinline__ u32 exclusive_sum(u32 v, u32* warp_sums) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 sum = v;
#pragma unroll
    for (u32 d = 1; d < WARP; d *= 2) {
        const u32 before = __shfl_up_sync(ALL, sum, d);
        if (lane >= d) sum += before;
    }
    if (lane == WARP - 1) warp_sums[warp] = sum;
    __syncthreads();
    u32 base = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w)
        if (w < warp) base += warp_sums[w];
    __syncthreads();
    return base + sum - v;
}

}  // namespace hw
