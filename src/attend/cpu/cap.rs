//! Logits held to a range.

use std::f32::consts::LOG2_E;

use super::{doubt::doubt, exp::exp2};
use crate::base::simd::Simd;

/// Brings logits in base 2 to `cap · tanh(logit / cap)`, or to NaN where they are in [doubt](doubt()):
/// sums that overflowed on the way must not come back as ±cap. `cap` is in base 2 too.
///
/// `tanh |z| = (1 - e) / (1 + e)` with `e = exp(-2 |z|)`, to about 2e-7 of the cap.
///
/// # Safety
/// `logits` is valid for reading and writing `LANES` values.
#[inline(always)]
pub(super) unsafe fn cap<S: Simd>(simd: S, logits: *mut f32, cap: f32) {
    // SAFETY: the caller's values.
    unsafe { simd.store(logits, capped(simd, simd.load(logits), cap)) }
}

#[inline(always)]
fn capped<S: Simd>(simd: S, logit: S::V, cap: f32) -> S::V {
    let (one, zero) = (simd.splat(1.0), simd.splat(0.0));
    let z = simd.div(logit, simd.splat(cap));
    let below = simd.min(z, simd.sub(zero, z));
    let e = exp2(simd, simd.mul(below, simd.splat(2.0 * LOG2_E)));
    let size = simd.div(simd.sub(one, e), simd.add(one, e));
    // The sign of z, without a comparison: far out of range, then held to the size.
    let far = simd.mul(z, simd.splat(1e30));
    let tanh = simd.max(simd.sub(zero, size), simd.min(far, size));
    simd.mul_add(tanh, simd.splat(cap), doubt(simd, logit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attend::cpu::dispatch::{SimdVisitor, visit},
        base::simd::Isa,
    };

    struct Capped(f32, f32);
    impl SimdVisitor for Capped {
        type Output = f32;
        fn visit<S: Simd>(self, simd: S) -> f32 {
            simd.vectorize(|| {
                simd.reduce_add(capped(simd, simd.splat(self.0), self.1)) / S::LANES as f32
            })
        }
    }

    #[test]
    fn is_the_hyperbolic_tangent() {
        for isa in Isa::available() {
            for cap in [0.5f32, 43.28, 72.13, 5000.0] {
                for i in -4000..=4000 {
                    let logit = i as f32 * cap * 1e-3;
                    let exact = f64::from(cap) * (f64::from(logit) / f64::from(cap)).tanh();
                    let got = f64::from(visit(isa, Capped(logit, cap)));
                    let error = (got - exact).abs() / f64::from(cap);
                    assert!(error < 4e-7, "{isa:?}: {cap} {logit}: {got}, {exact}");
                    assert!(got == 0.0 || got.signum() == f64::from(logit).signum());
                }
                for far in [1e6f32, -1e6] {
                    let got = visit(isa, Capped(far, cap));
                    assert!((got / far.signum() / cap - 1.0).abs() < 1e-2 * cap.max(1.0), "{got}");
                }
                for lost in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e38] {
                    assert!(visit(isa, Capped(lost, cap)).is_nan(), "{isa:?}: {lost}");
                }
            }
        }
    }
}
