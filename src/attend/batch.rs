//! What is attended to, and by which queries.

use super::visible::Visible;
use crate::{base::LayerShape, format::PageLayout};

/// One head table of the layer that is attended to.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Page ids in slot order. Pages beyond those that `slots` needs are not looked at.
    pub pages: &'a [u32],
    /// Slots in use. In a [windowed](crate::base::Window) layer they are consecutive tokens, the newest
    /// last, but that behind the layer's sinks any may be missing that the span's queries do not see.
    pub slots: usize,
    /// Layout of each of these pages.
    pub layout: &'a PageLayout,
}

impl Head<'_> {
    /// Pages that hold at least one slot in use.
    pub fn used_pages(&self) -> usize {
        self.slots.div_ceil(self.layout.slots)
    }
}

/// One sequence's queries in a batch, and the head tables they see.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Query tokens, the newest tokens of the sequence, already appended to every head.
    pub tokens: usize,
    /// One table for each KV head of the layer, of any lengths and formats. A caller keeps the tables
    /// of all its spans in one vector and cuts it with `chunks_exact(kv_heads)`.
    pub heads: &'a [Head<'a>],
}

impl Span<'_> {
    /// How many slots of a head are not newer than query token `token`: the span's own tokens are the last
    /// slots of the head.
    pub fn up_to(&self, head: usize, token: usize) -> usize {
        self.heads[head].slots.saturating_sub(self.tokens - 1 - token)
    }
}

/// The queries of one layer for any number of sequences, prefill and decode mixed.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Heads, channels, and what is done to scores.
    pub layer: &'a LayerShape,
    /// The sequences.
    pub spans: &'a [Span<'a>],
    /// Queries, `[Σ tokens][query_heads][k_dim]`, spans one after another. Scores are scaled inside.
    pub q: &'a [f32],
}

impl Batch<'_> {
    /// Query tokens of all spans, saturated.
    pub fn tokens(&self) -> usize {
        self.spans.iter().fold(0, |sum, span| sum.saturating_add(span.tokens))
    }

    /// What query token `token` of a span sees of a head.
    pub fn visible(&self, span: &Span<'_>, head: usize, token: usize) -> Visible {
        Visible::of(self.layer.window(), span.up_to(head, token))
    }
}
