// Encoding a row of K or of V.
#pragma once
#include "format.cuh"

namespace hw {

// Of values that the format cannot hold: zero for NaN, else the largest one. Counts them.
__device__ __forceinline__ float saturate(float v, u32 overflow, float largest, u32& count) {
    if (magnitude(v) < overflow) return v;
    ++count;
    return magnitude(v) > INFINITE ? 0.0f : copysignf(largest, v);
}

// A warp encodes one row of the IO format, four channels a lane. Returns how many values of this lane
// the format cannot hold: what is stored for them is finite all the same.
template <class S>
__device__ __forceinline__ u32 store_row(u8* page, u32 slot, const u8* row, u32 lane) {
    u8* const payload = S::payload(page, slot);
    u8* const scales = S::scale(page, slot);
    u32 saturated = 0;
#pragma unroll
    for (u32 first = 0; first < D; first += 4 * WARP) {
        const u32 channel = first + 4 * lane;
        // Whole warps encode, since lanes that share a scale exchange their largest values.
        float4 v = channel < D ? Io::load_4(row, nullptr, channel)
                               : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (__any_sync(ALL, magnitude_4(v) >= S::OVERFLOW)) {
            const float largest = S::largest(v);
            v.x = saturate(v.x, S::OVERFLOW, largest, saturated);
            v.y = saturate(v.y, S::OVERFLOW, largest, saturated);
            v.z = saturate(v.z, S::OVERFLOW, largest, saturated);
            v.w = saturate(v.w, S::OVERFLOW, largest, saturated);
        }
        if constexpr (S::SCALED) {
            S::store_4(payload, scales, channel, v);
        } else if (channel < D) {
            S::store_4(payload, scales, channel, v);
        }
    }
    return saturated;
}

// Adds what all lanes of a warp counted to `*total`: one atomic, and none where nothing was counted.
__device__ __forceinline__ void count_saturated(u64* total, u32 saturated, u32 lane) {
    if (!__any_sync(ALL, saturated != 0)) return;
#pragma unroll
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2)
        saturated += __shfl_xor_sync(ALL, saturated, lanes);
    if (lane == 0) atomicAdd(total, static_cast<u64>(saturated));
}

}  // namespace hw
