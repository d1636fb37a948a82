// Decode attention: one query token per sequence over the pages of each (sequence, KV head).
//
//   queries      [rows, D] of the IO format; the GROUP rows of a KV head follow one another
//   pages        the page arena; page_ids [..]: page ids; items [..]: the work; lists [grid.x + 1]:
//                block b does items lists[b] .. lists[b + 1], in order
//   out          [rows, D] of the IO format; lse [rows]: natural logarithm of the softmax's sum
//   partial_out  [partials, GROUP, D] f32; partial_lse [partials, GROUP], base 2: for headwise_merge
//   logits       [slots, GROUP] f32, scale · q·k in units of log2 e (only with HEADWISE_LOGITS)
//   scale        of q·k, usually 1/sqrt(D)
//
// Grid: x blocks as `lists` has, y = ceil(GROUP / 16). Block: headwise_decode_threads threads,
// headwise_decode_shared bytes of dynamic shared memory (both exported by the module).
//
// A warp streams tiles of 16 slots through a ring of its own, so its loop has no block barrier. An
// item of no slots gives zeros and a log-sum-exp of minus infinity. An output row is written by one
// item alone; nothing else is assumed about the order of items.
#include "work.cuh"

using namespace hw;

namespace {

constexpr u32 STAGE_BYTES = Keys::TILE_BYTES + Values::TILE_BYTES;
// Two blocks per multiprocessor where its shared memory allows (164, 100 and 228 KB).
#if __CUDA_ARCH__ >= 900
constexpr u32 SHARED_BUDGET = 113 * 1024;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
constexpr u32 SHARED_BUDGET = 81 * 1024;
#else
constexpr u32 SHARED_BUDGET = 99 * 1024;
#endif
__device__ constexpr u32 fits(u32 warps) { return (SHARED_BUDGET - QUERY_BYTES) / (warps * STAGE_BYTES); }
constexpr u32 WARPS = fits(4) >= 2 ? 4 : fits(2) >= 2 ? 2 : 1;
constexpr u32 STAGES = min_of(fits(WARPS), 4);
static_assert(STAGES >= 2, "a ring of two tiles fits");

// One row of the accumulators in shared memory; the padding keeps eight rows in different banks.
constexpr u32 ACC_ROW = D + 8;
constexpr u32 ACC_FLOATS = WARPS * ROWS * (ACC_ROW + 2);
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 SHARED = QUERY_BYTES + max_of(WARPS * STAGES * STAGE_BYTES, 4 * ACC_FLOATS);
static_assert(SHARED <= 99 * 1024 || SHARED <= SHARED_BUDGET, "fits in shared memory");

// Queries stay in registers where they leave room for the accumulators.
constexpr bool RESIDENT = STEPS * SETS <= 8;
// Steps over K unrolled together: all of them only where that reaches registers.
constexpr u32 KEY_UNROLL = RESIDENT ? STEPS : 4;

// The running softmax of one warp: rows lane / 4 (and + 8), accumulators in the layout of mma.
struct State {
    float top[HALVES];
    float sum[HALVES];
    float acc[STEPS][NT][4];

    __device__ __forceinline__ State() {
#pragma unroll
        for (u32 h = 0; h < HALVES; ++h) top[h] = LOWEST, sum[h] = 0.0f;
#pragma unroll
        for (u32 s = 0; s < STEPS; ++s)
#pragma unroll
            for (u32 j = 0; j < NT; ++j)
#pragma unroll
                for (u32 e = 0; e < 4; ++e) acc[s][j][e] = 0.0f;
    }
};

struct Queries {
    const uint4* shared;
    u32 resident[RESIDENT ? SETS * STEPS : 1][4];

    __device__ __forceinline__ Queries(const uint4* from, u32 lane) : shared(from + lane) {
        if constexpr (RESIDENT) {
#pragma unroll
            for (u32 i = 0; i < SETS * STEPS; ++i) read(i, resident[i]);
        }
    }
    __device__ __forceinline__ void read(u32 i, u32 (&a)[4]) const {
        const uint4 v = shared[i * WARP];
        a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
    }
    __device__ __forceinline__ void get(u32 i, u32 (&a)[4]) const {
        if constexpr (RESIDENT) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) a[e] = resident[i][e];
        } else {
            read(i, a);
        }
    }
};

// Scaled scores of a tile: rows of the group × the two slots of this lane in each product.
__device__ __forceinline__ void score_tile(const Queries& queries, u32 tile, u32 keys, u32 lane,
                                           float (&x)[HALVES][NT][2]) {
    constexpr u32 GROUP_STEPS = min_of(Keys::SCALE_CHANNELS / STEP, STEPS);
#pragma unroll
    for (u32 h = 0; h < HALVES; ++h)
#pragma unroll
        for (u32 n = 0; n < NT; ++n) x[h][n][0] = x[h][n][1] = 0.0f;
#pragma unroll
    for (u32 g = 0; g < Keys::SCALE_GROUPS; ++g) {
        float c[NT][4] = {};
#pragma unroll KEY_UNROLL
        for (u32 step = g * GROUP_STEPS; step < min_of((g + 1) * GROUP_STEPS, STEPS); ++step) {
            u32 b[Keys::PLANES][NT][2];
            Keys::template keys<Keys::ROW>(keys, step, b);
#pragma unroll
            for (u32 set = 0; set < SETS; ++set) {
                u32 a[4];
                queries.get(set * STEPS + step, a);
#pragma unroll
                for (u32 plane = Keys::PLANES; plane-- > 0;)
#pragma unroll
                    for (u32 n = 0; n < NT; ++n) Keys::Mma::mma(c[n], a, b[plane][n]);
            }
        }
#pragma unroll
        for (u32 n = 0; n < NT; ++n)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                float s = 1.0f;
                if constexpr (Keys::SCALED)
                    s = Keys::tile_scale(tile, 8 * n + 2 * (lane % 4) + e, g);
                if constexpr (PACKED) {
                    x[0][n][e] += (c[n][e] + c[n][e + 2]) * s;
                } else {
                    x[0][n][e] += c[n][e] * s;
                    x[1][n][e] += c[n][e + 2] * s;
                }
            }
    }
}

// Turns scores into probabilities against the running maximum, which may rise.
__device__ __forceinline__ void soften(State& state, float (&x)[HALVES][NT][2]) {
    float top[HALVES];
    bool risen = false;
#pragma unroll
    for (u32 h = 0; h < HALVES; ++h) {
        const float here = fmaxf(fmaxf(x[h][0][0], x[h][0][1]), fmaxf(x[h][1][0], x[h][1][1]));
        top[h] = fmaxf(state.top[h], quad_max(here));
        risen |= top[h] > state.top[h];
    }
    if (__any_sync(ALL, risen)) {
#pragma unroll
        for (u32 h = 0; h < HALVES; ++h) {
            const float factor = exp2_fast(state.top[h] - top[h]);
            state.top[h] = top[h];
            state.sum[h] *= factor;
#pragma unroll
            for (u32 s = 0; s < STEPS; ++s)
#pragma unroll
                for (u32 j = 0; j < NT; ++j)
#pragma unroll
                    for (u32 e = 0; e < 2; ++e) {
                        state.acc[s][j][2 * h + e] *= factor;
                        if constexpr (PACKED) state.acc[s][j][2 + e] *= factor;
                    }
        }
    }
#pragma unroll
    for (u32 h = 0; h < HALVES; ++h)
#pragma unroll
        for (u32 n = 0; n < NT; ++n)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                x[h][n][e] = exp2_fast(x[h][n][e] - state.top[h]);
                state.sum[h] += x[h][n][e];
            }
}

// Adds probabilities × V.
__device__ __forceinline__ void accumulate(State& state, u32 tile, u32 values, u32 lane,
                                           const float (&p)[HALVES][NT][2]) {
    constexpr u32 GROUP_STEPS = min_of(Values::SCALE_CHANNELS / STEP, STEPS);
#pragma unroll
    for (u32 g = 0; g < Values::SCALE_GROUPS; ++g) {
        u32 a[SETS][4];
        if constexpr (Values::SCALED) {
            float scaled[HALVES][NT][2];
#pragma unroll
            for (u32 n = 0; n < NT; ++n)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    const float s = Values::tile_scale(tile, 8 * n + 2 * (lane % 4) + e, g);
#pragma unroll
                    for (u32 h = 0; h < HALVES; ++h) scaled[h][n][e] = p[h][n][e] * s;
                }
            operand<Values::Mma>(scaled, a);
        } else {
            operand<Values::Mma>(p, a);
        }
#pragma unroll
        for (u32 step = g * GROUP_STEPS; step < min_of((g + 1) * GROUP_STEPS, STEPS); ++step) {
            u32 b[Values::PLANES][NT][2];
            Values::template values<Values::ROW>(values, step, b);
#pragma unroll
            for (u32 set = 0; set < SETS; ++set)
#pragma unroll
                for (u32 plane = Values::PLANES; plane-- > 0;)
#pragma unroll
                    for (u32 j = 0; j < NT; ++j)
                        Values::Mma::mma(state.acc[step][j], a[set], b[plane][j]);
        }
    }
}

// Writes a warp's state where the block can read it.
__device__ __forceinline__ void publish(State& state, float* acc, float* stats, u32 lane) {
#pragma unroll
    for (u32 h = 0; h < HALVES; ++h) {
        const u32 row = lane / 4 + 8 * h;
        const float sum = quad_sum(state.sum[h]);
        if (row >= ROWS) continue;
        if (lane % 4 == 0) stats[2 * row] = state.top[h], stats[2 * row + 1] = sum;
#pragma unroll
        for (u32 s = 0; s < STEPS; ++s)
#pragma unroll
            for (u32 j = 0; j < NT; ++j)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    float v = state.acc[s][j][2 * h + e];
                    if constexpr (PACKED) v += state.acc[s][j][2 + e];
                    acc[row * ACC_ROW + s * STEP +
                        Values::value_channel(j, 2 * (lane % 4) + e)] = v;
                }
    }
}

}  // namespace

extern "C" __device__ const u32 headwise_decode_threads = THREADS;
extern "C" __device__ const u32 headwise_decode_shared = SHARED;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    headwise_decode(const u8* __restrict__ pages, const u32* __restrict__ page_ids,
                    const WorkItem* __restrict__ items, const u32* __restrict__ lists,
                    const u8* __restrict__ queries, u8* __restrict__ out,
                    float* __restrict__ lse, float* __restrict__ partial_out,
                    float* __restrict__ partial_lse, float* __restrict__ logits, float scale) {
    extern __shared__ __align__(128) u8 shared[];
    uint4* const shared_queries = reinterpret_cast<uint4*>(shared);
    u8* const ring = shared + QUERY_BYTES;
    float* const acc = reinterpret_cast<float*>(ring);
    float* const stats = acc + WARPS * ROWS * ACC_ROW;

    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first_row = blockIdx.y * ROWS;
    const u32 rows = min(ROWS, GROUP - first_row);
    const u32 my_ring = shared_address(ring) + warp * STAGES * STAGE_BYTES;
    const u32 key_lane = Keys::template key_lane<Keys::ROW>(lane);
    const u32 value_lane = Values::template value_lane<Values::ROW>(lane);

    const u32 end = lists[blockIdx.x + 1];
    for (u32 at = lists[blockIdx.x]; at < end; ++at) {
        const WorkItem item = items[at];
        const u32 row = item.query + first_row;
        const u32 tiles = tiles_of(item.slots);

        // The id of the next tile's page is read one tile early: its latency hides behind a tile.
        u32 next_id = 0;
        const auto prefetch = [&](u32 tile) {
            if (tile < tiles) next_id = page_ids[item.pages + tile / PAGE_TILES];
        };
        const auto issue = [&](u32 tile, u32 stage) {
            if (tile < tiles) {
                const TileAt t(tile, item.slots);
                const u8* const page = page_at(pages, next_id);
                prefetch(tile + WARPS);
                Keys::template copy_tile<WARP>(stage, page, t.first, t.valid, lane);
                Values::template copy_tile<WARP>(stage + Keys::TILE_BYTES, page, t.first, t.valid,
                                                 lane);
            }
            copy_async_commit();
        };

        prefetch(warp);
#pragma unroll
        for (u32 s = 0; s < STAGES - 1; ++s) issue(warp + s * WARPS, my_ring + s * STAGE_BYTES);

        stage_queries<THREADS>(shared_queries, queries + static_cast<u64>(row) * Io::payload(D),
                               rows, scale * LOG2_E);
        __syncthreads();
        const Queries q(shared_queries, lane);
        State state;

        u32 stage = my_ring;
        u32 free_stage = my_ring + (STAGES - 1) * STAGE_BYTES;
        const u32 ring_end = my_ring + STAGES * STAGE_BYTES;
        for (u32 tile = warp; tile < tiles; tile += WARPS) {
            copy_async_wait<STAGES - 2>();
            // All lanes' copies have landed, and all lanes are done with the tile before.
            __syncwarp();
            issue(tile + (STAGES - 1) * WARPS, free_stage);

            const TileAt t(tile, item.slots);
            float x[HALVES][NT][2];
            score_tile(q, stage, stage + key_lane, lane, x);
            if (t.valid < TILE) {
#pragma unroll
                for (u32 n = 0; n < NT; ++n)
#pragma unroll
                    for (u32 e = 0; e < 2; ++e)
                        if (8 * n + 2 * (lane % 4) + e >= t.valid)
#pragma unroll
                            for (u32 h = 0; h < HALVES; ++h) x[h][n][e] = -infinity();
            }
#ifdef HEADWISE_LOGITS
#pragma unroll
            for (u32 h = 0; h < HALVES; ++h)
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
            soften(state, x);
            const u32 v = stage + Keys::TILE_BYTES;
            accumulate(state, v, v + value_lane, lane, x);

            free_stage = stage;
            stage = stage + STAGE_BYTES == ring_end ? my_ring : stage + STAGE_BYTES;
        }

        copy_async_wait<0>();
        __syncthreads();
        publish(state, acc + warp * ROWS * ACC_ROW, stats + warp * ROWS * 2, lane);
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
                    acc + (w * ROWS + r) * ACC_ROW + channel);
                sum += weight * stats[2 * (w * ROWS + r) + 1];
                o.x += weight * v.x, o.y += weight * v.y, o.z += weight * v.z, o.w += weight * v.w;
            }
            const float inverse = sum == 0.0f ? 0.0f : divide(1.0f, sum);
            o.x *= inverse, o.y *= inverse, o.z *= inverse, o.w *= inverse;
            const float log_sum = sum == 0.0f ? -infinity() : top + log2_fast(sum);
            if (item.partial == NO_PARTIAL) {
                Io::store_4(out + static_cast<u64>(row + r) * Io::payload(D), nullptr, channel, o);
                if (channel == 0) lse[row + r] = log_sum * LN_2;
            } else {
                const u64 to = static_cast<u64>(item.partial) * GROUP + first_row + r;
                *reinterpret_cast<float4*>(partial_out + to * D + channel) = o;
                if (channel == 0) partial_lse[to] = log_sum;
            }
        }
        // The next item overwrites the queries and the ring.
        __syncthreads();
    }
}
