//! Exponentials in vectors.

use crate::base::simd::Simd;

/// `2^x` for `x <= 0`, to about 2e-7 relative plus 2^-126 absolute; 0 for `x <= -126`, −∞ included, and
/// NaN for NaN.
///
/// Cody–Waite reduction to `[-½, ½]` (Muller, "Elementary Functions", 3rd ed., ch. 11), then the
/// polynomial of degree 6.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::V) -> S::V {
    // ln(2)^i / i!, highest first.
    const TAYLOR: [f32; 7] = [
        1.540_353_1e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        std::f32::consts::LN_2,
        1.0,
    ];
    let x = simd.max(simd.splat(-126.0), x);
    let whole = simd.round(x);
    let rest = simd.sub(x, whole);
    let mut sum = simd.splat(TAYLOR[0]);
    for c in &TAYLOR[1..] {
        sum = simd.mul_add(sum, rest, simd.splat(*c));
    }
    // At the clamp the product is exactly 2^-126, and far above it the difference rounds away.
    simd.sub(simd.mul(sum, simd.exp2_int(whole)), simd.splat(f32::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attend::cpu::dispatch::{SimdVisitor, visit},
        base::simd::Isa,
    };

    struct Exp2(f32);
    impl SimdVisitor for Exp2 {
        type Output = f32;
        fn visit<S: Simd>(self, simd: S) -> f32 {
            // A sum keeps a NaN; all lanes are alike, and their number a power of two.
            simd.vectorize(|| simd.reduce_add(exp2(simd, simd.splat(self.0))) / S::LANES as f32)
        }
    }

    #[test]
    fn is_accurate_and_vanishes_at_minus_infinity() {
        for isa in Isa::available() {
            for i in 0..100_000 {
                let x = -(i as f32) * 1e-3;
                let (got, want) = (f64::from(visit(isa, Exp2(x))), f64::from(x).exp2());
                assert!((got / want - 1.0).abs() < 4e-7, "{isa:?}: 2^{x} = {want:e}, got {got:e}");
            }
            assert_eq!(visit(isa, Exp2(0.0)), 1.0);
            assert_eq!(visit(isa, Exp2(-126.0)), 0.0);
            assert_eq!(visit(isa, Exp2(-1e30)), 0.0);
            assert_eq!(visit(isa, Exp2(f32::NEG_INFINITY)), 0.0);
            assert!(visit(isa, Exp2(f32::NAN)).is_nan(), "{isa:?}: NaN is lost");
        }
    }
}
