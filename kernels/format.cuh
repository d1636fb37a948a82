// Page formats on the device: one `Format` per stored format, and nothing else knows how a slot is
// stored. A new format is one more specialisation.
//
// Specialised at compile time by macros (see docs/kernels.md). Formats: 0 f32, 1 f16, 2 bf16, 3 i8.
#pragma once
#include "intrin.cuh"

#ifndef HEADWISE_IO_FORMAT
#define HEADWISE_IO_FORMAT 0  // of queries, new keys and values, and outputs: f32, f16 or bf16
#endif

namespace hw {

constexpr u32 D = HEADWISE_HEAD_DIM;
constexpr u32 GROUP = HEADWISE_GROUP;
constexpr u32 PAGE_BYTES = HEADWISE_PAGE_BYTES;
constexpr u32 PAGE_SLOTS = HEADWISE_PAGE_SLOTS;
// Slots of one tile: the reduction length of one matrix product over V.
constexpr u32 TILE = 16;
constexpr u32 PAGE_TILES = ceil_div(PAGE_SLOTS, TILE);
// Channels of one step through a slot.
constexpr u32 STEP = 16;
constexpr u32 STEPS = D / STEP;
// Matrix products of eight slots (of K) or eight channels (of V) in one step.
constexpr u32 NT = 2;

static_assert(D % STEP == 0 && D <= 256, "head_dim is a multiple of 16 up to 256");
static_assert(GROUP > 0, "a query group has a head");
static_assert(PAGE_BYTES % 128 == 0 && PAGE_SLOTS > 0, "pages are 128-byte aligned");

template <u32 F>
struct Format;

// What every format has:
//   KeyMma, ValueMma             the 16-bit float its matrix products run in
//   PLANES                       terms a value is split into; their products are summed
//   SCALE_CHANNELS               channels that share a scale; D when there are no scales
//   SCALED
//   OVERFLOW                     bits of the least magnitude that it cannot hold
//   largest(v)                   what infinities among four values of a warp's row are stored as
//   payload(d), scales(d)        bytes of a slot
//   key_channel(k)               channel of a step that stands in column k of the query operand
//   value_channel(j, n)          channel of a step that stands in column n of product j
//   key_lane, value_lane         where in a tile (rows `ROW` bytes apart) this lane starts
//   keys, values                 the operands of one step, from those addresses
//   load_1                       one channel (formats of queries and outputs)
//   load_4, store_4              four consecutive channels of a slot in global memory

// Two bytes a value, read by the matrix loads as they are.
template <class M>
struct Wide {
    using KeyMma = M;
    using ValueMma = M;
    static constexpr u32 OVERFLOW = M::OVERFLOW;
    static __device__ __forceinline__ float largest(float4) { return __uint_as_float(M::LARGEST); }
    static constexpr u32 PLANES = 1;
    static constexpr bool SCALED = false;
    static constexpr u32 SCALE_CHANNELS = D;
    static __device__ constexpr u32 payload(u32 d) { return 2 * d; }
    static __device__ constexpr u32 scales(u32) { return 0; }
    static __device__ constexpr u32 key_channel(u32 k) { return k; }
    static __device__ constexpr u32 value_channel(u32 j, u32 n) { return 8 * j + n; }

    template <u32 ROW>
    static __device__ __forceinline__ u32 key_lane(u32 lane) {
        return (lane % 8 + 8 * (lane / 16)) * ROW + 16 * (lane / 8 % 2);
    }
    template <u32 ROW>
    static __device__ __forceinline__ u32 value_lane(u32 lane) {
        return (lane % 16) * ROW + 16 * (lane / 16);
    }
    template <u32 ROW, u32 STEP_AT>
    static __device__ __forceinline__ void keys(u32 at, u32 (&b)[PLANES][NT][2]) {
        load_matrix_4<32 * STEP_AT>(b[0][0][0], b[0][0][1], b[0][1][0], b[0][1][1], at);
    }
    template <u32 ROW, u32 STEP_AT>
    static __device__ __forceinline__ void values(u32 at, u32 (&b)[PLANES][NT][2]) {
        load_matrix_4_trans<32 * STEP_AT>(b[0][0][0], b[0][0][1], b[0][1][0], b[0][1][1], at);
    }
    static __device__ __forceinline__ float4 load_4(const u8* payload, const u8*, u32 channel) {
        const uint2 w = *reinterpret_cast<const uint2*>(payload + 2 * channel);
        return make_float4(M::low(w.x), M::high(w.x), M::low(w.y), M::high(w.y));
    }
    static __device__ __forceinline__ float load_1(const u8* payload, u32 channel) {
        const u32 bits = *reinterpret_cast<const u16*>(payload + 2 * channel);
        return M::low(bits);
    }
    static __device__ __forceinline__ void store_4(u8* payload, u8*, u32 channel, float4 v) {
        *reinterpret_cast<uint2*>(payload + 2 * channel) =
            make_uint2(M::pack(v.x, v.y), M::pack(v.z, v.w));
    }
};

template <>
struct Format<1> : Wide<Half> {};
template <>
struct Format<2> : Wide<Brain> {};

// Four bytes a value: three bfloat16 terms hold all 24 bits of it.
template <>
struct Format<0> {
    using KeyMma = Brain;
    using ValueMma = Brain;
    static constexpr u32 OVERFLOW = INFINITE;
    static __device__ __forceinline__ float largest(float4) {
        return __uint_as_float(INFINITE - 1);
    }
    static constexpr u32 PLANES = 3;
    static constexpr bool SCALED = false;
    static constexpr u32 SCALE_CHANNELS = D;
    static __device__ constexpr u32 payload(u32 d) { return 4 * d; }
    static __device__ constexpr u32 scales(u32) { return 0; }
    static __device__ constexpr u32 key_channel(u32 k) {
        return 4 * (k % 8 / 2) + k % 2 + 2 * (k / 8);
    }
    static __device__ constexpr u32 value_channel(u32 j, u32 n) { return 2 * n + j; }

    template <u32 ROW>
    static __device__ __forceinline__ u32 key_lane(u32 lane) {
        return lane / 4 * ROW + 16 * (lane % 4);
    }
    template <u32 ROW>
    static __device__ __forceinline__ u32 value_lane(u32 lane) {
        return 2 * (lane % 4) * ROW + 8 * (lane / 4);
    }
    template <u32 ROW, u32 STEP_AT>
    static __device__ __forceinline__ void keys(u32 at, u32 (&b)[PLANES][NT][2]) {
        const uint4 low = load_shared_4<64 * STEP_AT>(at);
        const uint4 high = load_shared_4<8 * ROW + 64 * STEP_AT>(at);
        split_3(low.x, low.y, b, 0, 0);
        split_3(low.z, low.w, b, 0, 1);
        split_3(high.x, high.y, b, 1, 0);
        split_3(high.z, high.w, b, 1, 1);
    }
    template <u32 ROW, u32 STEP_AT>
    static __device__ __forceinline__ void values(u32 at, u32 (&b)[PLANES][NT][2]) {
        values_half<0, ROW, STEP_AT>(at, b);
        values_half<1, ROW, STEP_AT>(at, b);
    }
    static __device__ __forceinline__ float4 load_4(const u8* payload, const u8*, u32 channel) {
        return *reinterpret_cast<const float4*>(payload + 4 * channel);
    }
    static __device__ __forceinline__ float load_1(const u8* payload, u32 channel) {
        return *reinterpret_cast<const float*>(payload + 4 * channel);
    }
    static __device__ __forceinline__ void store_4(u8* payload, u8*, u32 channel, float4 v) {
        *reinterpret_cast<float4*>(payload + 4 * channel) = v;
    }

private:
    template <u32 HALF, u32 ROW, u32 STEP_AT>
    static __device__ __forceinline__ void values_half(u32 at, u32 (&b)[PLANES][NT][2]) {
        const uint2 even = load_shared_2<8 * HALF * ROW + 64 * STEP_AT>(at);
        const uint2 odd = load_shared_2<(8 * HALF + 1) * ROW + 64 * STEP_AT>(at);
        split_3(even.x, odd.x, b, 0, HALF);
        split_3(even.y, odd.y, b, 1, HALF);
    }
    // Truncation leaves an exact remainder, so three terms of eight bits are the value itself.
    static __device__ __forceinline__ void split_3(u32 low, u32 high, u32 (&b)[PLANES][NT][2],
                                                   u32 n, u32 half) {
#pragma unroll
        for (u32 plane = 0; plane < PLANES; ++plane) {
            b[plane][n][half] = __byte_perm(low, high, 0x7632);
            low = subtract_bits(low, low & 0xffff0000u);
            high = subtract_bits(high, high & 0xffff0000u);
        }
    }
};

// One signed byte a value, one bfloat16 scale per slot and 32 channels. Integers up to 8 bits are exact
// in both 16-bit floats. Half precision takes fewer instructions; over V, probabilities carry the
// scale, and only bfloat16 has the range for that.
template <>
struct Format<3> {
    using KeyMma = Half;
    using ValueMma = Brain;
    static constexpr u32 PLANES = 1;
    static constexpr bool SCALED = true;
    static constexpr u32 SCALE_CHANNELS = 32;
    static constexpr u32 OVERFLOW = INFINITE;
    // Of the finite values that share a scale.
    static __device__ __forceinline__ float largest(float4 v) {
        return __uint_as_float(of_group(max(max(finite(v.x), finite(v.y)),
                                            max(finite(v.z), finite(v.w)))));
    }
    static __device__ constexpr u32 payload(u32 d) { return d; }
    static __device__ constexpr u32 scales(u32 d) { return 2 * ceil_div(d, SCALE_CHANNELS); }
    static __device__ constexpr u32 key_channel(u32 k) {
        return 4 * (k % 8 / 2) + 2 * (k % 2) + k / 8;
    }
    static __device__ constexpr u32 value_channel(u32 j, u32 n) { return 2 * n + j; }

    template <u32 ROW>
    static __device__ __forceinline__ u32 key_lane(u32 lane) {
        return lane % 16 * ROW;
    }
    template <u32 ROW>
    static __device__ __forceinline__ u32 value_lane(u32 lane) {
        return lane % 16 * ROW;
    }
    template <u32 ROW, u32 STEP_AT>
    static __device__ __forceinline__ void keys(u32 at, u32 (&b)[PLANES][NT][2]) {
        u32 r[2];
        load_matrix_2<16 * STEP_AT>(r, at);
#pragma unroll
        for (u32 n = 0; n < NT; ++n) {
            b[0][n][0] = to_half(r[n]);
            b[0][n][1] = to_half(r[n] >> 8);
        }
    }
    template <u32 ROW, u32 STEP_AT>
    static __device__ __forceinline__ void values(u32 at, u32 (&b)[PLANES][NT][2]) {
        u32 r[2];
        load_matrix_2_trans<16 * STEP_AT>(r, at);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            b[0][0][half] = to_brain(r[half]);
            b[0][1][half] = to_brain(r[half] >> 8);
        }
    }
    static __device__ __forceinline__ float4 load_4(const u8* payload, const u8* scales,
                                                    u32 channel) {
        const u32 w = *reinterpret_cast<const u32*>(payload + channel);
        const float step = bf16_to_f32(
            *reinterpret_cast<const u16*>(scales + 2 * (channel / SCALE_CHANNELS)));
        return make_float4(static_cast<float>(static_cast<i8>(w)) * step,
                           static_cast<float>(static_cast<i8>(w >> 8)) * step,
                           static_cast<float>(static_cast<i8>(w >> 16)) * step,
                           static_cast<float>(static_cast<i8>(w >> 24)) * step);
    }
    // Eight neighbouring lanes hold the 32 channels of a scale. All values are finite.
    static __device__ __forceinline__ void store_4(u8* payload, u8* scales, u32 channel,
                                                   float4 v) {
        const float largest = __uint_as_float(of_group(magnitude_4(v)));
        // 2^-126 at least: no scale is subnormal.
        const u16 stored =
            f32_to_bf16(fmaxf(divide(largest, 127.0f), __uint_as_float(0x00800000u)));
        const float step = bf16_to_f32(stored);
        if (channel >= D) return;
        *reinterpret_cast<u32*>(payload + channel) =
            byte(divide(v.x, step)) | byte(divide(v.y, step)) << 8 |
            byte(divide(v.z, step)) << 16 | byte(divide(v.w, step)) << 24;
        if (channel % SCALE_CHANNELS == 0)
            *reinterpret_cast<u16*>(scales + 2 * (channel / SCALE_CHANNELS)) = stored;
    }

private:
    // Rounds to nearest even. The largest quotient is below 127.5.
    static __device__ __forceinline__ u32 byte(float v) {
        return static_cast<u32>(__float2int_rn(v)) & 0xffu;
    }
    // The largest of the lanes that share a scale.
    static __device__ __forceinline__ u32 of_group(u32 bits) {
#pragma unroll
        for (u32 lanes = 4; lanes > 0; lanes /= 2)
            bits = max(bits, __shfl_xor_sync(ALL, bits, lanes));
        return bits;
    }
    static __device__ __forceinline__ u32 finite(float v) {
        return magnitude(v) < INFINITE ? magnitude(v) : 0;
    }
    // Bytes 0 and 2 as half precision: 1024 + the byte with its sign bit flipped, less 1152.
    static __device__ __forceinline__ u32 to_half(u32 bytes) {
        const u32 biased = and_xor<0x00ff00ffu, 0x64806480u>(bytes);
        u32 r;
        asm("sub.f16x2 %0, %1, %2;" : "=r"(r) : "r"(biased), "r"(0x64806480u));
        return r;
    }
    // Bytes 0 and 2 as bfloat16: 128 + the low seven bits, less 128 or 256.
    static __device__ __forceinline__ u32 to_brain(u32 bytes) {
        const u32 low = and_or<0x007f007fu, 0x43004300u>(bytes);
        const u32 sign = and_or<0x00800080u, 0x43004300u>(bytes);
        u32 r;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(sign), "r"(0xbf80bf80u), "r"(low));
        return r;
    }
};

using Io = Format<HEADWISE_IO_FORMAT>;
static_assert(HEADWISE_IO_FORMAT < 3, "inputs and outputs are f32, f16 or bf16");

// K or V in a page, and its tile in shared memory: TILE rows, then their scales.
template <u32 F, u32 PAYLOAD_AT, u32 PAYLOAD_STRIDE, u32 SCALES_AT, u32 SCALE_STRIDE>
struct Side : Format<F> {
    using Base = Format<F>;
    static_assert(PAYLOAD_STRIDE == Base::payload(D), "payload stride of the format");
    static_assert(SCALE_STRIDE == Base::scales(D), "scale stride of the format");
    static constexpr u32 CHUNKS = PAYLOAD_STRIDE / 16;
    static constexpr u32 SCALE_GROUPS = Base::SCALED ? SCALE_STRIDE / 2 : 1;
    // An odd number of 16-byte chunks: eight rows then start in eight different bank groups.
    static constexpr u32 ROW = 16 * (CHUNKS | 1);
    static constexpr u32 TILE_SCALES = TILE * ROW;
    static constexpr u32 TILE_BYTES = TILE * (ROW + SCALE_STRIDE);

    static __device__ __forceinline__ u8* payload(u8* page, u32 slot) {
        return page + PAYLOAD_AT + slot * PAYLOAD_STRIDE;
    }
    static __device__ __forceinline__ u8* scale(u8* page, u32 slot) {
        return page + SCALES_AT + slot * SCALE_STRIDE;
    }
    static __device__ __forceinline__ const u8* payload(const u8* page, u32 slot) {
        return page + PAYLOAD_AT + slot * PAYLOAD_STRIDE;
    }
    static __device__ __forceinline__ const u8* scale(const u8* page, u32 slot) {
        return page + SCALES_AT + slot * SCALE_STRIDE;
    }

    // Starts the copy of slots `first .. first + TILE` by `LANES` threads; of these `valid` are in
    // use, and the others become zeros without being read.
    template <u32 LANES>
    static __device__ __forceinline__ void copy_tile(u32 tile, const u8* page, u32 first,
                                                     u32 valid, u32 lane) {
        // Rows follow one another in a page, so a chunk's place there is its number.
        copy_rows<LANES, 0>(tile, page + first * PAYLOAD_STRIDE + 16 * lane, valid, lane);
        if constexpr (Base::SCALED) {
            constexpr u32 BYTES = TILE * SCALE_STRIDE;
            static_assert(BYTES / 16 <= LANES, "one copy each");
            const u32 at = 16 * lane, end = valid * SCALE_STRIDE;
            if (at < BYTES)
                copy_async_16<TILE_SCALES, SCALES_AT>(tile + at, page + first * SCALE_STRIDE + at,
                                                      end > at ? min(end - at, 16u) : 0);
        }
    }

    // Starts the copy of slots `first .. first + TILE`, all in use, by 16 lanes: a row each, and the
    // scales by the first. Their barrier waits for `bulk_bytes(lane)` of each.
    static __device__ __forceinline__ u32 bulk_bytes(u32 lane) {
        return PAYLOAD_STRIDE + (lane == 0 ? TILE * SCALE_STRIDE : 0);
    }
    static __device__ __forceinline__ void copy_tile_bulk(u32 tile, const u8* page, u32 first,
                                                          u32 lane, u32 barrier) {
        copy_bulk(tile + lane * ROW, payload(page, first + lane), PAYLOAD_STRIDE, barrier);
        if (Base::SCALED && lane == 0)
            copy_bulk(tile + TILE_SCALES, scale(page, first), TILE * SCALE_STRIDE, barrier);
    }

    // Scales of a slot that one load brings: as many as the stride is sure to align.
    static constexpr u32 SCALES_LOADED = SCALE_STRIDE % 8 == 0   ? 4
                                         : SCALE_STRIDE % 4 == 0 ? 2
                                                                 : 1;
    // Of the four slots of this lane, the scales that were loaded last, two to a word.
    typedef u32 LoadedScales[NT][2][SCALES_LOADED == 4 ? 2 : 1];

    // The scales of channel group `G` of the four slots of this lane: 8 n + 2 (lane % 4) + e. Groups
    // are asked for in order.
    template <u32 G>
    static __device__ __forceinline__ void tile_scales(u32 tile, u32 lane, LoadedScales& loaded,
                                                       float (&s)[NT][2]) {
        constexpr u32 AT = G % SCALES_LOADED;
        if constexpr (AT == 0) {
            const u32 at = tile + 2 * (lane % 4) * SCALE_STRIDE;
            load_scales<0, G>(at, loaded[0]);
            load_scales<8, G>(at, loaded[1]);
        }
        s[0][0] = bf16_of_pair<AT % 2>(loaded[0][0][AT / 2]);
        s[0][1] = bf16_of_pair<AT % 2>(loaded[0][1][AT / 2]);
        s[1][0] = bf16_of_pair<AT % 2>(loaded[1][0][AT / 2]);
        s[1][1] = bf16_of_pair<AT % 2>(loaded[1][1][AT / 2]);
    }

private:
    // Offsets are template arguments so that copies have them in the instruction.
    template <u32 LANES, u32 AT>
    static __device__ __forceinline__ void copy_rows(u32 tile, const u8* from, u32 valid,
                                                     u32 lane) {
        constexpr u32 TOTAL = TILE * CHUNKS;
        if constexpr (AT < TOTAL) {
            if constexpr (LANES % CHUNKS == 0) {
                const u32 row = lane / CHUNKS + AT / CHUNKS;
                if (TOTAL % LANES == 0 || AT + lane < TOTAL)
                    copy_async_16<AT / CHUNKS * ROW, PAYLOAD_AT + 16 * AT>(
                        tile + lane / CHUNKS * ROW + 16 * (lane % CHUNKS), from,
                        row < valid ? 16 : 0);
            } else {
                const u32 row = (AT + lane) / CHUNKS;
                if (TOTAL % LANES == 0 || AT + lane < TOTAL)
                    copy_async_16<0, PAYLOAD_AT + 16 * AT>(
                        tile + row * ROW + 16 * ((AT + lane) % CHUNKS), from,
                        row < valid ? 16 : 0);
            }
            copy_rows<LANES, AT + LANES>(tile, from, valid, lane);
        }
    }

    // Of two neighbouring slots, the groups from `G` on.
    template <u32 SLOT, u32 G>
    static __device__ __forceinline__ void load_scales(u32 at, u32 (&to)[2][SCALES_LOADED == 4 ? 2 : 1]) {
        constexpr u32 FIRST = TILE_SCALES + SLOT * SCALE_STRIDE + 2 * G;
        constexpr u32 SECOND = FIRST + SCALE_STRIDE;
        if constexpr (SCALES_LOADED == 4) {
            const uint2 first = load_shared_2<FIRST>(at);
            const uint2 second = load_shared_2<SECOND>(at);
            to[0][0] = first.x, to[0][1] = first.y;
            to[1][0] = second.x, to[1][1] = second.y;
        } else if constexpr (SCALE_STRIDE == 4) {
            // All there is of both.
            const uint2 both = load_shared_2<FIRST>(at);
            to[0][0] = both.x, to[1][0] = both.y;
        } else if constexpr (SCALES_LOADED == 2) {
            to[0][0] = load_shared<FIRST>(at);
            to[1][0] = load_shared<SECOND>(at);
        } else {
            to[0][0] = load_shared_half<FIRST>(at);
            to[1][0] = load_shared_half<SECOND>(at);
        }
    }
};

using Keys = Side<HEADWISE_K_FORMAT, HEADWISE_K_PAYLOAD, HEADWISE_K_PAYLOAD_STRIDE,
                  HEADWISE_K_SCALES, HEADWISE_K_SCALE_STRIDE>;
using Values = Side<HEADWISE_V_FORMAT, HEADWISE_V_PAYLOAD, HEADWISE_V_PAYLOAD_STRIDE,
                    HEADWISE_V_SCALES, HEADWISE_V_SCALE_STRIDE>;

__device__ __forceinline__ const u8* page_at(const u8* pages, u32 id) {
    return pages + static_cast<u64>(id) * PAGE_BYTES;
}
__device__ __forceinline__ u8* page_at(u8* pages, u32 id) {
    return pages + static_cast<u64>(id) * PAGE_BYTES;
}

}  // namespace hw
