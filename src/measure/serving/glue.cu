// What stands between the products and the attention of a Llama decode step: embedding, norms, rotary
// embedding, SiLU, residuals, argmax. Only `headwise bench-serving` uses it, so that its steps are whole;
// values are f16, sums f32, rows follow one another.
//
// Block: serving_threads threads, no dynamic shared memory.
#include "intrin.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;

__device__ __forceinline__ u32 load(const u8* row, u32 pair) {
    return *reinterpret_cast<const u32*>(row + 4 * pair);
}
__device__ __forceinline__ void store(u8* row, u32 pair, float low, float high) {
    *reinterpret_cast<u32*>(row + 4 * pair) = Half::pack(low, high);
}

// The sum of `v` over the block, in every thread.
__device__ __forceinline__ float block_sum(float v) {
    __shared__ float sums[WARPS];
    v = quad_sum(v);
    v += exchange<4>(v);
    v += exchange<8>(v);
    v += exchange<16>(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = v;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) sum += sums[w];
    return sum;
}

__device__ __forceinline__ float inverse_root(float v) {
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// h = x · weight / sqrt(mean x² + eps); the thread's part of x was just written by it.
__device__ __forceinline__ void norm(const u8* x, u8* h, const u8* weight, u32 pairs, float square,
                                     float eps) {
    const float scale =
        inverse_root(divide(block_sum(square), static_cast<float>(2 * pairs)) + eps);
    for (u32 i = threadIdx.x; i < pairs; i += THREADS) {
        const u32 v = load(x, i), w = load(weight, i);
        store(h, i, Half::low(v) * scale * Half::low(w), Half::high(v) * scale * Half::high(w));
    }
}

}  // namespace

extern "C" __device__ const u32 serving_threads = THREADS;

// Counts each sequence's new token and starts its step. Grid: x = sequences.
extern "C" __global__ void __launch_bounds__(THREADS)
    serving_embed(const u32* __restrict__ ids, u32* __restrict__ tokens,
                  const u8* __restrict__ table, u8* x, u8* __restrict__ h,
                  const u8* __restrict__ weight, u32 hidden, float eps) {
    const u64 row = 2 * static_cast<u64>(hidden);
    const u8* const from = table + ids[blockIdx.x] * row;
    u8* const to = x + blockIdx.x * row;
    float square = 0.0f;
    for (u32 i = threadIdx.x; i < hidden / 2; i += THREADS) {
        const u32 v = load(from, i);
        *reinterpret_cast<u32*>(to + 4 * i) = v;
        square += Half::low(v) * Half::low(v) + Half::high(v) * Half::high(v);
    }
    norm(to, h + blockIdx.x * row, weight, hidden / 2, square, eps);
    if (threadIdx.x == 0) ++tokens[blockIdx.x];
}

// x += y; h = norm(x). Grid: x = sequences.
extern "C" __global__ void __launch_bounds__(THREADS)
    serving_add_norm(u8* x, const u8* __restrict__ y, u8* __restrict__ h,
                     const u8* __restrict__ weight, u32 hidden, float eps) {
    const u64 row = 2 * static_cast<u64>(hidden) * blockIdx.x;
    float square = 0.0f;
    for (u32 i = threadIdx.x; i < hidden / 2; i += THREADS) {
        const u32 a = load(x + row, i), b = load(y + row, i);
        const float low = Half::low(a) + Half::low(b), high = Half::high(a) + Half::high(b);
        store(x + row, i, low, high);
        square += low * low + high * high;
    }
    norm(x + row, h + row, weight, hidden / 2, square, eps);
}

// Turns the first `heads` heads of each row by the angles of its newest position: `turns` is
// [positions, head_dim / 2] of (cosine, sine). Grid: x = sequences.
extern "C" __global__ void __launch_bounds__(THREADS)
    serving_rope(u8* __restrict__ qkv, const u32* __restrict__ tokens,
                 const float2* __restrict__ turns, u32 heads, u32 head_dim, u32 stride) {
    const u32 half = head_dim / 2;
    const float2* const turn = turns + static_cast<u64>(tokens[blockIdx.x] - 1) * half;
    u8* const row = qkv + 2 * static_cast<u64>(stride) * blockIdx.x;
    for (u32 i = threadIdx.x; i < heads * half / 2; i += THREADS) {
        const u32 head = i / (half / 2), pair = i % (half / 2);
        const u32 first = head * half + pair, second = first + half / 2;
        const u32 a = load(row, first), b = load(row, second);
        const float2 low = turn[2 * pair], high = turn[2 * pair + 1];
        store(row, first, Half::low(a) * low.x - Half::low(b) * low.y,
              Half::high(a) * high.x - Half::high(b) * high.y);
        store(row, second, Half::low(b) * low.x + Half::low(a) * low.y,
              Half::high(b) * high.x + Half::high(a) * high.y);
    }
}

// act = silu(gate) · up, for rows of gate and then up. Grid: any x, y = sequences.
extern "C" __global__ void __launch_bounds__(THREADS)
    serving_silu(const u8* __restrict__ gate_up, u8* __restrict__ act, u32 mlp) {
    const u8* const gate = gate_up + 4 * static_cast<u64>(mlp) * blockIdx.y;
    const u8* const up = gate + 2 * static_cast<u64>(mlp);
    u8* const to = act + 2 * static_cast<u64>(mlp) * blockIdx.y;
    const auto silu = [](float v) { return divide(v, 1.0f + exp2_fast(-v * LOG2_E)); };
    for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < mlp / 2; i += gridDim.x * THREADS) {
        const u32 g = load(gate, i), u = load(up, i);
        store(to, i, silu(Half::low(g)) * Half::low(u), silu(Half::high(g)) * Half::high(u));
    }
}

// The largest logit of each row, the first of equal ones. Grid: x = sequences.
extern "C" __global__ void __launch_bounds__(THREADS)
    serving_argmax(const u8* __restrict__ logits, u32* __restrict__ ids, u32 vocab) {
    __shared__ float values[THREADS];
    __shared__ u32 places[THREADS];
    const u8* const row = logits + 2 * static_cast<u64>(vocab) * blockIdx.x;
    float best = -infinity();
    u32 at = 0;
    for (u32 i = threadIdx.x; i < vocab / 2; i += THREADS) {
        const u32 v = load(row, i);
        if (Half::low(v) > best) best = Half::low(v), at = 2 * i;
        if (Half::high(v) > best) best = Half::high(v), at = 2 * i + 1;
    }
    values[threadIdx.x] = best;
    places[threadIdx.x] = at;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            const u32 other = threadIdx.x + half;
            const bool better =
                values[other] > values[threadIdx.x] ||
                (values[other] == values[threadIdx.x] && places[other] < places[threadIdx.x]);
            if (better) {
                values[threadIdx.x] = values[other];
                places[threadIdx.x] = places[other];
            }
        }
    }
    if (threadIdx.x == 0) ids[blockIdx.x] = places[0];
}
