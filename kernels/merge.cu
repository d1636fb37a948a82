// Joins the partial results of work items that share a query group.
//
//   merges       [grid.x]: for each query group with partials, its first query row, its first
//                partial and how many there are (they follow one another; none gives zeros);
//                NO_QUERY pads a launch of fixed size and does nothing
//   partial_out  [partials, GROUP, D] f32; partial_lse [partials, GROUP], base 2
//   out          [rows, D] of the IO format; lse [rows], natural logarithm
//   sink_logits  [heads]: a logit without a value for each query head of a token, which joins here; row r
//                is of head r % heads (only with HEADWISE_SINK_LOGITS)
//
// Grid: x = merges, y = GROUP. Block: headwise_merge_threads threads, no dynamic shared memory.
// out = Σ 2^(lse_i − lse) · out_i: partials of no slots, whose lse is minus infinity, drop out.
//
// A merge is a chain of few, small loads, so what counts is how many are under way: each lane reads the
// log-sum-exp of a partial, and the loop over partials, whose loads wait for nothing, is unrolled.
#include "format.cuh"

using namespace hw;

namespace {

struct Merge {
    u32 query;
    u32 first;
    u32 count;
};

constexpr u32 NO_QUERY = 0xffffffffu;
// Four channels a thread, in whole warps.
constexpr u32 THREADS = ceil_div(D / 4, WARP) * WARP;

}  // namespace

extern "C" __device__ const u32 headwise_merge_threads = THREADS;
extern "C" __device__ const u32 headwise_merge_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    headwise_merge(const Merge* __restrict__ merges, const float* __restrict__ partial_out,
                   const float* __restrict__ partial_lse, u8* __restrict__ out,
                   float* __restrict__ lse
#ifdef HEADWISE_SINK_LOGITS
                   ,
                   const float* __restrict__ sink_logits, u32 heads
#endif
    ) {
    const Merge merge = merges[blockIdx.x];
    const u32 head = blockIdx.y;
    if (merge.query == NO_QUERY) return;
    const u32 lane = threadIdx.x % WARP, channel = 4 * threadIdx.x;
    const auto lse_of = [&](u32 i) {
        return i < merge.count
                   ? partial_lse[static_cast<u64>(merge.first + i) * GROUP + head]
                   : -infinity();
    };

    float top = LOWEST;
    for (u32 i = lane; i < merge.count; i += WARP) top = fmaxf(top, lse_of(i));
#pragma unroll
    for (u32 lanes = 1; lanes < WARP; lanes *= 2)
        top = fmaxf(top, __shfl_xor_sync(ALL, top, lanes));

    float sum = 0.0f;
#ifdef HEADWISE_SINK_LOGITS
    const float sink = sink_logits[(merge.query + head) % heads] * LOG2_E;
    top = fmaxf(top, sink);
    sum = exp2_fast(sink - top);
#endif
    float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    // 32 partials at a time, the weight of each in one lane.
    for (u32 first = 0; first < merge.count; first += WARP) {
        const float mine = exp2_fast(lse_of(first + lane) - top);
        const u32 here = min(merge.count - first, WARP);
#pragma unroll 8
        for (u32 i = 0; i < here; ++i) {
            const float weight = __shfl_sync(ALL, mine, i);
            sum += weight;
            if (channel >= D) continue;
            const u64 from = static_cast<u64>(merge.first + first + i) * GROUP + head;
            const float4 v = *reinterpret_cast<const float4*>(partial_out + from * D + channel);
            o.x += weight * v.x, o.y += weight * v.y, o.z += weight * v.z, o.w += weight * v.w;
        }
    }
    if (channel >= D) return;
    const float inverse = sum == 0.0f ? 0.0f : divide(1.0f, sum);
    o.x *= inverse, o.y *= inverse, o.z *= inverse, o.w *= inverse;
    const u64 row = merge.query + head;
    Io::store_4(out + row * Io::payload(D), nullptr, channel, o);
    if (channel == 0) lse[row] = sum == 0.0f ? -infinity() : (top + log2_fast(sum)) * LN_2;
}
