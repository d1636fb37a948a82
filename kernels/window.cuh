// What the windows of a layer hide (src/attend/visible.rs).
#pragma once
#include "intrin.cuh"

namespace hw {

// Slots that a query does not see although they are older than it: from `from` up to `to`.
struct Hidden {
    u32 from, to;

    static __device__ __forceinline__ Hidden none() { return {0, 0}; }

    // What lies between the first `sinks` slots and the newest `window` of the first `end`.
    static __device__ __forceinline__ Hidden of(u32 end, u32 window, u32 sinks) {
        const u32 start = end > window ? end - window : 0;
        return {min(sinks, start), start};
    }

    // The same, counted from slot `first`.
    __device__ __forceinline__ Hidden since(u32 first) const {
        return {from > first ? from - first : 0, to > first ? to - first : 0};
    }

    // Whether any of `slots` slots from `first` on are hidden, and whether all are.
    __device__ __forceinline__ bool some_of(u32 first, u32 slots) const {
        return max(first, from) < min(first + slots, to);
    }
    __device__ __forceinline__ bool all_of(u32 first, u32 slots) const {
        return from <= first && first + slots <= to;
    }
};

}  // namespace hw
