// Scores of slots from attention, as KV-Compress has them (arXiv 2410.00161): squared probabilities,
// replayed from the log-sum-exps that attention left behind.
//
// headwise_score: Σ p² over the newest query tokens, per slot and query head.
//   queries, lse  rows as prefill has them; lse is natural, of the whole table
//   items         [grid.x]: ranges of tables, see Item; grid.y = GROUP
//   sums          [slots, GROUP] f32
//   window, sinks, softcap  as in headwise_prefill; a sink logit is in lse already
//   Block: headwise_score_threads threads, headwise_score_shared bytes of dynamic shared memory.
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
    u32 skip;        // newest slots that a query sees and that do not count; left out of `before`
};

using Attend = Attention<false, 2>;
constexpr u32 STAGES = 2;
__device__ constexpr u32 shared_bytes(u32 warps) {
    return Attend::QUERY_BYTES + warps * STAGES * Keys::TILE_BYTES;
}
constexpr u32 WARPS = shared_bytes(4) <= SHARED_BUDGET ? 4 : shared_bytes(2) <= SHARED_BUDGET ? 2 : 1;
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 SHARED = shared_bytes(WARPS);
static_assert(SHARED <= SHARED_BUDGET, "fits in shared memory");

}  // namespace

extern "C" __device__ const u32 headwise_score_threads = THREADS;
extern "C" __device__ const u32 headwise_score_shared = SHARED;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    headwise_score(const u8* __restrict__ pages, const u32* __restrict__ page_ids,
                   const Item* __restrict__ items, const u8* __restrict__ queries,
                   const float* __restrict__ lse, float* __restrict__ sums, u32 row_stride,
                   float scale
#ifdef HEADWISE_WINDOW
                   ,
                   u32 window, u32 sinks
#endif
#ifdef HEADWISE_SOFTCAP
                   ,
                   float softcap
#endif
    ) {
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
#ifdef HEADWISE_WINDOW
        Hidden hidden[Attend::HALVES];
#endif
#pragma unroll
        for (u32 h = 0; h < Attend::HALVES; ++h) {
            const u32 r = lane / 4 + 8 * h;
            const u32 seen = item.before + first + r + 1;
            norm[h] = r < rows ? lse[row_of(first + r)] * LOG2_E : 0.0f;
            limit[h] = r < rows && seen > item.first_slot ? seen - item.first_slot : 0;
#ifdef HEADWISE_WINDOW
            hidden[h] = Hidden::of(seen + item.skip, window, sinks).since(item.first_slot);
#endif
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
#ifdef HEADWISE_SOFTCAP
            Attend::hold(x, softcap);
#endif
            u32 ends[Attend::HALVES];
#pragma unroll
            for (u32 h = 0; h < Attend::HALVES; ++h)
                ends[h] = limit[h] > t.slot() ? min(limit[h] - t.slot(), t.valid) : 0;
            Attend::mask(x, ends, lane);
#ifdef HEADWISE_WINDOW
            Hidden here[Attend::HALVES];
#pragma unroll
            for (u32 h = 0; h < Attend::HALVES; ++h) here[h] = hidden[h].since(t.slot());
            Attend::hide(x, here, lane);
#endif
#pragma unroll
            for (u32 n = 0; n < NT; ++n)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    float sum = 0.0f;
#pragma unroll
                    for (u32 h = 0; h < Attend::HALVES; ++h) {
                        // Attention may have rounded the logits otherwise: no probability is above 1. The
                        // comparison keeps a NaN.
                        const float log = x[h][n][e] - norm[h];
                        sum += exp2_fast(log > 0.0f ? 0.0f : 2.0f * log);
                    }
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
