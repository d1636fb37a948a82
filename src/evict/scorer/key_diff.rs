//! The score of KeyDiff.

use super::{
    HeadContext, Needs, Scorer,
    vector::{dot, norm},
};
use crate::evict::error::EvictError;

/// How much a key differs from the others (KeyDiff, arXiv 2504.15364): 1 − cos(k, m), m the mean of
/// the head's normalised keys; from 0 to 2. Similar keys are redundant, so dissimilar ones stay.
/// A zero key (or one so short that single precision has no inverse of its norm), and every key when
/// the mean is zero, scores 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyDiff;

impl KeyDiff {
    /// Its name.
    pub const NAME: &'static str = "keydiff";
}

impl Scorer for KeyDiff {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn needs(&self) -> Needs {
        Needs { keys: true, ..Needs::default() }
    }

    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        let keys = ctx.checked_keys(Self::NAME, out.len())?;
        let rows = || keys.chunks_exact(ctx.head_dim.max(1));
        // Single precision would lose the late keys of a long context against the sum.
        let mut sum = vec![0.0f64; ctx.head_dim];
        for (key, inverse) in rows().zip(&mut *out) {
            *inverse = inverse_or_zero(norm(key));
            let scale = f64::from(*inverse);
            sum.iter_mut().zip(key).for_each(|(sum, &k)| *sum += f64::from(k) * scale);
        }
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        let direction: Vec<f32> =
            sum.iter().map(|x| if length > 0.0 { (x / length) as f32 } else { 0.0 }).collect();
        for (key, score) in rows().zip(out) {
            let cosine = dot(key, &direction) * f64::from(*score);
            *score = (1.0 - cosine).clamp(0.0, 2.0) as f32;
        }
        Ok(())
    }
}

/// A zero key has no direction, and one whose inverse norm overflows has none that matters.
fn inverse_or_zero(norm: f64) -> f32 {
    let inverse = (1.0 / norm) as f32;
    if inverse.is_finite() { inverse } else { 0.0 }
}
