//! No score at all: the baseline that every other must beat.

use super::{HeadContext, Needs, Scorer};
use crate::evict::{error::EvictError, score::mix};

/// Uniform in [0, 1), a hash of (seed, head, position): the same token of the same head scores the
/// same wherever compaction puts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Random {
    seed: u64,
}

impl Random {
    /// Its name.
    pub const NAME: &'static str = "random";

    /// Another `seed` scores differently.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }
}

impl Scorer for Random {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        ctx.check_positions(out.len())?;
        let head_seed = mix(self.seed ^ mix(ctx.head as u64));
        for (slot, score) in out.iter_mut().enumerate() {
            let position = ctx.positions.get(slot).map_or(0, u64::from);
            *score = (mix(head_seed ^ position) >> 40) as f32 / 16_777_216.0;
        }
        Ok(())
    }
}
