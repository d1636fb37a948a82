// Queries, keys and values of a layer out of one product: norms of heads, and rotary embedding (Su et al.
// 2021) of queries and keys.
//
//   from       [grid.x, (query_heads + 2 · kv_heads) · head_dim] f32: heads of q, then of k, then of v
//   positions  [grid.x] of each row
//   turns      [pairs]: how far a position turns each pair, as a part of a whole turn times 2⁶⁴. Whole turns
//              fall off the top, so that angles are exact to far beyond f32 at any position
//   q_norm, k_norm  null, or [head_dim] f32: heads are divided by √(mean(x²) + epsilon) and multiplied by
//              this before they turn
//   q, k, v    [grid.x, heads · head_dim] of the output element. A null v leaves values where they are; k
//              may be its own place in `from` when it is f32
//
// HEADWISE_PAIRING 0: channels 2i and 2i + 1 are pair i. 1: channels i and pairs + i are. Channels from
// 2 · pairs on do not turn. Strides are from row to row, in values.
//
// Grid: x = rows, y = ⌈heads ÷ warps⌉. A warp does a head. Block: headwise_rope_threads threads, no dynamic
// shared memory.
#include "rows.cuh"

using namespace hw;

namespace {

constexpr u32 THREADS = 128;
using F32 = Element<0>;
using To = Element<HEADWISE_TO>;

// 2⁻⁶³: half turns of 2⁶⁴ths of a turn.
constexpr float HALF_TURNS = 1.0842021724855044e-19f;

__device__ __forceinline__ float read(const u8* row, u32 c) { return F32::load<1>(row, c).v[0]; }
__device__ __forceinline__ void write(u8* row, u32 c, float v) { To::store<1>(row, c, {{v}}); }

}  // namespace

extern "C" __device__ const u32 headwise_rope_threads = THREADS;
extern "C" __device__ const u32 headwise_rope_shared = 0;

extern "C" __global__ void __launch_bounds__(THREADS)
    headwise_rope(const u8* from, u32 from_stride, const u32* __restrict__ positions,
                  const u64* __restrict__ turns, u32 pairs, u32 head_dim, u32 query_heads,
                  u32 kv_heads, const float* __restrict__ q_norm, const float* __restrict__ k_norm,
                  float epsilon, u8* q, u32 q_stride, u8* k, u32 k_stride, u8* v, u32 v_stride) {
    const u32 lane = threadIdx.x % WARP;
    const u32 head = blockIdx.y * (THREADS / WARP) + threadIdx.x / WARP;
    const u64 row = blockIdx.x;
    if (head >= query_heads + kv_heads + (v ? kv_heads : 0)) return;
    const u8* const x = from + (row * from_stride + head * head_dim) * F32::BYTES;

    if (head >= query_heads + kv_heads) {
        const u32 first = (head - query_heads - kv_heads) * head_dim;
        u8* const to = v + (row * v_stride + first) * To::BYTES;
        for (u32 c = lane; c < head_dim; c += WARP) write(to, c, read(x, c));
        return;
    }
    const bool query = head < query_heads;
    u8* const to = query ? q + (row * q_stride + head * head_dim) * To::BYTES
                         : k + (row * k_stride + (head - query_heads) * head_dim) * To::BYTES;
    const float* const norm = query ? q_norm : k_norm;
    float scale = 1.0f;
    if (norm) {
        float sum = 0.0f;
        for (u32 c = lane; c < head_dim; c += WARP) sum += read(x, c) * read(x, c);
        scale = inverse_rms(warp_sum(sum), head_dim, epsilon);
    }
    const auto value = [&](u32 c) { return norm ? read(x, c) * scale * norm[c] : read(x, c); };
    // Both channels of a pair are one lane's: a head may be turned where it is.
    for (u32 pair = lane; pair < pairs; pair += WARP) {
        const u32 first = HEADWISE_PAIRING == 0 ? 2 * pair : pair;
        const u32 second = HEADWISE_PAIRING == 0 ? first + 1 : first + pairs;
        const u64 angle = turns[pair] * positions[row];
        float sine, cosine;
        sincospif(static_cast<float>(static_cast<long long>(angle)) * HALF_TURNS, &sine, &cosine);
        const float a = value(first), b = value(second);
        write(to, first, a * cosine - b * sine);
        write(to, second, a * sine + b * cosine);
    }
    for (u32 c = 2 * pairs + lane; c < head_dim; c += WARP) write(to, c, value(c));
}
