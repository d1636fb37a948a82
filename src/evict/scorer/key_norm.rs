//! The norm of the keys.

use super::{HeadContext, Needs, Scorer, vector::norm};
use crate::evict::error::EvictError;

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
