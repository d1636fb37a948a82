// Prefill attention: a chunk of query tokens over the pages of each (sequence, KV head), causal.
// The chunk's own K and V are in the pages already, in order, as the newest slots of the table.
//
//   queries      [tokens, heads, D] of the IO format; row_stride is the distance from a token's
//                first query head of a KV head to the next token's, in rows (all query heads)
//   pages, page_ids as in headwise_decode
//   items        [grid.x]; an item is up to headwise_prefill_rows (token, query head) rows of a
//                chunk. Row r is token r / GROUP and head r % GROUP; token t sees the first
//                before + t + 1 slots of its table
//   out, lse     as queries; natural logarithm
//   scale        of q·k, usually 1/sqrt(D)
//   window, sinks  a token sees the newest `window` of these slots and the first `sinks` (only with
//                HEADWISE_WINDOW)
//   softcap, sink_logits, heads  as in headwise_decode
//
// Grid: x = items. Block: headwise_prefill_threads threads, headwise_prefill_shared bytes of dynamic
// shared memory. The warps of a block own 16 rows each and share the tiles.
#include "attend.cuh"
#include "work.cuh"

using namespace hw;

namespace {

struct __align__(8) PrefillItem {
    u32 query;      // row of token 0's first query head of this KV head
    u32 pages;      // index in the page ids of the table's first page
    u32 slots;      // slots in use in the table, the chunk's included
    u32 before;     // slots before the chunk's token 0
    u32 first_row;  // the item's first row
    u32 rows;       // how many it has
};

// f32 pages are for engines that compute in f32; elsewhere operands are rounded once, as usual.
using Attend = Attention<false, HEADWISE_K_FORMAT == 0 || HEADWISE_V_FORMAT == 0 ? 2 : 1>;

constexpr u32 TILE_PAIR = Keys::TILE_BYTES + Values::TILE_BYTES;
__device__ constexpr u32 shared_bytes(u32 warps, u32 span, u32 stages) {
    return warps * Attend::QUERY_BYTES +
           max_of(stages * span * TILE_PAIR,
                  4 * warps * Attend::ROWS * (Attend::ACC_ROW + 2));
}
constexpr u32 WARPS = shared_bytes(4, 1, 2) <= SHARED_BUDGET   ? 4
                      : shared_bytes(2, 1, 2) <= SHARED_BUDGET ? 2
                                                               : 1;
// Tiles between two barriers.
constexpr u32 SPAN = shared_bytes(WARPS, 2, 2) <= SHARED_BUDGET ? 2 : 1;
// Wide heads leave no registers for two tiles' work at once.
constexpr u32 SPAN_UNROLL = D > 128 ? 1 : SPAN;
constexpr u32 STAGES = shared_bytes(WARPS, SPAN, 3) <= SHARED_BUDGET ? 3 : 2;
constexpr u32 SHARED = shared_bytes(WARPS, SPAN, STAGES);
static_assert(SHARED <= SHARED_BUDGET, "fits in shared memory");
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 ROWS = WARPS * Attend::ROWS;

}  // namespace

extern "C" __device__ const u32 headwise_prefill_threads = THREADS;
extern "C" __device__ const u32 headwise_prefill_shared = SHARED;
extern "C" __device__ const u32 headwise_prefill_rows = ROWS;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    headwise_prefill(const u8* __restrict__ pages, const u32* __restrict__ page_ids,
                     const PrefillItem* __restrict__ items, const u8* __restrict__ queries,
                     u8* __restrict__ out, float* __restrict__ lse, u32 row_stride, float scale
#ifdef HEADWISE_WINDOW
                     ,
                     u32 window, u32 sinks
#endif
#ifdef HEADWISE_SOFTCAP
                     ,
                     float softcap
#endif
#ifdef HEADWISE_SINK_LOGITS
                     ,
                     const float* __restrict__ sink_logits, u32 heads
#endif
    ) {
    extern __shared__ __align__(128) u8 shared[];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const PrefillItem item = items[blockIdx.x];
    uint4* const my_queries = reinterpret_cast<uint4*>(shared + warp * Attend::QUERY_BYTES);
    u8* const ring = shared + WARPS * Attend::QUERY_BYTES;
    const u32 ring_at = shared_address(ring);

    // Rows of this warp, and the row of the whole chunk that the first of them is.
    const u32 skipped = warp * Attend::ROWS;
    const u32 rows = item.rows > skipped ? min(item.rows - skipped, Attend::ROWS) : 0;
    const u32 base = item.first_row + skipped;
    const auto place = [&](u32 r) -> u64 {
        return item.query + static_cast<u64>((base + r) / GROUP) * row_stride + (base + r) % GROUP;
    };
    const auto visible = [&](u32 r) {
        return min(item.slots, item.before + (base + r) / GROUP + 1);
    };

    const u32 last = item.first_row + item.rows - 1;
    const u32 slots = min(item.slots, item.before + last / GROUP + 1);
    // Later rows see no more of what the first row does not.
    Hidden hidden = Hidden::none();
#ifdef HEADWISE_WINDOW
    hidden = Hidden::of(min(item.slots, item.before + item.first_row / GROUP + 1), window, sinks);
#endif
    const Tiles tiles(slots, hidden);

    const u32 key_lane = Keys::template key_lane<Keys::ROW>(lane);
    const u32 value_lane = Values::template value_lane<Values::ROW>(lane);
    const auto issue = [&](u32 span) {
        const u32 stage = ring_at + span % STAGES * SPAN * TILE_PAIR;
#pragma unroll
        for (u32 i = 0; i < SPAN; ++i) {
            const u32 tile = span * SPAN + i;
            if (tile < tiles.count) {
                const TileAt t(tiles.at(tile), slots);
                const u8* const page = page_at(pages, page_ids[item.pages + t.page]);
                const u32 to = stage + i * TILE_PAIR;
                Keys::template copy_tile<THREADS>(to, page, t.first, t.valid, threadIdx.x);
                Values::template copy_tile<THREADS>(to + Keys::TILE_BYTES, page, t.first, t.valid,
                                                    threadIdx.x);
            }
        }
        copy_async_commit();
    };

#pragma unroll
    for (u32 s = 0; s < STAGES - 1; ++s) issue(s);
    Attend::stage_queries<WARP>(my_queries, lane, scale * LOG2_E, [&](u32 r) -> const u8* {
        return r < rows ? queries + place(r) * Io::payload(D) : nullptr;
    });
    __syncwarp();
    const Attend::Queries q(my_queries, lane);
    Attend::State state;

    u32 limits[Attend::HALVES];
#pragma unroll
    for (u32 h = 0; h < Attend::HALVES; ++h) limits[h] = visible(lane / 4 + 8 * h);
    const u32 all_see = visible(0), some_see = rows > 0 ? visible(rows - 1) : 0;

#ifdef HEADWISE_WINDOW
    Hidden limits_below[Attend::HALVES];
#pragma unroll
    for (u32 h = 0; h < Attend::HALVES; ++h)
        limits_below[h] = Hidden::of(limits[h], window, sinks);
    const Hidden all_miss = Hidden::of(all_see, window, sinks);
    const Hidden some_miss = Hidden::of(some_see, window, sinks);
#endif

    const u32 spans = ceil_div(tiles.count, SPAN);
    for (u32 span = 0; span < spans; ++span) {
        copy_async_wait<STAGES - 2>();
        // Everybody's copies have landed, and everybody is done with the stage that is filled next.
        __syncthreads();
        issue(span + STAGES - 1);
        const u32 stage = ring_at + span % STAGES * SPAN * TILE_PAIR;
#pragma unroll SPAN_UNROLL
        for (u32 i = 0; i < SPAN; ++i) {
            const u32 tile = span * SPAN + i;
            if (tile >= tiles.count) break;
            const TileAt t(tiles.at(tile), slots);
            const u32 first = t.slot();
            if (first >= some_see) break;
#ifdef HEADWISE_WINDOW
            if (all_miss.all_of(first, t.valid)) continue;
#endif
            const u32 k = stage + i * TILE_PAIR, v = k + Keys::TILE_BYTES;
            Attend::Block x;
            Attend::score_tile(q, k, k + key_lane, lane, x);
#ifdef HEADWISE_SOFTCAP
            Attend::hold(x, softcap);
#endif
            if (t.valid < TILE || first + TILE > all_see) {
                u32 ends[Attend::HALVES];
#pragma unroll
                for (u32 h = 0; h < Attend::HALVES; ++h)
                    ends[h] = limits[h] > first ? min(limits[h] - first, t.valid) : 0;
                Attend::mask(x, ends, lane);
            }
#ifdef HEADWISE_WINDOW
            if (some_miss.some_of(first, t.valid)) {
                Hidden here[Attend::HALVES];
#pragma unroll
                for (u32 h = 0; h < Attend::HALVES; ++h) here[h] = limits_below[h].since(first);
                Attend::hide(x, here, lane);
            }
#endif
            Attend::soften(state, x);
            Attend::accumulate(state, v, v + value_lane, lane, x);
        }
    }

#ifdef HEADWISE_SINK_LOGITS
    if (rows > 0) {
        float logit[Attend::HALVES];
#pragma unroll
        for (u32 h = 0; h < Attend::HALVES; ++h)
            logit[h] = sink_logits[place(min(lane / 4 + 8 * h, rows - 1)) % heads] * LOG2_E;
        Attend::add_sinks(state, logit, lane);
    }
#endif
    copy_async_wait<0>();
    __syncthreads();
    float* const acc =
        reinterpret_cast<float*>(ring) + warp * Attend::ROWS * (Attend::ACC_ROW + 2);
    float* const stats = acc + Attend::ROWS * Attend::ACC_ROW;
    Attend::publish(state, acc, stats, Attend::ROWS, lane);
    __syncwarp();
    for (u32 i = lane; i < rows * (D / 4); i += WARP) {
        const u32 r = i / (D / 4), channel = i % (D / 4) * 4;
        const float sum = stats[2 * r + 1];
        const bool none = item.slots == 0;
        const float inverse = none ? 0.0f : divide(1.0f, sum);
        float4 o = *reinterpret_cast<const float4*>(acc + r * Attend::ACC_ROW + channel);
        o.x *= inverse, o.y *= inverse, o.z *= inverse, o.w *= inverse;
        const u64 row = place(r);
        Io::store_4(out + row * Io::payload(D), nullptr, channel, o);
        if (channel == 0)
            lse[row] = none ? -infinity() : Attend::log_sum(stats[2 * r], sum) * LN_2;
    }
}
