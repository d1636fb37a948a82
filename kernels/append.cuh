// Encoding a row of K or of V.
#pragma once
#include "format.cuh"

namespace hw {

// A warp encodes one row of the IO format, four channels a lane.
template <class S>
__device__ __forceinline__ void store_row(u8* page, u32 slot, const u8* row, u32 lane) {
    u8* const payload = S::payload(page, slot);
    u8* const scales = S::scale(page, slot);
#pragma unroll
    for (u32 first = 0; first < D; first += 4 * WARP) {
        const u32 channel = first + 4 * lane;
        // Whole warps encode, since lanes that share a scale exchange their largest values.
        const float4 v = channel < D ? Io::load_4(row, nullptr, channel)
                                     : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if constexpr (S::SCALED) {
            S::store_4(payload, scales, channel, v);
        } else if (channel < D) {
            S::store_4(payload, scales, channel, v);
        }
    }
}

}  // namespace hw
