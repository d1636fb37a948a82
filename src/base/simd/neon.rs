//! Arm Advanced SIMD: eight lanes as two registers.

use std::arch::aarch64::*;

use super::Simd;

/// See [`Isa::Neon`](super::Isa::Neon). A value of this type exists only where the set does.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

/// Two registers: the formats' loads widen eight values at a time.
type V = [float32x4_t; 2];

impl Neon {
    /// The set, if this machine has it.
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> V {
    [f(a[0], b[0]), f(a[1], b[1])]
}

// SAFETY of every block below: a value of `Neon` exists only where `detect` found the features, and
// memory operations repeat what their caller promised.
impl Simd for Neon {
    type V = V;
    const LANES: usize = 8;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[inline]
        #[target_feature(enable = "neon")]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: see above.
        unsafe { run(f) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        // SAFETY: see above.
        [unsafe { vdupq_n_f32(x) }; 2]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: see above.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: see above.
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> V {
        // SAFETY: see above. Half-precision lanes are widened by shifts: exponent and mantissa move
        // to their places in f32 and 2^112 corrects the bias, which also makes subnormals right;
        // infinities and NaN, whose exponent is all ones, get the missing exponent bits.
        unsafe {
            let bits = vld1q_u16(p.cast());
            let widen = |half: uint16x4_t| {
                let wide = vmovl_u16(half);
                let sign = vshlq_n_u32::<16>(vandq_u32(wide, vdupq_n_u32(0x8000)));
                let rest = vshlq_n_u32::<13>(vandq_u32(wide, vdupq_n_u32(0x7fff)));
                let scaled = vmulq_f32(
                    vreinterpretq_f32_u32(rest),
                    vdupq_n_f32(f32::from_bits((127 + 112) << 23)),
                );
                let special = vcgeq_u32(rest, vdupq_n_u32(0x0f80_0000));
                let filled = vorrq_u32(rest, vdupq_n_u32(0x7f80_0000));
                let magnitude = vbslq_u32(special, filled, vreinterpretq_u32_f32(scaled));
                vreinterpretq_f32_u32(vorrq_u32(magnitude, sign))
            };
            [widen(vget_low_u16(bits)), widen(vget_high_u16(bits))]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> V {
        // SAFETY: see above.
        unsafe {
            let bits = vld1q_u16(p.cast());
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(bits))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(bits))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> V {
        // SAFETY: see above.
        unsafe {
            let wide = vmovl_s8(vld1_s8(p.cast()));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))),
            ]
        }
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        // SAFETY: see above.
        zip(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        // SAFETY: see above.
        zip(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        // SAFETY: see above.
        zip(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        // SAFETY: see above.
        zip(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }

    #[inline(always)]
    fn mul_add(self, a: V, b: V, c: V) -> V {
        // SAFETY: see above.
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        // SAFETY: see above.
        zip(a, b, |a, b| unsafe { vmaxq_f32(a, b) })
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        // SAFETY: see above.
        zip(a, b, |a, b| unsafe { vminq_f32(a, b) })
    }

    #[inline(always)]
    fn round(self, a: V) -> V {
        // SAFETY: see above.
        a.map(|a| unsafe { vrndnq_f32(a) })
    }

    #[inline(always)]
    fn exp2_int(self, a: V) -> V {
        // SAFETY: see above.
        a.map(|a| unsafe {
            let biased = vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        })
    }

    #[inline(always)]
    fn reduce_add(self, a: V) -> f32 {
        // SAFETY: see above.
        unsafe { vaddvq_f32(vaddq_f32(a[0], a[1])) }
    }

    #[inline(always)]
    fn reduce_max(self, a: V) -> f32 {
        // SAFETY: see above.
        unsafe { vmaxvq_f32(vmaxq_f32(a[0], a[1])) }
    }

    #[inline(always)]
    fn fold_sums(self, [a, b, c, d]: [V; 4]) -> V {
        // SAFETY: see above.
        unsafe {
            [
                vpaddq_f32(vaddq_f32(a[0], a[1]), vaddq_f32(b[0], b[1])),
                vpaddq_f32(vaddq_f32(c[0], c[1]), vaddq_f32(d[0], d[1])),
            ]
        }
    }

    #[inline(always)]
    fn finish_sums(self, folded: [V; 4]) -> [[f32; 4]; 4] {
        let mut sums = [[0.0; 4]; 4];
        for (sums, v) in sums.iter_mut().zip(folded) {
            // SAFETY: see above; an array of four is 16 bytes.
            unsafe { vst1q_f32(sums.as_mut_ptr(), vpaddq_f32(v[0], v[1])) };
        }
        sums
    }
}
