// Attention of one warp over tiles in shared memory: rows of queries against 16 slots at a time.
//
// Rows are operand rows of mma.m16n8k16, slots its columns; a lane owns rows lane / 4 and
// lane / 4 + 8, and slots 2 (lane % 4) + {0, 1} of each of the two products of a tile.
#pragma once
#include "format.cuh"
#include "window.cuh"

namespace hw {

// Shared memory of a block: two blocks per multiprocessor where its 228 or 164 KB allow that. From sm_120
// on, as on sm_86 and sm_89, a multiprocessor has 100 KB or so and a block gets 99.
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
constexpr u32 SHARED_BUDGET = 113 * 1024;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
constexpr u32 SHARED_BUDGET = 81 * 1024;
#else
constexpr u32 SHARED_BUDGET = 99 * 1024;
#endif

// How queries and probabilities fill the sixteen operand rows, and how often they are multiplied.
//
// PACKED: eight rows; the other eight hold what rounding took from the first, so that both keep
// twice the bits at no cost. Else sixteen rows, which SETS = 2 multiplies twice to the same effect
// and SETS = 1 once, rounded.
template <bool PACKED, u32 SETS>
struct Attention {
    static_assert(!PACKED || SETS == 1, "packed rows need no second product");
    static constexpr u32 HALVES = PACKED ? 1 : 2;
    static constexpr u32 ROWS = 8 * HALVES;
    // Bytes of the query operands in shared memory.
    static constexpr u32 QUERY_BYTES = SETS * STEPS * WARP * 16;
    // Queries stay in registers where they leave room for the accumulators.
    static constexpr bool RESIDENT = STEPS * SETS <= 8;
    // Floats of a row of accumulators in shared memory; the padding spreads rows over the banks.
    static constexpr u32 ACC_ROW = D + 8;

    // One value for each row and slot (or channel) of this lane.
    typedef float Block[HALVES][NT][2];

    // Operand rows of two groups of values: of row `lane / 4`, and of row `lane / 4 + 8` if not packed.
    template <class M>
    static __device__ __forceinline__ void operand(const Block& v, u32 (&a)[SETS][4]) {
#pragma unroll
        for (u32 n = 0; n < NT; ++n) {
            if constexpr (PACKED) {
                split<M>(v[0][n][0], v[0][n][1], a[0][2 * n], a[0][2 * n + 1]);
            } else {
#pragma unroll
                for (u32 half = 0; half < HALVES; ++half) {
                    if constexpr (SETS == 2)
                        split<M>(v[half][n][0], v[half][n][1], a[0][2 * n + half], a[1][2 * n + half]);
                    else
                        a[0][2 * n + half] = M::pack(v[half][n][0], v[half][n][1]);
                }
            }
        }
    }

    // Writes the operands of query rows, scaled, by `THREADS` threads. `row_at(row)` is where row
    // `row` lies, or null for a row that does not exist and counts as zeros.
    template <u32 THREADS, class RowAt>
    static __device__ __forceinline__ void stage_queries(uint4* to, u32 thread, float factor,
                                                         const RowAt& row_at) {
        for (u32 at = thread; at < STEPS * WARP; at += THREADS) {
            const u32 step = at / WARP, lane = at % WARP;
            Block v;
#pragma unroll
            for (u32 half = 0; half < HALVES; ++half) {
                const u8* const row = row_at(lane / 4 + 8 * half);
#pragma unroll
                for (u32 n = 0; n < NT; ++n)
#pragma unroll
                    for (u32 e = 0; e < 2; ++e) {
                        const u32 channel = step * STEP + Keys::key_channel(lane % 4 * 2 + e + 8 * n);
                        v[half][n][e] = row ? Io::load_1(row, channel) * factor : 0.0f;
                    }
            }
            u32 a[SETS][4];
            operand<Keys::KeyMma>(v, a);
#pragma unroll
            for (u32 set = 0; set < SETS; ++set)
                to[set * STEPS * WARP + at] = make_uint4(a[set][0], a[set][1], a[set][2], a[set][3]);
        }
    }

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

    // Scaled scores of a tile: rows of queries × the two slots of this lane in each product.
    static __device__ __forceinline__ void score_tile(const Queries& queries, u32 tile, u32 keys,
                                                      u32 lane, Block& x) {
        typename Keys::LoadedScales loaded;
        score_group<0>(queries, tile, keys, lane, loaded, x);
    }

    // Takes out the slots from `end[half]` on, counted from the tile's first.
    static __device__ __forceinline__ void mask(Block& x, const u32 (&end)[HALVES], u32 lane) {
#pragma unroll
        for (u32 h = 0; h < HALVES; ++h) {
            const int mine = static_cast<int>(end[h]) - static_cast<int>(2 * (lane % 4));
#pragma unroll
            for (u32 n = 0; n < NT; ++n)
#pragma unroll
                for (u32 e = 0; e < 2; ++e)
                    if (static_cast<int>(8 * n + e) >= mine) x[h][n][e] = MASKED;
        }
    }

    // Takes out the slots that are hidden from each row, counted from the tile's first.
    static __device__ __forceinline__ void hide(Block& x, const Hidden (&hidden)[HALVES], u32 lane) {
#pragma unroll
        for (u32 h = 0; h < HALVES; ++h)
#pragma unroll
            for (u32 n = 0; n < NT; ++n)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    const u32 slot = 8 * n + 2 * (lane % 4) + e;
                    if (hidden[h].from <= slot && slot < hidden[h].to) x[h][n][e] = MASKED;
                }
    }

    // Holds scores in base 2 to cap · tanh(score / cap), `cap` being a natural logarithm. What is not
    // finite becomes NaN: sums that overflowed on the way must not come back as ±cap.
    //
    // tanh z = (1 − e) / (1 + e) with e = exp(−2z) for z > 0, but for small z, where that cancels, by its
    // series: so it is right to 2e-7 of the smaller of score and cap.
    static __device__ __forceinline__ void hold(Block& x, float cap) {
        const float cap_2 = cap * LOG2_E, inverse = divide(1.0f, cap_2), twice = divide(-2.0f, cap);
#pragma unroll
        for (u32 h = 0; h < HALVES; ++h)
#pragma unroll
            for (u32 n = 0; n < NT; ++n)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    const float score = x[h][n][e], z = score * inverse, z2 = z * z;
                    const float near = score * fmaf(z2, fmaf(z2, 2.0f / 15.0f, -1.0f / 3.0f), 1.0f);
                    const float below = exp2_fast(fabsf(score) * twice);
                    const float far = cap_2 * divide_fast(1.0f - below, 1.0f + below);
                    const float held = fabsf(z) < 0.125f ? near : copysignf(far, score);
                    x[h][n][e] = fmaf(score, 0.0f, held);
                }
    }

    // Turns scores into probabilities against the running maximum, which may rise. A score that is not
    // finite makes the row's sum NaN: it would otherwise be a weight of zero without a word.
    static __device__ __forceinline__ void soften(State& state, Block& x) {
        float top[HALVES];
        bool risen = false;
#pragma unroll
        for (u32 h = 0; h < HALVES; ++h) {
            const float here = fmaxf(fmaxf(x[h][0][0], x[h][0][1]), fmaxf(x[h][1][0], x[h][1][1]));
            const float least = fminf(fminf(x[h][0][0], x[h][0][1]), fminf(x[h][1][0], x[h][1][1]));
            state.sum[h] = fmaf(least, 0.0f, state.sum[h]);
            top[h] = fmaxf(state.top[h], quad_max(here));
            risen |= top[h] > state.top[h];
        }
        if (__any_sync(ALL, risen)) raise(state, top);
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

    // Adds a logit in base 2 without a value to each row, in one of its lanes.
    static __device__ __forceinline__ void add_sinks(State& state, const float (&sinks)[HALVES], u32 lane) {
        float top[HALVES];
#pragma unroll
        for (u32 h = 0; h < HALVES; ++h) top[h] = fmaxf(state.top[h], sinks[h]);
        raise(state, top);
#pragma unroll
        for (u32 h = 0; h < HALVES; ++h)
            if (lane % 4 == 0) state.sum[h] += exp2_fast(sinks[h] - top[h]);
    }

    // Adds probabilities × V.
    static __device__ __forceinline__ void accumulate(State& state, u32 tile, u32 values, u32 lane,
                                                      const Block& p) {
        typename Values::LoadedScales loaded;
        accumulate_group<0>(state, tile, values, lane, loaded, p);
    }

    // The logarithm, base 2, of what a row that sees slots sums up to. No weight at all is no result.
    static __device__ __forceinline__ float log_sum(float top, float sum) {
        return sum > 0.0f ? top + log2_fast(sum) : not_a_number();
    }

    // Writes the first `rows` rows of a warp's state where other lanes can read them.
    static __device__ __forceinline__ void publish(const State& state, float* acc, float* stats,
                                                   u32 rows, u32 lane) {
#pragma unroll
        for (u32 h = 0; h < HALVES; ++h) {
            const u32 row = lane / 4 + 8 * h;
            const float sum = quad_sum(state.sum[h]);
            if (row >= rows) continue;
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

private:
    // Puts sums in proportion to a maximum that is higher, or the same.
    static __device__ __forceinline__ void raise(State& state, const float (&top)[HALVES]) {
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

    static constexpr u32 KEY_STEPS = min_of(Keys::SCALE_CHANNELS / STEP, STEPS);
    static constexpr u32 VALUE_STEPS = min_of(Values::SCALE_CHANNELS / STEP, STEPS);

    // Steps are template arguments so that loads have constant offsets.
    template <u32 AT, u32 END, bool FIRST = true>
    static __device__ __forceinline__ void key_steps(const Queries& queries, u32 keys,
                                                     float (&c)[NT][4]) {
        if constexpr (AT < END) {
            u32 b[Keys::PLANES][NT][2];
            Keys::template keys<Keys::ROW, AT>(keys, b);
#pragma unroll
            for (u32 set = 0; set < SETS; ++set) {
                u32 a[4];
                queries.get(set * STEPS + AT, a);
#pragma unroll
                for (u32 plane = Keys::PLANES; plane-- > 0;)
#pragma unroll
                    for (u32 n = 0; n < NT; ++n)
                        if (FIRST && set == 0 && plane == Keys::PLANES - 1)
                            Keys::KeyMma::product(c[n], a, b[plane][n]);
                        else
                            Keys::KeyMma::mma(c[n], a, b[plane][n]);
            }
            key_steps<AT + 1, END, false>(queries, keys, c);
        }
    }

    // Channels that share a scale.
    template <u32 G>
    static __device__ __forceinline__ void score_group(const Queries& queries, u32 tile, u32 keys,
                                                       u32 lane,
                                                       typename Keys::LoadedScales& loaded,
                                                       Block& x) {
        if constexpr (G < Keys::SCALE_GROUPS) {
            float c[NT][4];
            key_steps<G * KEY_STEPS, min_of((G + 1) * KEY_STEPS, STEPS)>(queries, keys, c);
            float s[NT][2];
            if constexpr (Keys::SCALED) Keys::template tile_scales<G>(tile, lane, loaded, s);
#pragma unroll
            for (u32 n = 0; n < NT; ++n)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    float part[HALVES];
                    if constexpr (PACKED)
                        part[0] = c[n][e] + c[n][e + 2];
                    else
                        part[0] = c[n][e], part[1] = c[n][e + 2];
#pragma unroll
                    for (u32 h = 0; h < HALVES; ++h) {
                        if constexpr (Keys::SCALED) part[h] *= s[n][e];
                        x[h][n][e] = G == 0 ? part[h] : x[h][n][e] + part[h];
                    }
                }
            score_group<G + 1>(queries, tile, keys, lane, loaded, x);
        }
    }

    template <u32 AT, u32 END>
    static __device__ __forceinline__ void value_steps(State& state, u32 values,
                                                       const u32 (&a)[SETS][4]) {
        if constexpr (AT < END) {
            u32 b[Values::PLANES][NT][2];
            Values::template values<Values::ROW, AT>(values, b);
#pragma unroll
            for (u32 set = 0; set < SETS; ++set)
#pragma unroll
                for (u32 plane = Values::PLANES; plane-- > 0;)
#pragma unroll
                    for (u32 j = 0; j < NT; ++j)
                        Values::ValueMma::mma(state.acc[AT][j], a[set], b[plane][j]);
            value_steps<AT + 1, END>(state, values, a);
        }
    }

    template <u32 G>
    static __device__ __forceinline__ void accumulate_group(State& state, u32 tile, u32 values,
                                                            u32 lane,
                                                            typename Values::LoadedScales& loaded,
                                                            const Block& p) {
        if constexpr (G < Values::SCALE_GROUPS) {
            u32 a[SETS][4];
            if constexpr (Values::SCALED) {
                Block scaled;
                float s[NT][2];
                Values::template tile_scales<G>(tile, lane, loaded, s);
#pragma unroll
                for (u32 n = 0; n < NT; ++n)
#pragma unroll
                    for (u32 e = 0; e < 2; ++e)
#pragma unroll
                        for (u32 h = 0; h < HALVES; ++h) scaled[h][n][e] = p[h][n][e] * s[n][e];
                operand<Values::ValueMma>(scaled, a);
            } else {
                operand<Values::ValueMma>(p, a);
            }
            value_steps<G * VALUE_STEPS, min_of((G + 1) * VALUE_STEPS, STEPS)>(state, values, a);
            accumulate_group<G + 1>(state, tile, values, lane, loaded, p);
        }
    }
};

}  // namespace hw
