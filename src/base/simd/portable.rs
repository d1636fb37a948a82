//! Plain Rust: what runs where no other set is found, and what the others are compared with.

use half::{bf16, f16};

use super::Simd;

/// See [`Isa::Portable`](super::Isa::Portable).
#[derive(Clone, Copy, Debug)]
pub struct Portable;

type V = [f32; 8];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = V;
    const LANES: usize = 8;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the caller's 32 bytes; the read needs no alignment.
        unsafe { p.cast::<V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: the caller's 32 bytes; the write needs no alignment.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> V {
        // SAFETY: the caller's 16 bytes.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        bits.map(|x| f16::from_bits(x).to_f32_const())
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> V {
        // SAFETY: the caller's 16 bytes.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        bits.map(|x| bf16::from_bits(x).to_f32_const())
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> V {
        // SAFETY: the caller's 8 bytes.
        let bytes = unsafe { p.cast::<[i8; 8]>().read_unaligned() };
        bytes.map(f32::from)
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: V, b: V, c: V) -> V {
        // Not `f32::mul_add`: without the instruction that is a call for every lane.
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        // Not `f32::max`, which drops a NaN.
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self, a: V) -> V {
        a.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn exp2_int(self, a: V) -> V {
        // Wraps: what is not in the range, NaN above all, only has to come to an end.
        a.map(|x| f32::from_bits(((x as i32).wrapping_add(127) << 23) as u32))
    }

    #[inline(always)]
    fn reduce_add(self, a: V) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }

    #[inline(always)]
    fn reduce_max(self, a: V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn fold_sums(self, [a, b, c, d]: [V; 4]) -> V {
        std::array::from_fn(|i| {
            let v = [a, b, c, d][i % 4];
            if i < 4 { (v[0] + v[4]) + (v[2] + v[6]) } else { (v[1] + v[5]) + (v[3] + v[7]) }
        })
    }

    #[inline(always)]
    fn finish_sums(self, folded: [V; 4]) -> [[f32; 4]; 4] {
        folded.map(|v| std::array::from_fn(|i| v[i] + v[i + 4]))
    }
}
