// The largest logit of each row.
//
//   logits  [grid.x, vocab] f32, rows `stride` values apart
//   best    [grid.x, 2]: a token and the bits of its logit. A logit that is NaN or +∞ is the result, the one
//           with the lowest token; else it is the largest, among equals the one with the lowest token; where
//           no logit is above −∞ the token is 2³² − 1
//
// Grid: x = rows. Block: headwise_argmax_threads threads, no dynamic shared memory.
#include "rows.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 512;
constexpr u32 NONE = 0xffffffffu;

struct Best {
    float value;
    u32 token;
    // The lowest token whose logit is NaN or +∞.
    u32 wrong;
};

__device__ __forceinline__ Best better(const Best& a, const Best& b) {
    const bool other = b.value > a.value || (b.value == a.value && b.token < a.token);
    return {other ? b.value : a.value, other ? b.token : a.token, min_of(a.wrong, b.wrong)};
}

}  // namespace

extern "C" __device__ const u32 headwise_argmax_threads = THREADS;
extern "C" __device__ const u32 headwise_argmax_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_argmax(const float* __restrict__ logits, u32 stride, u32* __restrict__ best,
                    u32 vocab) {
    __shared__ Best found[THREADS];
    const float* const row = logits + static_cast<u64>(blockIdx.x) * stride;
    Best mine = {-infinity(), NONE, NONE};
    for (u32 token = threadIdx.x; token < vocab; token += THREADS) {
        const float value = row[token];
        if (!(value < infinity())) {
            mine.wrong = min_of(mine.wrong, token);
        } else if (value > mine.value) {
            mine.value = value, mine.token = token;
        }
    }
    found[threadIdx.x] = mine;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            found[threadIdx.x] = better(found[threadIdx.x], found[threadIdx.x + half]);
    }
    if (threadIdx.x > 0) return;
    const Best all = found[0];
    const u32 token = all.wrong == NONE ? all.token : all.wrong;
    best[2 * blockIdx.x] = token;
    best[2 * blockIdx.x + 1] = __float_as_uint(token == NONE ? -infinity() : row[token]);
}
