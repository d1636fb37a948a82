//! What backends need not look at again.

use super::{
    batch::{Batch, Head},
    error::AttendError,
    output::Output,
};
use crate::{format::PageLayout, store::PageStore};

impl Batch<'_> {
    /// Refuses everything that a backend would otherwise have to trust.
    pub(crate) fn check<S: PageStore>(
        &self,
        store: &S,
        output: &Output<'_>,
    ) -> Result<(), AttendError> {
        let (tokens, layer) = (self.tokens(), self.layer);
        let values = |row: usize| tokens.checked_mul(row).ok_or(AttendError::TooLarge { tokens });
        for (what, got, expected) in [
            ("q", self.q.len(), values(layer.q_row())?),
            ("out", output.out.len(), values(layer.out_row())?),
            ("lse", output.lse.len(), values(layer.query_heads())?),
        ] {
            if got != expected {
                return Err(AttendError::WrongLength { what, got, expected });
            }
        }
        self.check_tables(store)
    }

    /// The part of [`check`](Self::check) that is about tables.
    pub(crate) fn check_tables<S: PageStore>(&self, store: &S) -> Result<(), AttendError> {
        let layer = self.layer;
        // Heads share few layouts: comparing with the last good one saves laying it out again.
        let mut good = None;
        for (span, s) in self.spans.iter().enumerate() {
            let (got, expected) = (s.heads.len(), layer.kv_heads());
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
        let (layer, bytes) = (self.layer.channels(), store.page_bytes());
        if layout.channels != layer {
            let layout = layout.channels;
            return Err(AttendError::WrongChannels { span, head, layout, layer });
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
