//! The positional score of StreamingLLM.

use super::{HeadContext, Needs, Scorer};
use crate::evict::error::EvictError;

/// The newest tokens stay (StreamingLLM, arXiv 2309.17453); the sinks are the policy's
/// ([`Policy::sinks`](crate::evict::Policy)). The score rises with the position and depends on
/// nothing else, so that all heads give evenly, their oldest tokens first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinksWindow;

impl SinksWindow {
    /// Its name.
    pub const NAME: &'static str = "sinks-window";
}

impl Scorer for SinksWindow {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        ctx.check_positions(out.len())?;
        for (slot, score) in out.iter_mut().enumerate() {
            // Scaled so that no 32-bit position saturates the score. Positions that round to one
            // score are ties, of which the oldest dies first all the same.
            let position = ctx.positions.get(slot).map_or(0, u64::from);
            *score = (position + 1) as f32 / 131_072.0;
        }
        Ok(())
    }
}
