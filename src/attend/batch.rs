//! What is attended to, by which queries, and where the results go.

use super::{error::AttendError, scores::SlotScores};
use crate::{base::CacheShape, format::PageLayout, store::PageStore};

/// One head table of the layer that is attended to.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Page ids in slot order. Pages beyond those that `slots` needs are not looked at.
    pub pages: &'a [u32],
    /// Slots in use.
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
    /// How many slots of a head query token `token` sees: the span's own tokens are the last slots of
    /// the head, and a token sees none newer than itself.
    pub fn visible(&self, head: usize, token: usize) -> usize {
        self.heads[head].slots.saturating_sub(self.tokens - 1 - token)
    }
}

/// The queries of one layer for any number of sequences, prefill and decode mixed.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Heads and channels; `layers` is not looked at.
    pub shape: CacheShape,
    /// The sequences.
    pub spans: &'a [Span<'a>],
    /// Queries, `[Σ tokens][query_heads][head_dim]`, spans one after another. Scores are scaled by
    /// `1 / sqrt(head_dim)` inside.
    pub q: &'a [f32],
}

impl Batch<'_> {
    /// Query tokens of all spans, saturated.
    pub fn tokens(&self) -> usize {
        self.spans.iter().fold(0, |sum, span| sum.saturating_add(span.tokens))
    }

    /// Refuses everything that a backend would otherwise have to trust.
    pub(crate) fn check<S: PageStore>(
        &self,
        store: &S,
        output: &Output<'_>,
    ) -> Result<(), AttendError> {
        let tokens = self.tokens();
        let rows = tokens.checked_mul(self.shape.query_heads());
        let values = rows.and_then(|rows| rows.checked_mul(self.shape.head_dim()));
        let (Some(rows), Some(values)) = (rows, values) else {
            return Err(AttendError::TooLarge { tokens });
        };
        for (what, got, expected) in [
            ("q", self.q.len(), values),
            ("out", output.out.len(), values),
            ("lse", output.lse.len(), rows),
        ] {
            if got != expected {
                return Err(AttendError::WrongLength { what, got, expected });
            }
        }
        // Heads share few layouts: comparing with the last good one saves laying it out again.
        let mut good = None;
        for (span, s) in self.spans.iter().enumerate() {
            let (got, expected) = (s.heads.len(), self.shape.kv_heads());
            if got != expected {
                return Err(AttendError::WrongHeads { span, got, expected });
            }
            for (head, h) in s.heads.iter().enumerate() {
                if good != Some(h.layout) {
                    self.check_layout(store, (span, head), h.layout)?;
                    good = Some(h.layout);
                }
                check_pages(store, (span, head), h)?;
            }
        }
        Ok(())
    }

    fn check_layout<S: PageStore>(
        &self,
        store: &S,
        (span, head): (usize, usize),
        layout: &PageLayout,
    ) -> Result<(), AttendError> {
        let (shape, bytes) = (self.shape.head_dim(), store.page_bytes());
        if layout.head_dim != shape {
            let layout = layout.head_dim;
            return Err(AttendError::WrongHeadDim { span, head, layout, shape });
        }
        if layout.page_bytes != bytes {
            let layout = layout.page_bytes;
            return Err(AttendError::WrongPageBytes { span, head, layout, store: bytes });
        }
        if !layout.is_genuine() {
            return Err(AttendError::ForgedLayout { span, head });
        }
        Ok(())
    }
}

fn check_pages<S: PageStore>(
    store: &S,
    (span, head): (usize, usize),
    table: &Head<'_>,
) -> Result<(), AttendError> {
    let Some(used) = table.pages.get(..table.used_pages()) else {
        let (slots, pages, page_slots) = (table.slots, table.pages.len(), table.layout.slots);
        return Err(AttendError::TooFewPages { span, head, slots, pages, page_slots });
    };
    let pages = store.pages();
    match used.iter().find(|&&page| page as usize >= pages) {
        Some(&page) => Err(AttendError::NoSuchPage { span, head, page, pages }),
        None => Ok(()),
    }
}

/// Where the results go.
#[derive(Debug)]
pub struct Output<'a> {
    /// `[Σ tokens][query_heads][head_dim]`: `softmax(q·Kᵀ / sqrt(head_dim))·V`. Zero where a query
    /// sees no slot.
    pub out: &'a mut [f32],
    /// `[Σ tokens][query_heads]`: natural logarithm of the sum of the exponentials of the scaled
    /// scores, held to ±[`f32::MAX`]. −∞ where a query sees no slot, and only there.
    pub lse: &'a mut [f32],
    /// Filled with one score per slot (and, as asked, per query head) when given.
    pub scores: Option<&'a mut SlotScores>,
}
