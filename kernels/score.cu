// Scores of slots from attention, as KV-Compress has them (arXiv 2410.00161): squared probabilities,
// replayed from the log-sum-exps that attention left behind.
//
// headwise_score: Σ p² over the newest query tokens, per slot and query head.
//   queries, lse  rows as prefill has them; lse is natural, of the whole table
//   items         [grid.x]: ranges of tables, see Item; grid.y = GROUP
//   sums          [slots, GROUP] f32
//   Block: headwise_score_threads threads, headwise_score_shared bytes of dynamic shared memory.
//
// headwise_score_pool: the maximum of seven neighbours per query head, the sum over the group,
// rounded to the 16 bits of a score at rest.
//   heads         [grid.y]: a table's first slot in sums, order and scores, and its slots
//   order         the slots of each table by position; null when they are in that order already
//   Grid: x = any number of blocks. Block: headwise_score_threads threads, no shared memory.
//
// headwise_score_step: Σ over the group of p², from the logits of a decode step.
//   heads         [grid.y]: as above, and the first of the GROUP rows in lse
//   logits        [slots, GROUP] as headwise_decode writes them; increments [slots] f32
//   Grid and block: as headwise_score_pool.
#include "attend.cuh"
#include "work.cuh"

using namespace hw;

namespace {

struct __align__(8) Item {
    u32 query;       // row of the window's first token, first query head of this KV head
    u32 pages;       // index in the page ids of the range's first page
    u32 slots;       // slots of the range, from slot 0 of its first page
    u32 first_slot;  // slots of the table before the range
    u32 before;      // slots of the table before the window's first token
    u32 window;      // query tokens
    u32 sums;        // where the range's first slot stands in the sums
    u32 reserved;
};

struct Head {
    u32 first;
    u32 slots;
    u32 row;
};

constexpr u32 POOL = 7;
using Attend = Attention<false, 2>;
constexpr u32 STAGES = 2;
__device__ constexpr u32 shared_bytes(u32 warps) {
    return Attend::QUERY_BYTES + warps * STAGES * Keys::TILE_BYTES;
}
constexpr u32 WARPS = shared_bytes(4) <= SHARED_BUDGET ? 4 : shared_bytes(2) <= SHARED_BUDGET ? 2 : 1;
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 SHARED = shared_bytes(WARPS);
static_assert(SHARED <= SHARED_BUDGET, "fits in shared memory");

// Rounds to nearest even: 6 bits of exponent from 2^-47 on, 10 of mantissa, then steps of 2^-57.
__device__ __forceinline__ u16 quantize(float v) {
    if (v == infinity()) return 0xffff;
    const u32 bits = __float_as_uint(v) - ((127u - 48u) << 23);
    const u32 code = v < __uint_as_float((127u - 47u) << 23)
                         ? static_cast<u32>(__float2int_rn(v * __uint_as_float((127u + 57u) << 23)))
                         : (bits + 0xfffu + (bits >> 13 & 1u)) >> 13;
    return static_cast<u16>(min(code, 0xfffeu));
}

}  // namespace

extern "C" __device__ const u32 headwise_score_threads = THREADS;
extern "C" __device__ const u32 headwise_score_shared = SHARED;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    headwise_score(const u8* __restrict__ pages, const u32* __restrict__ page_ids,
                   const Item* __restrict__ items, const u8* __restrict__ queries,
                   const float* __restrict__ lse, float* __restrict__ sums, u32 row_stride,
                   float scale) {
    extern __shared__ __align__(128) u8 shared[];
    uint4* const shared_queries = reinterpret_cast<uint4*>(shared);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 ring = shared_address(shared + Attend::QUERY_BYTES) +
                     warp * STAGES * Keys::TILE_BYTES;
    const u32 key_lane = Keys::template key_lane<Keys::ROW>(lane);
    const Item item = items[blockIdx.x];
    const u32 head = blockIdx.y;
    const u32 tiles = tiles_of(item.slots);
    const auto row_of = [&](u32 token) {
        return item.query + static_cast<u64>(token) * row_stride + head;
    };
    const auto issue = [&](u32 tile, u32 stage) {
        if (tile < tiles) {
            const TileAt t(tile, item.slots);
            Keys::template copy_tile<WARP>(stage, page_at(pages, page_ids[item.pages + t.page]),
                                           t.first, t.valid, lane);
        }
        copy_async_commit();
    };

    for (u32 first = 0; first < item.window; first += Attend::ROWS) {
        const u32 rows = min(item.window - first, Attend::ROWS);
        __syncthreads();
        Attend::stage_queries<THREADS>(
            shared_queries, threadIdx.x, scale * LOG2_E, [&](u32 r) -> const u8* {
                return r < rows ? queries + row_of(first + r) * Io::payload(D) : nullptr;
            });
        __syncthreads();
        const Attend::Queries q(shared_queries, lane);
        float norm[Attend::HALVES];
        u32 limit[Attend::HALVES];
#pragma unroll
        for (u32 h = 0; h < Attend::HALVES; ++h) {
            const u32 r = lane / 4 + 8 * h;
            const u32 seen = item.before + first + r + 1;
            norm[h] = r < rows ? lse[row_of(first + r)] * LOG2_E : 0.0f;
            limit[h] = r < rows && seen > item.first_slot ? seen - item.first_slot : 0;
        }

        u32 parity = 0;
        issue(warp, ring);
        for (u32 tile = warp; tile < tiles; tile += WARPS) {
            const u32 stage = ring + parity * Keys::TILE_BYTES;
            parity ^= 1;
            issue(tile + WARPS, ring + parity * Keys::TILE_BYTES);
            copy_async_wait<1>();
            __syncwarp();
            const TileAt t(tile, item.slots);
            Attend::Block x;
            Attend::score_tile(q, stage, stage + key_lane, lane, x);
            u32 ends[Attend::HALVES];
#pragma unroll
            for (u32 h = 0; h < Attend::HALVES; ++h)
                ends[h] = limit[h] > t.slot() ? min(limit[h] - t.slot(), t.valid) : 0;
            Attend::mask(x, ends, lane);
#pragma unroll
            for (u32 n = 0; n < NT; ++n)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    float sum = 0.0f;
#pragma unroll
                    for (u32 h = 0; h < Attend::HALVES; ++h)
                        sum += exp2_fast(2.0f * (x[h][n][e] - norm[h]));
#pragma unroll
                    for (u32 lanes = 4; lanes < WARP; lanes *= 2)
                        sum += __shfl_xor_sync(ALL, sum, lanes);
                    const u32 slot = 8 * n + 2 * (lane % 4) + e;
                    if (lane < 4 && slot < t.valid) {
                        float* const to =
                            sums + static_cast<u64>(item.sums + t.slot() + slot) * GROUP + head;
                        *to = first == 0 ? sum : *to + sum;
                    }
                }
            // The tile after next goes where this one was.
            __syncwarp();
        }
        copy_async_wait<0>();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    headwise_score_pool(const Head* __restrict__ heads, const float* __restrict__ sums,
                        const u32* __restrict__ order, u16* __restrict__ scores) {
    const Head head = heads[blockIdx.y];
    const auto slot_at = [&](u32 rank) { return order ? order[head.first + rank] : rank; };
    for (u32 rank = blockIdx.x * THREADS + threadIdx.x; rank < head.slots;
         rank += gridDim.x * THREADS) {
        const u32 begin = rank < POOL / 2 ? 0 : rank - POOL / 2;
        const u32 end = min(rank + POOL / 2 + 1, head.slots);
        float most[GROUP];
#pragma unroll
        for (u32 g = 0; g < GROUP; ++g) most[g] = 0.0f;
        for (u32 near = begin; near < end; ++near) {
            const float* const row = sums + static_cast<u64>(head.first + slot_at(near)) * GROUP;
#pragma unroll
            for (u32 g = 0; g < GROUP; ++g) most[g] = fmaxf(most[g], row[g]);
        }
        float sum = 0.0f;
#pragma unroll
        for (u32 g = 0; g < GROUP; ++g) sum += most[g];
        scores[head.first + slot_at(rank)] = quantize(sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    headwise_score_step(const Head* __restrict__ heads, const float* __restrict__ logits,
                        const float* __restrict__ lse, float* __restrict__ increments) {
    const Head head = heads[blockIdx.y];
    for (u32 slot = blockIdx.x * THREADS + threadIdx.x; slot < head.slots;
         slot += gridDim.x * THREADS) {
        const float* const row = logits + static_cast<u64>(head.first + slot) * GROUP;
        float sum = 0.0f;
#pragma unroll
        for (u32 g = 0; g < GROUP; ++g)
            sum += exp2_fast(2.0f * (row[g] - lse[head.row + g] * LOG2_E));
        increments[head.first + slot] = sum;
    }
}
