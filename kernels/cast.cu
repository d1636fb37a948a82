// f32 rows as the element that products read.
//
//   from  [grid.x, columns] f32
//   to    [grid.x, columns] of the output element
//
// Strides are from row to row, in values. Grid: x = rows, y = ⌈columns ÷ 4 threads⌉ or less. Block:
// headwise_cast_threads threads, no dynamic shared memory.
#include "rows.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 256;
using F32 = Element<0>;
using To = Element<HEADWISE_TO>;

template <u32 N>
__device__ __forceinline__ void part(const u8* from, u8* to, u32 columns) {
    const u32 step = N * THREADS * gridDim.y;
    for (u32 c = N * (blockIdx.y * THREADS + threadIdx.x); c < columns; c += step)
        To::store<N>(to, c, F32::load<N>(from, c));
}

}  // namespace

extern "C" __device__ const u32 headwise_cast_threads = THREADS;
extern "C" __device__ const u32 headwise_cast_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_cast(const u8* __restrict__ from, u32 from_stride, u8* __restrict__ to, u32 to_stride,
                  u32 columns, u32 wide) {
    const u64 row = blockIdx.x;
    const u8* const source = from + row * from_stride * F32::BYTES;
    u8* const target = to + row * to_stride * To::BYTES;
    if (wide) {
        part<4>(source, target, columns);
    } else {
        part<1>(source, target, columns);
    }
}
