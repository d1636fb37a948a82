// Root-mean-square norms (Zhang and Sennrich 2019) of the residual stream, with what is added to it before.
//
//   y       null, or [grid.x, channels] f32 that x grows by; with `post` [channels] f32, by norm(y) · post
//   x       [x_rows, channels] f32, the residual stream: written only where there is a y
//   picks   null, or [grid.x]: which row of x each row is of; without a y only. A row that x does not have
//           gives a row of NaN
//   weight  [channels] f32
//   out     null, or [grid.x, channels] of the output element: norm(x) · weight, x after it grew
//
// norm(x) = x / √(mean(x²) + epsilon). Strides are from row to row, in values.
//
// Grid: x = rows. Block: headwise_rms_norm_threads threads, no dynamic shared memory.
#include "rows.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 256;
using F32 = Element<0>;
using To = Element<HEADWISE_TO>;

template <u32 N>
__device__ __forceinline__ float squares(const u8* row, u32 channels) {
    float sum = 0.0f;
    for (u32 c = N * threadIdx.x; c < channels; c += N * THREADS) {
        const Values<N> x = F32::load<N>(row, c);
#pragma unroll
        for (u32 i = 0; i < N; ++i) sum += x.v[i] * x.v[i];
    }
    return block_sum<THREADS>(sum);
}

// Each thread reads again only what it wrote itself.
template <u32 N>
__device__ __forceinline__ void row(const u8* y, const u8* post, u8* x, const u8* weight, u8* out,
                                    u32 channels, float epsilon) {
    if (y) {
        const float scale =
            post ? inverse_rms(squares<N>(y, channels), channels, epsilon) : 1.0f;
        for (u32 c = N * threadIdx.x; c < channels; c += N * THREADS) {
            Values<N> sum = F32::load<N>(x, c);
            const Values<N> more = F32::load<N>(y, c);
            Values<N> factor;
#pragma unroll
            for (u32 i = 0; i < N; ++i) factor.v[i] = 1.0f;
            if (post) factor = F32::load<N>(post, c);
#pragma unroll
            for (u32 i = 0; i < N; ++i) sum.v[i] += more.v[i] * scale * factor.v[i];
            F32::store<N>(x, c, sum);
        }
    }
    if (!out) return;
    const float scale = inverse_rms(squares<N>(x, channels), channels, epsilon);
    for (u32 c = N * threadIdx.x; c < channels; c += N * THREADS) {
        Values<N> v = F32::load<N>(x, c);
        const Values<N> factor = F32::load<N>(weight, c);
#pragma unroll
        for (u32 i = 0; i < N; ++i) v.v[i] = v.v[i] * scale * factor.v[i];
        To::store<N>(out, c, v);
    }
}

}  // namespace

extern "C" __device__ const u32 headwise_rms_norm_threads = THREADS;
extern "C" __device__ const u32 headwise_rms_norm_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_rms_norm(const u8* y, u32 y_stride, const u8* post, u8* x, u32 x_rows, u32 x_stride,
                      const u32* picks, const u8* weight, u8* out, u32 out_stride, u32 channels,
                      float epsilon, u32 wide) {
    const u32 picked = picks ? picks[blockIdx.x] : blockIdx.x;
    u8* const to = out ? out + static_cast<u64>(blockIdx.x) * out_stride * To::BYTES : nullptr;
    if (picked >= x_rows) {
        for (u32 c = threadIdx.x; to && c < channels; c += THREADS)
            To::store<1>(to, c, {{not_a_number()}});
        return;
    }
    const u8* const more = y ? y + static_cast<u64>(blockIdx.x) * y_stride * F32::BYTES : nullptr;
    u8* const at = x + static_cast<u64>(picked) * x_stride * F32::BYTES;
    if (wide) {
        row<4>(more, post, at, weight, to, channels, epsilon);
    } else {
        row<1>(more, post, at, weight, to, channels, epsilon);
    }
}
