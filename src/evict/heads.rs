//! What eviction sees of one head.

use std::ops::Range;

use super::{EvictError, Score};
use crate::base::Positions;

impl Positions<'_> {
    /// Refuses positions that do not describe `slots` slots of a sequence of `logical_len` tokens.
    /// `head` is named in the error.
    pub(super) fn check(
        &self,
        head: usize,
        slots: usize,
        logical_len: usize,
    ) -> Result<(), EvictError> {
        if slots > logical_len || u32::try_from(logical_len).is_err() {
            return Err(EvictError::TooManySlots { head, slots, logical_len });
        }
        let Self::Explicit(positions) = *self else { return Ok(()) };
        if positions.len() != slots {
            let (what, got) = ("positions", positions.len());
            return Err(EvictError::Length { what, got, expected: slots });
        }
        // A maximum vectorises where a search for the first offender does not.
        if positions.iter().fold(0, |max, &p| max.max(p)) as usize >= logical_len
            && let Some(slot) = positions.iter().position(|&p| p as usize >= logical_len)
        {
            return Err(EvictError::Position {
                head,
                slot,
                position: positions[slot],
                logical_len,
            });
        }
        Ok(())
    }
}

/// How much of its pages one head uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadExtent {
    /// Slots in use.
    pub slots: usize,
    /// Slots that one page of this head holds. Formats differ, so heads differ.
    pub slots_per_page: usize,
}

impl HeadExtent {
    /// Pages the head holds.
    pub fn pages(&self) -> usize {
        self.slots.div_ceil(self.slots_per_page)
    }

    /// Slots in use in the last page, 1..=`slots_per_page` (0 without pages).
    pub fn last_page_slots(&self) -> usize {
        self.slots - self.pages().saturating_sub(1) * self.slots_per_page
    }

    /// Slots that die when the head gives up `pages` pages, none if `pages` is 0: those of the
    /// partial last page first, then whole pages.
    pub fn victims(&self, pages: usize) -> usize {
        match pages {
            0 => 0,
            n => (n - 1) * self.slots_per_page + self.last_page_slots(),
        }
    }

    /// The most pages that can be given up if at most `victims` slots may die.
    pub fn pages_within(&self, victims: usize) -> usize {
        match victims.checked_sub(self.last_page_slots()) {
            Some(rest) if self.slots > 0 => 1 + rest / self.slots_per_page,
            _ => 0,
        }
    }

    pub(super) fn check(&self, head: usize) -> Result<(), EvictError> {
        if self.slots_per_page == 0 { Err(EvictError::EmptyPages(head)) } else { Ok(()) }
    }
}

/// One head of a sequence as eviction sees it.
#[derive(Clone, Copy, Debug)]
pub struct HeadSlots<'a> {
    /// One score per slot in use; higher is kept longer.
    pub scores: &'a [Score],
    /// The tokens that those slots hold.
    pub positions: Positions<'a>,
    /// Slots that one page of this head holds.
    pub slots_per_page: usize,
}

impl HeadSlots<'_> {
    /// How much of its pages the head uses.
    pub fn extent(&self) -> HeadExtent {
        HeadExtent { slots: self.scores.len(), slots_per_page: self.slots_per_page }
    }

    pub(super) fn check(&self, head: usize, logical_len: usize) -> Result<(), EvictError> {
        self.extent().check(head)?;
        self.positions.check(head, self.scores.len(), logical_len)
    }

    /// How many slots hold a position of `evictable`.
    pub(super) fn count_evictable(&self, evictable: &Range<usize>) -> usize {
        match self.positions {
            Positions::Identity => self.identity_range(evictable).len(),
            Positions::Explicit(positions) => {
                let inside = PositionRange::new(evictable);
                positions.iter().map(|&p| usize::from(inside.contains(p))).sum()
            }
        }
    }

    /// The slots of a head that never evicted whose positions are in `evictable`.
    pub(super) fn identity_range(&self, evictable: &Range<usize>) -> Range<usize> {
        let end = evictable.end.min(self.scores.len());
        evictable.start.min(end)..end
    }
}

/// Membership in a range of positions, in one comparison.
#[derive(Clone, Copy)]
pub(super) struct PositionRange {
    start: u32,
    len: u32,
}

impl PositionRange {
    /// `range` ends at or below the logical length, which [`Positions::check`] holds to 32 bits.
    pub(super) fn new(range: &Range<usize>) -> Self {
        Self { start: range.start as u32, len: range.len() as u32 }
    }

    pub(super) fn contains(self, position: u32) -> bool {
        position.wrapping_sub(self.start) < self.len
    }
}
