//! Heads that are alike to the planner.

use std::ops::Range;

/// Heads whose pages hold equally many slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub slots: u32,
    /// Their places in a [`FillOrder`](super::fill::FillOrder).
    pub heads: Range<usize>,
}
