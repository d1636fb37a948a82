//! Counting slots and bytes page by page, each page once.

use std::ops::AddAssign;

use serde::Serialize;

use crate::format::PageLayout;

/// Pages, and what their bytes are used for:
/// `held_bytes == used_bytes + tail_waste_bytes + layout_waste_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// Pages held.
    pub pages: usize,
    /// Slots in use.
    pub slots: usize,
    /// Bytes of the pages held.
    pub held_bytes: usize,
    /// Bytes that slots in use occupy: payloads and scales of K and V.
    pub used_bytes: usize,
    /// Internal fragmentation of the first kind: bytes of free slots in partial last pages. New tokens
    /// can use them.
    pub tail_waste_bytes: usize,
    /// Internal fragmentation of the second kind: bytes that no slot can use, because regions are
    /// aligned and page bytes are no multiple of slot bytes. Formats and page sizes decide it.
    pub layout_waste_bytes: usize,
}

impl MemoryUse {
    /// Share of the bytes held that slots in use occupy; 1 if nothing is held.
    pub fn utilisation(&self) -> f64 {
        if self.held_bytes == 0 { 1.0 } else { self.used_bytes as f64 / self.held_bytes as f64 }
    }

    /// `pages` pages of one layout, all but the last full, with `slots` slots in use.
    pub(super) fn of_table(layout: &PageLayout, pages: usize, slots: usize) -> Self {
        let slot_bytes = layout.slot_bytes();
        let slot_room = pages * layout.slots * slot_bytes;
        Self {
            pages,
            slots,
            held_bytes: pages * layout.page_bytes,
            used_bytes: slots * slot_bytes,
            tail_waste_bytes: slot_room - slots * slot_bytes,
            layout_waste_bytes: pages * layout.page_bytes - slot_room,
        }
    }
}

impl AddAssign for MemoryUse {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.slots += other.slots;
        self.held_bytes += other.held_bytes;
        self.used_bytes += other.used_bytes;
        self.tail_waste_bytes += other.tail_waste_bytes;
        self.layout_waste_bytes += other.layout_waste_bytes;
    }
}

/// Counts pages of several sequences head by head, those that they share once.
pub(super) struct Tally {
    /// For each page of the pool one more than its slots in use, 0 if no table named it yet. Sequences
    /// that share a partial page can disagree on its slots after a truncation; the fullest view counts.
    seen: Vec<u32>,
    heads: Vec<Count>,
}

/// What only grows while tables are counted.
#[derive(Clone, Copy, Default)]
struct Count {
    pages: usize,
    slots: usize,
    held_bytes: usize,
    used_bytes: usize,
    /// Bytes of all slots, in use or free.
    slot_room: usize,
}

impl Tally {
    pub fn new(pages: usize, heads: usize) -> Self {
        Self { seen: vec![0; pages], heads: vec![Count::default(); heads] }
    }

    /// Counts what is new in a head's table; `None` if it names a page that the pool lacks.
    pub fn add(
        &mut self,
        head: usize,
        layout: &PageLayout,
        pages: &[u32],
        slots: usize,
    ) -> Option<()> {
        let count = self.heads.get_mut(head)?;
        for (index, &page) in pages.iter().enumerate() {
            let slots = slots.saturating_sub(index * layout.slots).min(layout.slots);
            let seen = self.seen.get_mut(page as usize)?;
            if *seen == 0 {
                count.pages += 1;
                count.held_bytes += layout.page_bytes;
                count.slot_room += layout.slots * layout.slot_bytes();
            }
            let new = slots.saturating_sub((*seen as usize).saturating_sub(1));
            count.slots += new;
            count.used_bytes += new * layout.slot_bytes();
            *seen = (*seen).max(slots as u32 + 1);
        }
        Some(())
    }

    /// What every head's pages are used for.
    pub fn heads(&self) -> impl Iterator<Item = MemoryUse> {
        self.heads.iter().map(|count| MemoryUse {
            pages: count.pages,
            slots: count.slots,
            held_bytes: count.held_bytes,
            used_bytes: count.used_bytes,
            tail_waste_bytes: count.slot_room - count.used_bytes,
            layout_waste_bytes: count.held_bytes - count.slot_room,
        })
    }
}

impl std::iter::Sum for MemoryUse {
    fn sum<I: Iterator<Item = Self>>(uses: I) -> Self {
        uses.fold(Self::default(), |mut total, use_| {
            total += use_;
            total
        })
    }
}
