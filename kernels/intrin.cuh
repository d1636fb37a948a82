// The instructions that CUDA C++ has no built-in name for, one function each.
//
// Headerless on purpose: NVRTC then needs no toolkit include path, on any machine.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

namespace hw {

constexpr u32 WARP = 32;
constexpr u32 ALL = 0xffffffffu;
// Stands for minus infinity where a difference of two of them must be 0, not NaN.
constexpr float LOWEST = -3.0e38f;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Less than any score that counts: finite, so that zero times it is zero, and below LOWEST by so much
// that its weight is zero.
constexpr float MASKED = -3.4e38f;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fffffff); }

__device__ constexpr u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
__device__ constexpr u32 min_of(u32 a, u32 b) { return a < b ? a : b; }
__device__ constexpr u32 max_of(u32 a, u32 b) { return a > b ? a : b; }

__device__ __forceinline__ u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

// ---- asynchronous copies, sm_80 ----

// Copies the first `bytes` (0..=16) of 16 bytes past L1 and zero-fills the rest: a slot outside the
// table is never read, and what stands for it is a finite 0. Constant offsets cost no instruction. The
// rows of a page follow one another, so the second-level cache is told to fetch them 128 bytes at a time.
template <u32 TO, u32 FROM>
__device__ __forceinline__ void copy_async_16(u32 to_shared, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0 + %1], [%2 + %3], 16, %4;" ::"r"(to_shared),
                 "n"(TO), "l"(from), "n"(FROM), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `LEFT` of this thread's newest groups are under way.
template <u32 LEFT>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// ---- bulk copies and their barriers, sm_90 ----

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

// Orders this thread's earlier accesses to shared memory before later ones by the copy engine.
__device__ __forceinline__ void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Arrives, and announces `bytes` more that this phase waits for.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

// Arrives when this thread's asynchronous copies have landed.
__device__ __forceinline__ void barrier_arrive_after_copies(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!done);
}

// `bytes` is a multiple of 16, and so are both addresses.
__device__ __forceinline__ void copy_bulk(u32 to_shared, const void* from, u32 bytes,
                                          u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(to_shared),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

// ---- matrix fragments ----

// The loads from shared memory take a constant offset apart, which costs no instruction.
// Lane `l` gives the address of row `l % 8` of matrix `l / 8`; a matrix is 8 rows of 16 bytes.
template <u32 OFFSET>
__device__ __forceinline__ void load_matrix_2(u32 (&r)[2], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2 + %3];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row), "n"(OFFSET)
                 : "memory");
}

template <u32 OFFSET>
__device__ __forceinline__ void load_matrix_2_trans(u32 (&r)[2], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2 + %3];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row), "n"(OFFSET)
                 : "memory");
}

template <u32 OFFSET>
__device__ __forceinline__ void load_matrix_4(u32& a, u32& b, u32& c, u32& d, u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4 + %5];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(row), "n"(OFFSET)
                 : "memory");
}

template <u32 OFFSET>
__device__ __forceinline__ void load_matrix_4_trans(u32& a, u32& b, u32& c, u32& d, u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4 + %5];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(row), "n"(OFFSET)
                 : "memory");
}

template <u32 OFFSET>
__device__ __forceinline__ uint4 load_shared_4(u32 from) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4 + %5];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from), "n"(OFFSET)
                 : "memory");
    return v;
}

template <u32 OFFSET>
__device__ __forceinline__ uint2 load_shared_2(u32 from) {
    uint2 v;
    asm volatile("ld.shared.v2.b32 {%0,%1}, [%2 + %3];"
                 : "=r"(v.x), "=r"(v.y)
                 : "r"(from), "n"(OFFSET)
                 : "memory");
    return v;
}

template <u32 OFFSET>
__device__ __forceinline__ u32 load_shared(u32 from) {
    u32 v;
    asm volatile("ld.shared.b32 %0, [%1 + %2];" : "=r"(v) : "r"(from), "n"(OFFSET) : "memory");
    return v;
}

template <u32 OFFSET>
__device__ __forceinline__ u32 load_shared_half(u32 from) {
    u16 v;
    asm volatile("ld.shared.u16 %0, [%1 + %2];" : "=h"(v) : "r"(from), "n"(OFFSET) : "memory");
    return v;
}

// ---- 16-bit floats: their matrix product, and f32 to and from pairs of them ----

__device__ __forceinline__ float f16_to_f32(u16 bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}

__device__ __forceinline__ float bf16_to_f32(u16 bits) {
    float v;
    asm("mov.b32 %0, {%1, %2};" : "=f"(v) : "h"(static_cast<u16>(0)), "h"(bits));
    return v;
}

// One of the two values in a word: a single instruction, and no register for zero.
template <u32 WHICH>
__device__ __forceinline__ float bf16_of_pair(u32 pair) {
    float v;
    if constexpr (WHICH == 0) {
        asm("shl.b32 %0, %1, 16;" : "=f"(v) : "r"(pair));
    } else {
        asm("and.b32 %0, %1, 0xffff0000;" : "=f"(v) : "r"(pair));
    }
    return v;
}

__device__ __forceinline__ u16 f32_to_bf16(float v) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}

// Bits of magnitudes order as these do, with the infinity and then NaN above all numbers.
constexpr u32 INFINITE = 0x7f800000u;
__device__ __forceinline__ u32 magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }
__device__ __forceinline__ u32 magnitude_4(float4 v) {
    return max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
}

// The bits of a - b, for the bits of a and b: registers have no type, and saying so saves moves.
__device__ __forceinline__ u32 subtract_bits(u32 a, u32 b) {
    u32 r;
    asm("sub.rn.f32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
__device__ __forceinline__ float subtract_bits(float a, u32 b) {
    float r;
    asm("sub.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "r"(b));
    return r;
}

// Both values rounded to nearest even, `low` in the low half.
struct Half {
    // As f32: 65,504, and halfway to the next power of two, which rounds to infinity.
    static constexpr u32 LARGEST = 0x477fe000u;
    static constexpr u32 OVERFLOW = 0x477ff000u;
    static __device__ __forceinline__ u32 pack(float low, float high) {
        u32 r;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
    static __device__ __forceinline__ float low(u32 pair) {
        return f16_to_f32(static_cast<u16>(pair));
    }
    static __device__ __forceinline__ float high(u32 pair) {
        return f16_to_f32(static_cast<u16>(pair >> 16));
    }
    // What rounding took from the two values of a pair.
    static __device__ __forceinline__ u32 rest(float low_value, float high_value, u32 pair) {
        return pack(low_value - low(pair), high_value - high(pair));
    }
    // c (16×8, f32) += a (16×16, rows) · b (16×8, columns).
    static __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4],
                                               const u32 (&b)[2]) {
        asm(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    // c = a · b.
    static __device__ __forceinline__ void product(float (&c)[4], const u32 (&a)[4],
                                                   const u32 (&b)[2]) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
            : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
    }
};

struct Brain {
    // As f32: 255 · 2^120, and halfway to the next power of two, which rounds to infinity.
    static constexpr u32 LARGEST = 0x7f7f0000u;
    static constexpr u32 OVERFLOW = 0x7f7f8000u;
    static __device__ __forceinline__ u32 pack(float low, float high) {
        u32 r;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
    static __device__ __forceinline__ float low(u32 pair) {
        return __int_as_float(static_cast<int>(pair << 16));
    }
    static __device__ __forceinline__ float high(u32 pair) {
        return __int_as_float(static_cast<int>(pair & 0xffff0000u));
    }
    // What rounding took from the two values of a pair.
    static __device__ __forceinline__ u32 rest(float low_value, float high_value, u32 pair) {
        return pack(subtract_bits(low_value, pair << 16),
                    subtract_bits(high_value, pair & 0xffff0000u));
    }
    static __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4],
                                               const u32 (&b)[2]) {
        asm(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    // c = a · b.
    static __device__ __forceinline__ void product(float (&c)[4], const u32 (&a)[4],
                                                   const u32 (&b)[2]) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
            : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
    }
};

// A pair and what rounding took from it: `coarse + fine` has twice the bits of either.
template <class M>
__device__ __forceinline__ void split(float low, float high, u32& coarse, u32& fine) {
    coarse = M::pack(low, high);
    fine = M::rest(low, high, coarse);
}

// (a & MASK) | BITS. Constants in the instruction are not moved to registers in every iteration.
template <u32 MASK, u32 BITS>
__device__ __forceinline__ u32 and_or(u32 a) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "n"(MASK), "n"(BITS));
    return r;
}

// (a & MASK) ^ BITS.
template <u32 MASK, u32 BITS>
__device__ __forceinline__ u32 and_xor(u32 a) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(r) : "r"(a), "n"(MASK), "n"(BITS));
    return r;
}

// ---- arithmetic that must not change with the compiler's flags ----

__device__ __forceinline__ float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

__device__ __forceinline__ float log2_fast(float x) {
    float r;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

__device__ __forceinline__ float divide(float a, float b) {
    float r;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// To two units in the last place, for divisors up to 2^126.
__device__ __forceinline__ float divide_fast(float a, float b) {
    float r;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// The value of the lane whose number differs in `BIT`. The built-in shuffles integers, which costs
// moves from and to them.
template <u32 BIT>
__device__ __forceinline__ float exchange(float v) {
    float r;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(r) : "f"(v), "n"(BIT));
    return r;
}

__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, exchange<1>(v));
    return fmaxf(v, exchange<2>(v));
}

__device__ __forceinline__ float quad_sum(float v) {
    v += exchange<1>(v);
    return v + exchange<2>(v);
}

}  // namespace hw
