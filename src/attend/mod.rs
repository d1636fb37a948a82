//! Attention over pages: one contract, several backends.
//!
//! For each query head, over the slots of its KV head's table:
//! `out = softmax(scale · q·Kᵀ)·V`, causal, with the log-sum-exp of the scaled scores and, on
//! request, one score per slot for eviction. What a layer does to scores (scale, soft cap, window, sink
//! logits) is in its [`LayerShape`](crate::base::LayerShape). [`Reference`] is the oracle; [`CpuAttention`] is the fast
//! one on hosts. Heads differ in length and format; empty heads, partial pages and NaN in free slots
//! are ordinary.

mod batch;
mod check;
mod cpu;
mod error;
mod output;
mod reference;
mod row;
mod scores;
pub(crate) mod settle;
mod visible;

pub use batch::{Batch, Head, Span};
pub use cpu::CpuAttention;
pub use error::AttendError;
pub use output::Output;
pub use reference::Reference;
pub use scores::{Reduce, SlotScores};
pub use visible::Visible;

/// Attention over the pages of a store of type `S`.
pub trait Attention<S> {
    /// Attends with every query of `batch` and overwrites all of `output`.
    ///
    /// Only slots that a query sees can change its result: free slots, newer tokens and pages of
    /// other tables may hold anything, NaN included. Finite inputs give finite results, whatever their
    /// size; NaN and infinities do what they do to the formulas in f64.
    ///
    /// # Errors
    /// Page ids, table lengths, layouts and buffer lengths are checked before anything is read.
    fn attend(&self, store: &S, batch: &Batch<'_>, output: Output<'_>) -> Result<(), AttendError>;
}

#[cfg(test)]
mod tests;
