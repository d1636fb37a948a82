//! The norm of the keys.

use super::{HeadContext, Needs, Scorer};
use crate::evict::EvictError;

/// Keys of low norm stay ("A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
/// arXiv 2406.11430): 1 / ‖k‖, which spends the same relative precision on every norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyNorm;

impl KeyNorm {
    /// Its name.
    pub const NAME: &'static str = "key-norm";
}

impl Scorer for KeyNorm {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn needs(&self) -> Needs {
        Needs { keys: true, ..Needs::default() }
    }

    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        let keys = ctx.checked_keys(Self::NAME, out.len())?;
        for (key, score) in keys.chunks_exact(ctx.head_dim.max(1)).zip(out) {
            // A zero key scores the most that is finite.
            *score = ((1.0 / norm(key)) as f32).min(f32::MAX);
        }
        Ok(())
    }
}

/// ‖key‖, in f64 so that no finite key overflows.
pub(super) fn norm(key: &[f32]) -> f64 {
    dot(key, key).sqrt()
}

/// Summed in lanes, because one chain of additions would wait for itself.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (lane, (&x, &y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += f64::from(x) * f64::from(y);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&x, &y)| f64::from(x) * f64::from(y));
    lanes.into_iter().chain(rest).sum()
}
