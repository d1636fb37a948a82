// Decode attention: one query token per sequence over the pages of each (sequence, KV head).
//
//   queries      [rows, D] of the IO format; the GROUP rows of a KV head follow one another
//   pages        the page arena; page_ids [..]: page ids; items [..]: the work; lists [grid.x + 1]:
//                block b does items lists[b] .. lists[b + 1], in order
//   out          [rows, D] of the IO format; lse [rows]: natural logarithm of the softmax's sum
//   partial_out  [partials, GROUP, D] f32; partial_lse [partials, GROUP], base 2: for headwise_merge
//   logits       [slots, GROUP] f32, scale · q·k in units of log2 e (only with HEADWISE_LOGITS)
//   scale        of q·k, usually 1/sqrt(D)
//   places       [items]: where each lies in its table; window, sinks: a query sees the newest `window`
//                slots of its table and the first `sinks` (only with HEADWISE_WINDOW). The logits of others
//                are so low that their weight is zero
//   softcap      what scaled scores are held to (only with HEADWISE_SOFTCAP); logits are held too
//   sink_logits  [heads]: a logit without a value for each query head of a token; row r is of head
//                r % heads (only with HEADWISE_SINK_LOGITS)
//
// Grid: x blocks as `lists` has, y = ceil(GROUP / 16). Block: headwise_decode_threads threads,
// headwise_decode_shared bytes of dynamic shared memory (both exported by the module).
//
// With HEADWISE_BULK (sm_90 and later) whole tiles come by the copy engine, a row of a slot in each
// copy, and barriers in shared memory say when they have landed; partial tiles come as before.
//
// A warp streams tiles of 16 slots through a ring of its own, so its loop has no block barrier. An
// item of no slots gives zeros and a log-sum-exp of minus infinity. An output row is written by one
// item alone; nothing else is assumed about the order of items.
#include "attend.cuh"
#include "work.cuh"

using namespace hw;

namespace {

// Query heads that one matrix product takes together.
constexpr u32 ROWS = min_of(GROUP, 16);
using Attend = Attention<ROWS <= 8, ROWS <= 8 ? 1 : 2>;

constexpr u32 STAGE_BYTES = Keys::TILE_BYTES + Values::TILE_BYTES;
// A barrier for each stage.
#ifdef HEADWISE_BULK
constexpr u32 STAGE_BARRIER = 8;
#else
constexpr u32 STAGE_BARRIER = 0;
#endif
__device__ constexpr u32 fits(u32 warps) {
    return (SHARED_BUDGET - Attend::QUERY_BYTES) / (warps * (STAGE_BYTES + STAGE_BARRIER));
}
constexpr u32 WARPS = fits(4) >= 2 ? 4 : fits(2) >= 2 ? 2 : 1;
constexpr u32 STAGES = min_of(fits(WARPS), 4);
static_assert(STAGES >= 2, "a ring of two tiles fits");
constexpr u32 BARRIER_BYTES = WARPS * STAGES * STAGE_BARRIER;

constexpr u32 THREADS = WARPS * WARP;
// Accumulators of a warp, then the largest score and the sum of each row.
constexpr u32 ACC = ROWS * Attend::ACC_ROW;
constexpr u32 SHARED =
    Attend::QUERY_BYTES + BARRIER_BYTES + max_of(WARPS * STAGES * STAGE_BYTES, 4 * WARPS * (ACC + 2 * ROWS));
static_assert(SHARED <= SHARED_BUDGET, "fits in shared memory");

// A warp's ring of tiles. Filling and draining go round it in step, across items.
class Ring {
public:
    // Shared addresses of the warp's stages and barriers.
    __device__ __forceinline__ Ring(u32 stages, u32 barriers, u32 lane)
        : stages(stages), barriers(barriers), filling(stages), draining(stages) {
#ifdef HEADWISE_BULK
        if (lane < STAGES) barrier_init(barriers + 8 * lane, WARP);
        fence_async_proxy();
        __syncwarp();
#endif
    }

    // Starts the copy of a tile into the next stage, which all lanes are done with.
    __device__ __forceinline__ void fill(const u8* page, const TileAt& t, u32 lane) {
        const u32 keys = filling, values = keys + Keys::TILE_BYTES;
#ifdef HEADWISE_BULK
        const u32 barrier = barrier_of(filling);
        fence_async_proxy();
        if (t.valid == TILE) {
            if (lane < TILE) {
                barrier_expect(barrier, Keys::bulk_bytes(lane));
                Keys::copy_tile_bulk(keys, page, t.first, lane, barrier);
            } else {
                barrier_expect(barrier, Values::bulk_bytes(lane - TILE));
                Values::copy_tile_bulk(values, page, t.first, lane - TILE, barrier);
            }
        } else {
            Keys::template copy_tile<WARP>(keys, page, t.first, t.valid, lane);
            Values::template copy_tile<WARP>(values, page, t.first, t.valid, lane);
            barrier_arrive_after_copies(barrier);
        }
#else
        Keys::template copy_tile<WARP>(keys, page, t.first, t.valid, lane);
        Values::template copy_tile<WARP>(values, page, t.first, t.valid, lane);
#endif
        filling = after(filling);
    }

    // Ends a fill, or stands for one that there was no tile for.
    __device__ __forceinline__ void commit() {
#ifndef HEADWISE_BULK
        copy_async_commit();
#endif
    }

    // Waits for the oldest tile that has not been waited for.
    __device__ __forceinline__ u32 wait() {
        const u32 stage = draining;
#ifdef HEADWISE_BULK
        barrier_wait(barrier_of(stage), parity);
        parity ^= after(stage) == stages;
#else
        copy_async_wait<STAGES - 2>();
#endif
        draining = after(stage);
        return stage;
    }

    // Waits until this lane has nothing under way.
    __device__ __forceinline__ void drain() { copy_async_wait<0>(); }

    // What is written to the ring's memory from here on comes before later fills.
    __device__ __forceinline__ void release() {
#ifdef HEADWISE_BULK
        fence_async_proxy();
#endif
    }

private:
    const u32 stages, barriers;
    // Addresses of stages; the parity of the barriers' phase that is drained next.
    u32 filling, draining, parity = 0;

    __device__ __forceinline__ u32 after(u32 stage) const {
        const u32 next = stage + STAGE_BYTES;
        return next == stages + STAGES * STAGE_BYTES ? stages : next;
    }
#ifdef HEADWISE_BULK
    __device__ __forceinline__ u32 barrier_of(u32 stage) const {
        return barriers + (stage - stages) / STAGE_BYTES * 8;
    }
#endif
};

}  // namespace

extern "C" __device__ const u32 headwise_decode_threads = THREADS;
extern "C" __device__ const u32 headwise_decode_shared = SHARED;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    headwise_decode(const u8* __restrict__ pages, const u32* __restrict__ page_ids,
                    const WorkItem* __restrict__ items, const u32* __restrict__ lists,
                    const u8* __restrict__ queries, u8* __restrict__ out,
                    float* __restrict__ lse, float* __restrict__ partial_out,
                    float* __restrict__ partial_lse, float* __restrict__ logits, float scale
#ifdef HEADWISE_WINDOW
                    ,
                    const ItemPlace* __restrict__ places, u32 window, u32 sinks
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
    uint4* const shared_queries = reinterpret_cast<uint4*>(shared);
    u8* const ring = shared + Attend::QUERY_BYTES;
    float* const acc = reinterpret_cast<float*>(ring);
    float* const stats = acc + WARPS * ACC;

    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first_row = blockIdx.y * ROWS;
    const u32 rows = min(ROWS, GROUP - first_row);
    const u32 ring_at = shared_address(ring);
    Ring tiles_of_warp(ring_at + warp * STAGES * STAGE_BYTES,
                       ring_at + (SHARED - Attend::QUERY_BYTES - BARRIER_BYTES) + 8 * warp * STAGES,
                       lane);
    const u32 key_lane = Keys::template key_lane<Keys::ROW>(lane);
    const u32 value_lane = Values::template value_lane<Values::ROW>(lane);

    const u32 end = lists[blockIdx.x + 1];
    for (u32 at = lists[blockIdx.x]; at < end; ++at) {
        const WorkItem item = items[at];
        const u32 row = item.query + first_row;
        Hidden hidden = Hidden::none();
#ifdef HEADWISE_WINDOW
        const ItemPlace place = places[at];
        const u32 table = places[place.last].first + items[place.last].slots;
        hidden = Hidden::of(table, window, sinks).since(place.first);
#endif
#ifdef HEADWISE_LOGITS
        const Tiles tiles(item.slots, Hidden::none());
#else
        const Tiles tiles(item.slots, hidden);
#endif

        // Page ids come 32 tiles at a time, one a lane, and a batch before they are needed.
        const auto read_ids = [&](u32 first) {
            const u32 tile = warp + (first + lane) * WARPS;
            return tile < tiles.count ? page_ids[item.pages + tiles.at(tile) / PAGE_TILES] : 0;
        };
        u32 ids = 0, next_ids = read_ids(0), issued = 0;
        const auto issue = [&] {
            const u32 tile = warp + issued * WARPS;
            if (tile < tiles.count) {
                if (issued % WARP == 0) {
                    ids = next_ids;
                    next_ids = read_ids(issued + WARP);
                }
                const u8* const page = page_at(pages, __shfl_sync(ALL, ids, issued % WARP));
                tiles_of_warp.fill(page, TileAt(tiles.at(tile), item.slots), lane);
                ++issued;
            }
            tiles_of_warp.commit();
        };

#pragma unroll
        for (u32 s = 0; s < STAGES - 1; ++s) issue();

        Attend::stage_queries<THREADS>(
            shared_queries, threadIdx.x, scale * LOG2_E, [&](u32 r) -> const u8* {
                return r < rows ? queries + static_cast<u64>(row + r) * Io::payload(D) : nullptr;
            });
        __syncthreads();
        const Attend::Queries q(shared_queries, lane);
        Attend::State state;

        for (u32 tile = warp; tile < tiles.count; tile += WARPS) {
            const u32 stage = tiles_of_warp.wait();
            // All lanes' copies have landed, and all lanes are done with the tile before.
            __syncwarp();
            issue();

            const TileAt t(tiles.at(tile), item.slots);
            Attend::Block x;
            Attend::score_tile(q, stage, stage + key_lane, lane, x);
#ifdef HEADWISE_SOFTCAP
            Attend::hold(x, softcap);
#endif
            if (t.valid < TILE) {
                u32 ends[Attend::HALVES];
#pragma unroll
                for (u32 h = 0; h < Attend::HALVES; ++h) ends[h] = t.valid;
                Attend::mask(x, ends, lane);
            }
            if (hidden.some_of(t.slot(), t.valid)) {
                Hidden here[Attend::HALVES];
#pragma unroll
                for (u32 h = 0; h < Attend::HALVES; ++h) here[h] = hidden.since(t.slot());
                Attend::hide(x, here, lane);
            }
#ifdef HEADWISE_LOGITS
#pragma unroll
            for (u32 h = 0; h < Attend::HALVES; ++h)
#pragma unroll
                for (u32 n = 0; n < NT; ++n)
#pragma unroll
                    for (u32 e = 0; e < 2; ++e) {
                        const u32 slot = 8 * n + 2 * (lane % 4) + e;
                        const u32 r = lane / 4 + 8 * h;
                        if (slot < t.valid && r < rows)
                            logits[static_cast<u64>(item.logits + t.slot() + slot) * GROUP +
                                   first_row + r] = x[h][n][e];
                    }
#endif
            Attend::soften(state, x);
            const u32 v = stage + Keys::TILE_BYTES;
            Attend::accumulate(state, v, v + value_lane, lane, x);
        }

        bool joins_sinks = false;
#ifdef HEADWISE_SINK_LOGITS
        // Else they join the merge.
        joins_sinks = item.partial == NO_PARTIAL;
        if (joins_sinks && warp == 0) {
            float logit[Attend::HALVES];
#pragma unroll
            for (u32 h = 0; h < Attend::HALVES; ++h)
                logit[h] = sink_logits[(row + min(lane / 4 + 8 * h, rows - 1)) % heads] * LOG2_E;
            Attend::add_sinks(state, logit, lane);
        }
#endif
        tiles_of_warp.drain();
        __syncthreads();
        Attend::publish(state, acc + warp * ACC, stats + warp * 2 * ROWS, ROWS, lane);
        __syncthreads();
        for (u32 i = threadIdx.x; i < rows * (D / 4); i += THREADS) {
            const u32 r = i / (D / 4), channel = i % (D / 4) * 4;
            float top = LOWEST, sum = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) top = fmaxf(top, stats[2 * (w * ROWS + r)]);
            float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) {
                const float weight = exp2_fast(stats[2 * (w * ROWS + r)] - top);
                const float4 v = *reinterpret_cast<const float4*>(
                    acc + w * ACC + r * Attend::ACC_ROW + channel);
                sum += weight * stats[2 * (w * ROWS + r) + 1];
                o.x += weight * v.x, o.y += weight * v.y, o.z += weight * v.z, o.w += weight * v.w;
            }
            const bool none = !joins_sinks && (item.slots == 0 || hidden.all_of(0, item.slots));
            const float inverse = none ? 0.0f : divide(1.0f, sum);
            o.x *= inverse, o.y *= inverse, o.z *= inverse, o.w *= inverse;
            const float log_sum = none ? -infinity() : Attend::log_sum(top, sum);
            if (item.partial == NO_PARTIAL) {
                Io::store_4(out + static_cast<u64>(row + r) * Io::payload(D), nullptr, channel, o);
                if (channel == 0) lse[row + r] = log_sum * LN_2;
            } else {
                const u64 to = static_cast<u64>(item.partial) * GROUP + first_row + r;
                *reinterpret_cast<float4*>(partial_out + to * D + channel) = o;
                if (channel == 0) partial_lse[to] = log_sum;
            }
        }
        tiles_of_warp.release();
        // The next item overwrites the queries and the ring.
        __syncthreads();
    }
}
