//! What f32 cannot hold makes itself known.

use crate::{attend::settle::MOST_LOGIT, base::simd::Simd};

/// 0, or NaN where a logit in base 2 is [too large](MOST_LOGIT), infinite or NaN.
///
/// Added to a row's sum it puts the row in doubt for good: whatever a NaN is added to, multiplied with
/// or merged into is NaN.
#[inline(always)]
pub(super) fn doubt<S: Simd>(simd: S, logit: S::V) -> S::V {
    // 2^24 · 2^104 overflows, and 0 · ∞ is NaN.
    const OVER: f32 = f32::from_bits((127 + 104) << 23);
    const { assert!(MOST_LOGIT == 16_777_216.0) };
    simd.mul(simd.mul(logit, simd.splat(OVER)), simd.splat(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attend::cpu::dispatch::{SimdVisitor, visit},
        base::simd::Isa,
    };

    struct Doubt(f32);
    impl SimdVisitor for Doubt {
        type Output = f32;
        fn visit<S: Simd>(self, simd: S) -> f32 {
            simd.vectorize(|| simd.reduce_add(doubt(simd, simd.splat(self.0))))
        }
    }

    #[test]
    fn only_what_is_too_large_is_in_doubt() {
        let below = MOST_LOGIT.next_down();
        for isa in Isa::available() {
            for good in [0.0, -0.0, 1e-45, 1.0, below] {
                assert_eq!(visit(isa, Doubt(good)), 0.0, "{isa:?} {good}");
                assert_eq!(visit(isa, Doubt(-good)), 0.0, "{isa:?} -{good}");
            }
            for bad in [MOST_LOGIT, 2.4e38, f32::MAX, f32::INFINITY, f32::NAN] {
                assert!(visit(isa, Doubt(bad)).is_nan(), "{isa:?} {bad}");
                assert!(visit(isa, Doubt(-bad)).is_nan(), "{isa:?} -{bad}");
            }
        }
    }
}
