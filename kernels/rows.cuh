// Rows of f32, f16 and bf16 values as the engine's arithmetic reads and writes them, and sums of a block.
//
// A launch says whether its rows may be read four values at a time (`wide`): every row then begins at a
// multiple of four values and has a multiple of four of them. Otherwise values go one by one.
#pragma once
#include "intrin.cuh"

namespace hw {

template <u32 N>
struct Values {
    float v[N];
};

// A type of element by its number: 0 f32, 1 f16, 2 bf16. What is stored is rounded to nearest even; what
// the type cannot hold becomes an infinity.
template <u32 KIND>
struct Element;

template <>
struct Element<0> {
    template <u32 N>
    static __device__ __forceinline__ Values<N> load(const u8* row, u32 at) {
        const float* const from = reinterpret_cast<const float*>(row) + at;
        if constexpr (N == 4) {
            const float4 v = *reinterpret_cast<const float4*>(from);
            return {{v.x, v.y, v.z, v.w}};
        } else {
            return {{*from}};
        }
    }
    template <u32 N>
    static __device__ __forceinline__ void store(u8* row, u32 at, const Values<N>& x) {
        float* const to = reinterpret_cast<float*>(row) + at;
        if constexpr (N == 4) {
            *reinterpret_cast<float4*>(to) = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
        } else {
            *to = x.v[0];
        }
    }
    static constexpr u32 BYTES = 4;
};

template <class Kind>
struct Short {
    template <u32 N>
    static __device__ __forceinline__ Values<N> load(const u8* row, u32 at) {
        const u16* const from = reinterpret_cast<const u16*>(row) + at;
        if constexpr (N == 4) {
            const uint2 v = *reinterpret_cast<const uint2*>(from);
            return {{Kind::low(v.x), Kind::high(v.x), Kind::low(v.y), Kind::high(v.y)}};
        } else {
            return {{Kind::low(*from)}};
        }
    }
    template <u32 N>
    static __device__ __forceinline__ void store(u8* row, u32 at, const Values<N>& x) {
        u16* const to = reinterpret_cast<u16*>(row) + at;
        if constexpr (N == 4) {
            *reinterpret_cast<uint2*>(to) =
                make_uint2(Kind::pack(x.v[0], x.v[1]), Kind::pack(x.v[2], x.v[3]));
        } else {
            *to = static_cast<u16>(Kind::pack(x.v[0], 0.0f));
        }
    }
    static constexpr u32 BYTES = 2;
};

template <>
struct Element<1> : Short<Half> {};
template <>
struct Element<2> : Short<Brain> {};

// The sum of `v` over the warp, in every lane.
__device__ __forceinline__ float warp_sum(float v) {
    v = quad_sum(v);
    v += exchange<4>(v);
    v += exchange<8>(v);
    return v + exchange<16>(v);
}

// The sum of `v` over a block of `THREADS`, in every thread, in the same order on every run.
template <u32 THREADS>
__device__ __forceinline__ float block_sum(float v) {
    __shared__ float sums[THREADS / WARP];
    v = warp_sum(v);
    // Sums of an earlier call have been read.
    __syncthreads();
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = v;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (u32 w = 0; w < THREADS / WARP; ++w) sum += sums[w];
    return sum;
}

// 1 / √(squares / count + epsilon), each step rounded once: what the host computes.
__device__ __forceinline__ float inverse_rms(float squares, u32 count, float epsilon) {
    float root;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(root) : "f"(divide(squares, static_cast<float>(count)) + epsilon));
    return divide(1.0f, root);
}

}  // namespace hw
