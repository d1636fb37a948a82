//! What eviction sees of one head.

use std::ops::Range;

use super::{error::EvictError, score::Score};
use crate::base::Positions;

impl Positions<'_> {
    /// How many of a head's `slots` slots hold a position of `wanted`. Refuses positions that do
    /// not describe so many slots of a sequence of `logical_len` tokens; `head` is named in the
    /// error.
    pub(super) fn count_within(
        &self,
        wanted: &Range<usize>,
        head: usize,
        slots: usize,
        logical_len: usize,
    ) -> Result<usize, EvictError> {
        let Ok(len) = u32::try_from(logical_len) else {
            return Err(EvictError::TooManySlots { head, slots, logical_len });
        };
        if slots > logical_len {
            return Err(EvictError::TooManySlots { head, slots, logical_len });
        }
        let (got, fits) = match *self {
            Self::Identity => (slots, true),
            Self::Explicit(list) => (list.len(), list.len() == slots),
            Self::Appended { list, .. } => (list.len(), list.len() <= slots),
        };
        if !fits {
            return Err(EvictError::Length { what: "positions", got, expected: slots });
        }
        let (list, run) = self.split(slots);
        let inside = PositionRange::new(wanted);
        let (mut count, mut too_late) = (0u32, u32::from(run.end > logical_len));
        for &position in list {
            count += u32::from(inside.contains(position));
            too_late += u32::from(position >= len);
        }
        if too_late > 0
            && let Some(slot) = (0..slots).find(|&slot| self.get(slot).is_none_or(|p| p >= len))
        {
            // A run that leaves 32 bits is beyond the last position they can name.
            let position = self.get(slot).unwrap_or(u32::MAX);
            return Err(EvictError::Position { head, slot, position, logical_len });
        }
        Ok(count as usize + overlap(wanted, &run).len())
    }
}

/// The positions of `run` that are in `wanted`.
fn overlap(wanted: &Range<usize>, run: &Range<usize>) -> Range<usize> {
    let end = wanted.end.min(run.end).max(run.start);
    wanted.start.clamp(run.start, end)..end
}

/// How much of its pages one head uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadExtent {
    /// Slots in use.
    pub slots: usize,
    /// Slots that one page of this head holds, from 1 up. Formats differ, so heads differ.
    pub slots_per_page: usize,
}

impl HeadExtent {
    /// Pages the head holds.
    pub fn pages(&self) -> usize {
        // Pages of no slots are an error elsewhere; a count is no place to divide by zero.
        self.slots.div_ceil(self.slots_per_page.max(1))
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
            Some(rest) if self.slots > 0 => 1 + rest / self.slots_per_page.max(1),
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

    /// How many slots hold a position of `evictable`. Refuses what makes no sense.
    pub(super) fn count_evictable(
        &self,
        evictable: &Range<usize>,
        head: usize,
        logical_len: usize,
    ) -> Result<usize, EvictError> {
        self.extent().check(head)?;
        self.positions.count_within(evictable, head, self.scores.len(), logical_len)
    }

    /// Of the slots after those whose positions are listed, the ones whose positions are in
    /// `evictable`: all that are, in a head that never evicted.
    pub(super) fn appended_range(&self, evictable: &Range<usize>) -> Range<usize> {
        let (list, run) = self.positions.split(self.scores.len());
        let inside = overlap(evictable, &run);
        list.len() + inside.start - run.start..list.len() + inside.end - run.start
    }

    /// The positions of the first slots, where they have to be listed.
    pub(super) fn listed(&self) -> &[u32] {
        self.positions.split(self.scores.len()).0
    }
}

/// Membership in a range of positions, in one comparison.
#[derive(Clone, Copy)]
pub(super) struct PositionRange {
    start: u32,
    len: u32,
}

impl PositionRange {
    /// `range` ends at or below the logical length, which
    /// [`Positions::count_within`] holds to 32 bits.
    pub(super) fn new(range: &Range<usize>) -> Self {
        Self { start: range.start as u32, len: range.len() as u32 }
    }

    pub(super) fn contains(self, position: u32) -> bool {
        position.wrapping_sub(self.start) < self.len
    }
}
