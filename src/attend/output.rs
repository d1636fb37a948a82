//! Where the results go.

use super::scores::SlotScores;

/// Where the results go.
#[derive(Debug)]
pub struct Output<'a> {
    /// `[Σ tokens][query_heads][v_dim]`: `softmax(scale · q·Kᵀ)·V`. Zero where a query sees no slot.
    pub out: &'a mut [f32],
    /// `[Σ tokens][query_heads]`: natural logarithm of the sum of the exponentials of the scaled
    /// scores, that of the head's sink logit among them if the layer has such, held to ±[`f32::MAX`].
    /// −∞ where a query sees no slot and there is no sink logit, and only there.
    pub lse: &'a mut [f32],
    /// Filled with one score per slot (and, as asked, per query head) when given.
    pub scores: Option<&'a mut SlotScores>,
}
