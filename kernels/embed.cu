// Rows of an embedding table by token, scaled.
//
//   ids     [grid.x] tokens
//   table   [table_rows, channels] of the input element, rows `table_stride` values apart
//   out     [grid.x, channels] f32, rows `out_stride` values apart: scale · table[id]; a row of NaN for an
//           id that the table does not have
//
// Grid: x = rows. Block: headwise_embed_threads threads, no dynamic shared memory.
#include "rows.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 256;
using From = Element<HEADWISE_FROM>;
using To = Element<0>;

template <u32 N>
__device__ __forceinline__ void row(const u8* from, u8* to, u32 channels, float scale) {
    for (u32 c = N * threadIdx.x; c < channels; c += N * THREADS) {
        Values<N> x = From::load<N>(from, c);
#pragma unroll
        for (u32 i = 0; i < N; ++i) x.v[i] *= scale;
        To::store<N>(to, c, x);
    }
}

}  // namespace

extern "C" __device__ const u32 headwise_embed_threads = THREADS;
extern "C" __device__ const u32 headwise_embed_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_embed(const u32* __restrict__ ids, const u8* __restrict__ table, u32 table_rows,
                   u32 table_stride, u8* __restrict__ out, u32 out_stride, u32 channels, float scale,
                   u32 wide) {
    const u32 id = ids[blockIdx.x];
    u8* const to = out + static_cast<u64>(blockIdx.x) * out_stride * To::BYTES;
    if (id >= table_rows) {
        for (u32 c = threadIdx.x; c < channels; c += THREADS)
            To::store<1>(to, c, {{not_a_number()}});
        return;
    }
    const u8* const from = table + static_cast<u64>(id) * table_stride * From::BYTES;
    if (wide) {
        row<4>(from, to, channels, scale);
    } else {
        row<1>(from, to, channels, scale);
    }
}
