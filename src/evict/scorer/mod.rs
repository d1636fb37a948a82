//! How much each slot matters.
//!
//! A scorer is one file that implements [`Scorer`], and one line in [`ScorerKind`].

mod key_diff;
mod key_norm;
mod kind;
mod kv_compress;
mod random;
mod sinks_window;
mod vector;

pub use key_diff::KeyDiff;
pub use key_norm::KeyNorm;
pub use kind::ScorerKind;
pub use kv_compress::KvCompress;
pub use random::Random;
pub use sinks_window::SinksWindow;

use std::any::Any;

use super::{error::EvictError, score::first_unlike};
use crate::base::Positions;

/// What a scorer asks of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// [`HeadContext::keys`].
    pub keys: bool,
    /// [`HeadContext::attention`] in [`Scorer::score`], summed over this many of the newest
    /// queries, or over all that a chunk has if it has fewer.
    pub attention_window: Option<usize>,
    /// Of these queries, attention to this many of the last slots that each sees does not count. Back to
    /// the last compaction these are the newest tokens; the slots before it have no order.
    pub skip_newest: usize,
    /// [`HeadContext::attention`] in [`Scorer::increment`], at each decoding step.
    pub decode_attention: bool,
}

/// What a scorer is told of one KV head.
#[derive(Clone, Copy, Debug)]
pub struct HeadContext<'a> {
    /// The head's place among all (layer, KV head) pairs of the sequence.
    pub head: usize,
    /// Tokens the sequence has seen.
    pub logical_len: usize,
    /// The tokens that the head's slots hold.
    pub positions: Positions<'a>,
    /// Channels of a key.
    pub head_dim: usize,
    /// Rows of attention: the query heads that read this KV head, or 1 where attention is summed over
    /// them ([`Scorer::increment`]).
    pub group: usize,
    /// Queries that the attention is of: the newest tokens of the sequence.
    pub queries: usize,
    /// Decoded keys, `[slots][head_dim]`, as they are cached (after any rotary embedding).
    pub keys: Option<&'a [f32]>,
    /// Squared attention probabilities, summed over queries: `[group][slots]`.
    pub attention: Option<&'a [f32]>,
}

/// Gives every slot of a head a score; higher is kept longer.
pub trait Scorer: Any + Send + Sync {
    /// What [`ScorerKind`] calls it.
    fn name(&self) -> &'static str;

    /// What it asks of the engine.
    fn needs(&self) -> Needs;

    /// Whether scores that were collected for `self` are those that `other` would have collected: it is
    /// the same scorer with the same settings. Only needed where an engine makes a scorer anew for each
    /// compression; without it, no two objects are alike.
    fn is_like(&self, other: &dyn Scorer) -> bool {
        let _ = other;
        false
    }

    /// Scores all slots of a head: `out` has one value per slot.
    ///
    /// # Errors
    /// An input is missing, of the wrong length, or not finite.
    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError>;

    /// What one decoding step adds to the score of each slot, to be given to
    /// [`accumulate`](super::accumulate), if [`Needs::decode_attention`]. A new slot starts at 0. The
    /// attention is that of one query token, summed over the query heads: [`HeadContext::group`] is 1.
    ///
    /// # Errors
    /// As [`score`](Self::score); the scorer does not accumulate.
    fn increment(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        let _ = (ctx, out);
        Err(EvictError::NotCumulative(self.name()))
    }
}

impl<'a> HeadContext<'a> {
    /// The keys, as many as `slots` slots have, all finite.
    fn checked_keys(&self, scorer: &'static str, slots: usize) -> Result<&'a [f32], EvictError> {
        let input = "keys";
        let keys = self.keys.ok_or(EvictError::Missing { scorer, input })?;
        check_length(input, keys.len(), slots * self.head_dim)?;
        check_values(input, keys, |value| value.is_finite())?;
        Ok(keys)
    }

    /// The squared probabilities, as many as `slots` slots have, none negative, all finite.
    fn checked_attention(
        &self,
        scorer: &'static str,
        slots: usize,
    ) -> Result<&'a [f32], EvictError> {
        let input = "attention";
        let attention = self.attention.ok_or(EvictError::Missing { scorer, input })?;
        check_length(input, attention.len(), slots * self.group)?;
        check_values(input, attention, |value| (0.0..f32::INFINITY).contains(&value))?;
        Ok(attention)
    }

    /// Refuses positions that are not those of `slots` slots.
    fn check_positions(&self, slots: usize) -> Result<(), EvictError> {
        self.positions.count_within(&(0..0), self.head, slots, self.logical_len).map(drop)
    }
}

fn check_length(what: &'static str, got: usize, expected: usize) -> Result<(), EvictError> {
    if got == expected { Ok(()) } else { Err(EvictError::Length { what, got, expected }) }
}

fn check_values(
    input: &'static str,
    values: &[f32],
    fine: impl Fn(f32) -> bool,
) -> Result<(), EvictError> {
    match first_unlike(values, fine) {
        Some(index) => Err(EvictError::Input { input, index, value: values[index] }),
        None => Ok(()),
    }
}
