// Scores at rest: sixteen bits that sort like their values (src/evict/score.rs), and where a slot's
// score and position stand.
//
// Scores and positions live by page, like the scales of a page: the datum of slot s of page p is at
// p × stride + s, `stride` being the most slots of a page of the pool. They need no memory of their
// own beside the pool's, and move when their slot moves.
#pragma once
#include "format.cuh"

namespace hw {

// Index of a slot's datum; `pages` is where its table starts in the page ids.
__device__ __forceinline__ u64 datum_of(const u32* page_ids, u32 pages, u32 slot, u32 stride) {
    return static_cast<u64>(page_ids[pages + slot / PAGE_SLOTS]) * stride + slot % PAGE_SLOTS;
}

constexpr u32 MOST_SCORE = 0xfffeu, INFINITE_SCORE = 0xffffu;

// Rounds to nearest even: 6 bits of exponent from 2^-47 on, 10 of mantissa, then steps of 2^-57.
__device__ __forceinline__ u16 quantize(float v) {
    if (v == infinity()) return INFINITE_SCORE;
    const u32 bits = __float_as_uint(v) - ((127u - 48u) << 23);
    const u32 code = v < __uint_as_float((127u - 47u) << 23)
                         ? static_cast<u32>(__float2int_rn(v * __uint_as_float((127u + 57u) << 23)))
                         : (bits + 0xfffu + (bits >> 13 & 1u)) >> 13;
    return static_cast<u16>(min(code, MOST_SCORE));
}

// Uniform over `seed`, evenly spread over `step`: SplitMix64, then the golden-ratio sequence.
__device__ __forceinline__ u32 dither(u64 seed, u32 step) {
    u64 z = seed + 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return static_cast<u32>(z >> 32) + step * 0x9e3779b9u;
}

// Adds `increment`, from zero up, rounding up with the probability of the fraction.
//
// In integers: both terms as multiples of 2^(eb − 57 − 42), `eb` the larger of their exponents, so
// that the sum's ten bits of mantissa end at bit 42 and the 32 bits of dither line up below them.
__device__ __forceinline__ u16 accumulate(u16 score, float increment, u32 dither) {
    const u32 bits = __float_as_uint(increment);
    const u32 exponent = bits >> 23;
    if (score == INFINITE_SCORE || exponent == 0xff) return INFINITE_SCORE;
    // 2^16 and more; anything that is smaller than a normal float adds nothing that dither sees.
    if (exponent >= 127 + 16) return MOST_SCORE;
    const u64 added = exponent == 0 ? 0 : (bits & 0x7fffffu) | 0x800000u;
    const u32 normal = score >> 10 != 0;
    const u32 own = (score >> 10) - normal;
    const u32 theirs = exponent > 80 ? exponent - 80 : 0;
    u32 base = max(own, theirs);
    const u64 held = static_cast<u64>((score & 0x3ffu) | normal << 10) << 42;
    const int shift = static_cast<int>(exponent) - 51 - static_cast<int>(base);
    u64 sum = held >> (base - own);
    sum += shift >= 0 ? added << shift : shift > -24 ? added >> -shift : 0;
    if (sum >> 53) {
        sum >>= 1;
        ++base;
    }
    const u32 code =
        (base << 10) + static_cast<u32>((sum + (static_cast<u64>(dither) << 10)) >> 42);
    return static_cast<u16>(min(code, MOST_SCORE));
}

}  // namespace hw
