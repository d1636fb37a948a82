// Joins the partial results of work items that share a query group.
//
//   merges       [grid.x]: for each query group with partials, its first query row, its first
//                partial and how many there are (they follow one another; none gives zeros);
//                NO_QUERY pads a launch of fixed size and does nothing
//   partial_out  [partials, GROUP, D] f32; partial_lse [partials, GROUP], base 2
//   out          [rows, D] of the IO format; lse [rows], natural logarithm
//
// Grid: x = merges, y = GROUP. Block: headwise_merge_threads threads, no dynamic shared memory.
// out = Σ 2^(lse_i − lse) · out_i: partials of no slots, whose lse is minus infinity, drop out.
#include "format.cuh"

using namespace hw;

namespace {

struct Merge {
    u32 query;
    u32 first;
    u32 count;
};

constexpr u32 NO_QUERY = 0xffffffffu;
constexpr u32 THREADS = D / 4 < WARP ? WARP : ceil_div(D / 4, WARP) * WARP;

}  // namespace

extern "C" __device__ const u32 headwise_merge_threads = THREADS;
extern "C" __device__ const u32 headwise_merge_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    headwise_merge(const Merge* __restrict__ merges, const float* __restrict__ partial_out,
                   const float* __restrict__ partial_lse, u8* __restrict__ out,
                   float* __restrict__ lse) {
    const Merge merge = merges[blockIdx.x];
    const u32 head = blockIdx.y;
    const u32 channel = 4 * threadIdx.x;
    if (channel >= D || merge.query == NO_QUERY) return;

    float top = LOWEST;
    for (u32 i = 0; i < merge.count; ++i)
        top = fmaxf(top, partial_lse[static_cast<u64>(merge.first + i) * GROUP + head]);
    float sum = 0.0f;
    float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (u32 i = 0; i < merge.count; ++i) {
        const u64 from = static_cast<u64>(merge.first + i) * GROUP + head;
        const float weight = exp2_fast(partial_lse[from] - top);
        const float4 v = *reinterpret_cast<const float4*>(partial_out + from * D + channel);
        sum += weight;
        o.x += weight * v.x, o.y += weight * v.y, o.z += weight * v.z, o.w += weight * v.w;
    }
    const float inverse = sum == 0.0f ? 0.0f : divide(1.0f, sum);
    o.x *= inverse, o.y *= inverse, o.z *= inverse, o.w *= inverse;
    const u64 row = merge.query + head;
    Io::store_4(out + row * Io::payload(D), nullptr, channel, o);
    if (channel == 0) lse[row] = sum == 0.0f ? -infinity() : (top + log2_fast(sum)) * LN_2;
}
