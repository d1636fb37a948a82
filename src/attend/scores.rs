//! What eviction wants to know from attention.

use std::ops::Range;

use super::batch::{Batch, Span};

/// How the query heads that share a KV head are brought together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Not at all: `[group][slots]`. For prefill, where a max-pool along the slots comes before the
    /// sum over the group.
    PerQueryHead,
    /// By their sum: `[slots]`. For accumulation while decoding.
    Group,
}

/// Squared attention per slot: for the last `window` query tokens of each span, `Σ p²` over the query
/// tokens, `p` the softmax probability of the slot ("L2-sum" of KV-Compress, arXiv 2410.00161).
///
/// A slot that a query does not see counts as `p = 0`. The buffers are kept from call to call.
#[derive(Clone, Debug)]
pub struct SlotScores {
    window: usize,
    skip_newest: usize,
    reduce: Reduce,
    kv_heads: usize,
    values: Vec<f32>,
    /// Where each (span, KV head) starts in `values`, and the end of the last one.
    starts: Vec<usize>,
}

impl SlotScores {
    /// Scores of the last `window` query tokens of each span (fewer where a span has fewer).
    pub fn new(window: usize, reduce: Reduce) -> Self {
        Self { window, skip_newest: 0, reduce, kv_heads: 0, values: Vec::new(), starts: vec![0] }
    }

    /// The same, but a query's attention to the newest `slots` slots that it sees does not count: what
    /// it pays to its neighbourhood says nothing of what later queries will pay there.
    pub fn skipping(mut self, slots: usize) -> Self {
        self.skip_newest = slots;
        self
    }

    /// Newest visible slots of each query that do not count.
    pub fn skip_newest(&self) -> usize {
        self.skip_newest
    }

    /// Query tokens that count.
    pub fn window(&self) -> usize {
        self.window
    }

    /// How the query group is brought together.
    pub fn reduce(&self) -> Reduce {
        self.reduce
    }

    /// Scores of one head of the last call: `[group][slots]` or `[slots]`, see [`Reduce`].
    ///
    /// # Panics
    /// If the last call had no such span or head.
    pub fn head(&self, span: usize, kv_head: usize) -> &[f32] {
        assert!(kv_head < self.kv_heads, "head {kv_head} of {}", self.kv_heads);
        let at = span * self.kv_heads + kv_head;
        &self.values[self.starts[at]..self.starts[at + 1]]
    }

    /// Rows of `slots` values that each head has.
    pub(super) fn rows(&self, group: usize) -> usize {
        match self.reduce {
            Reduce::PerQueryHead => group,
            Reduce::Group => 1,
        }
    }

    /// The query tokens of a span that count.
    pub(crate) fn tokens(&self, span: &Span<'_>) -> Range<usize> {
        span.tokens.saturating_sub(self.window)..span.tokens
    }

    /// Zeroes for the heads of `batch`.
    pub(crate) fn reset(&mut self, batch: &Batch<'_>) {
        let rows = self.rows(batch.layer.group());
        self.kv_heads = batch.layer.kv_heads();
        self.starts.clear();
        self.starts.push(0);
        let mut end = 0;
        for head in batch.spans.iter().flat_map(|span| span.heads) {
            end += rows * head.slots;
            self.starts.push(end);
        }
        self.values.clear();
        self.values.resize(end, 0.0);
    }

    /// The heads' values, span after span and head after head.
    pub(crate) fn heads_mut(&mut self) -> Vec<&mut [f32]> {
        let mut rest = self.values.as_mut_slice();
        let mut heads = Vec::with_capacity(self.starts.len() - 1);
        for pair in self.starts.windows(2) {
            let (head, tail) = rest.split_at_mut(pair[1] - pair[0]);
            heads.push(head);
            rest = tail;
        }
        heads
    }
}
