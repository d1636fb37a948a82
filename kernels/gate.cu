// The gates of a feed-forward layer: out = scale · f(gate) · up.
//
//   gate_up  [grid.x, 2 · channels] f32: the gate's values, then those that it lets through
//   out      [grid.x, channels] of the output element
//
// HEADWISE_GATE 0: f(x) = x / (1 + e⁻ˣ), SiLU. 1: GELU by its tanh, x / (1 + e⁻²ᵘ) with
// u = √(2/π) · (x + 0.044715 x³), which is x/2 · (1 + tanh u). `scale` is for products that take it out again:
// a power of two keeps large values within f16. Strides are from row to row, in values.
//
// Grid: x = rows, y = ⌈channels ÷ 4 threads⌉ or less. Block: headwise_gate_threads threads, no dynamic
// shared memory.
#include "rows.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 256;
using F32 = Element<0>;
using To = Element<HEADWISE_TO>;

__device__ __forceinline__ float gated(float x) {
#if HEADWISE_GATE == 0
    const float exponent = x;
#else
    const float exponent = 1.5957691216057308f * (x + 0.044715f * x * x * x);
#endif
    return divide(x, 1.0f + exp2_fast(-exponent * LOG2_E));
}

template <u32 N>
__device__ __forceinline__ void part(const u8* gate, const u8* up, u8* out, u32 channels,
                                     float scale) {
    const u32 step = N * THREADS * gridDim.y;
    for (u32 c = N * (blockIdx.y * THREADS + threadIdx.x); c < channels; c += step) {
        Values<N> x = F32::load<N>(gate, c);
        const Values<N> u = F32::load<N>(up, c);
#pragma unroll
        for (u32 i = 0; i < N; ++i) x.v[i] = gated(x.v[i]) * u.v[i] * scale;
        To::store<N>(out, c, x);
    }
}

}  // namespace

extern "C" __device__ const u32 headwise_gate_threads = THREADS;
extern "C" __device__ const u32 headwise_gate_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_gate(const u8* __restrict__ gate_up, u32 gate_up_stride, u8* __restrict__ out,
                  u32 out_stride, u32 channels, float scale, u32 wide) {
    const u64 row = blockIdx.x;
    const u8* const gate = gate_up + row * gate_up_stride * F32::BYTES;
    const u8* const up = gate + static_cast<u64>(channels) * F32::BYTES;
    u8* const to = out + row * out_stride * To::BYTES;
    if (wide) {
        part<4>(gate, up, to, channels, scale);
    } else {
        part<1>(gate, up, to, channels, scale);
    }
}
