//! Where pages are, and who computes on them.

use std::fmt::Debug;

use super::{
    error::CacheError,
    layouts::HeadLayouts,
    observe::{Noted, Wish},
    watch::Watch,
};
use crate::{
    base::{LayerShape, SlotMove},
    plan::{Sequence, StepId},
    store::TablePages,
};

/// A kind of memory that a cache can live in: its pages, the rows that steps are given there, and the
/// arithmetic over them. What all memories have in common (tables, steps, eviction, accounts) is the
/// cache's.
///
/// Methods take a shared reference: steps that hold nothing of each other may run from several threads.
/// What one step does is in order; across steps only pages are shared, which nobody writes.
pub trait Memory: Debug + Send + Sync + 'static {
    /// Rows of Q, K or V.
    type Rows<'a>: Copy;
    /// Where the rows of the output go.
    type Out<'a>;

    /// Pages.
    fn pages(&self) -> usize;

    /// Bytes of each page.
    fn page_bytes(&self) -> usize;

    /// Refuses Q, K, V or an output that does not have `work`'s tokens and widths, before anything of
    /// the layer is written.
    fn check(
        &self,
        work: &LayerWork<'_>,
        q: Self::Rows<'_>,
        k: Self::Rows<'_>,
        v: Self::Rows<'_>,
        out: &Self::Out<'_>,
    ) -> Result<(), CacheError>;

    /// Appends a layer's rows of K and V, which [`check`](Self::check) took, then attends with those of Q.
    fn attend(
        &self,
        work: &LayerWork<'_>,
        q: Self::Rows<'_>,
        k: Self::Rows<'_>,
        v: Self::Rows<'_>,
        out: Self::Out<'_>,
    ) -> Result<Attended, CacheError>;

    /// Copies whole pages: `(from, to)`.
    fn copy_pages(&self, copies: &[(u32, u32)]) -> Result<(), CacheError>;

    /// Copies slots within a table.
    fn move_slots(&self, table: TablePages<'_>, moves: &[SlotMove]) -> Result<(), CacheError>;

    /// Decodes the keys of the first `keys.len() / channels.k` slots of a table.
    fn read_keys(&self, table: TablePages<'_>, keys: &mut [f32]) -> Result<(), CacheError>;

    /// Copies the bytes of whole pages out, one after another.
    fn read_pages(&self, pages: &[u32], bytes: &mut [u8]) -> Result<(), CacheError>;

    /// Copies the bytes of whole pages in, one after another.
    fn write_pages(&self, pages: &[u32], bytes: &[u8]) -> Result<(), CacheError>;

    /// Makes every value of free pages read as NaN, so that a stray read shows. Debug builds do it.
    fn poison(&self, pages: &[u32]) -> Result<(), CacheError>;

    /// Says that pages given back so far were given back by `step`, and returns the newest step of which
    /// nothing runs any more: its pages can be taken again.
    fn close(&self, step: StepId) -> Result<Option<StepId>, CacheError>;

    /// Keys and values that this memory has saturated by itself, beside those that [`Attended`] counts.
    fn saturated(&self) -> Result<u64, CacheError> {
        Ok(0)
    }
}

/// One layer of a step, for a memory.
#[derive(Clone, Copy, Debug)]
pub struct LayerWork<'a> {
    /// The layer.
    pub(super) index: usize,
    /// Its shape.
    pub(super) layer: &'a LayerShape,
    /// Its first head among all heads of a sequence.
    pub(super) first_head: usize,
    /// The sequences of the step.
    pub(super) members: &'a [MemberWork<'a>],
}

/// One sequence of a step, for a memory.
#[derive(Clone, Copy, Debug)]
pub struct MemberWork<'a> {
    /// Its tables, which count the step's tokens already.
    pub(super) tables: &'a Sequence,
    /// The layouts of its heads' pages.
    pub(super) layouts: &'a HeadLayouts,
    /// Its tokens in the step.
    pub(super) tokens: usize,
    /// Scores that it wants of this layer.
    pub(super) wish: Wish,
    /// What it has collected so far.
    pub(super) watch: Option<&'a Watch>,
}

impl LayerWork<'_> {
    /// Tokens of all members.
    pub(super) fn tokens(&self) -> usize {
        self.members.iter().map(|member| member.tokens).sum()
    }

    /// The lengths that Q, K, V and the output have, in values, with their names.
    pub(super) fn lengths(&self) -> [(&'static str, usize); 4] {
        let tokens = self.tokens();
        [
            ("q", tokens * self.layer.q_row()),
            ("k", tokens * self.layer.k_row()),
            ("v", tokens * self.layer.v_row()),
            ("out", tokens * self.layer.out_row()),
        ]
    }
}

/// What a layer brought beside its output.
#[derive(Debug, Default)]
pub struct Attended {
    /// Keys and values that were saturated.
    pub(super) saturated: u64,
    /// What the scores of the layer's heads become.
    pub(super) noted: Vec<Noted>,
}
