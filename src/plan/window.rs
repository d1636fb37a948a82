//! Heads of windowed layers: pages that no query will see again leave by themselves.
//!
//! A query at position `p` sees the positions above `p - window` and the first `sinks`. So once a sequence
//! has `t` tokens, no later query sees positions up to `t - window`, but for the sinks; with a margin of
//! `m` tokens for rollbacks, `t - m - window`. The commit of a step gives back the pages that hold nothing
//! else, page by page: whole pages leave a table between those of the sinks and the rest. That changes
//! neither the residue at which a head fills nor the place of any slot in its page, so nothing else of the
//! planner knows of windows.

use crate::base::Window;

/// A head that forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Windowed {
    pub head: u16,
    pub slots_per_page: u32,
    /// Positions before the next token that must stay: those of the window, and the margin.
    pub kept: u32,
    /// Pages that hold the sinks: they stay.
    pub sink_pages: u32,
    /// Tokens that a query sees.
    pub window: u32,
}

impl Windowed {
    /// Of a head whose pages have `slots_per_page` slots, if the numbers can be counted.
    pub fn new(head: usize, slots_per_page: u32, window: Window, margin: usize) -> Option<Self> {
        let kept = u32::try_from(window.tokens.checked_add(margin)?).ok()?.checked_sub(1)?;
        let sink_pages = window.sinks.div_ceil(slots_per_page as usize) as u32;
        let window = window.tokens as u32;
        Some(Self { head: head as u16, slots_per_page, kept, sink_pages, window })
    }

    /// Slots that stay whatever comes.
    fn sink_slots(&self) -> u64 {
        u64::from(self.sink_pages) * u64::from(self.slots_per_page)
    }

    /// Pages that a head which lost `lost` tokens can give at `tokens` tokens.
    pub fn due(&self, lost: u32, tokens: u32) -> u32 {
        let first = self.sink_slots() + u64::from(lost);
        let useless = u64::from(tokens.saturating_sub(self.kept)).saturating_sub(first);
        (useless / u64::from(self.slots_per_page)) as u32
    }

    /// The tokens at which a head that lost `lost` gives its next page.
    pub fn next(&self, lost: u32) -> u32 {
        let tokens = u64::from(self.kept)
            + self.sink_slots()
            + u64::from(lost)
            + u64::from(self.slots_per_page);
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// The most slots that the head has while a sequence of at most `tokens` tokens grows by at most
    /// `chunk` tokens a step.
    pub fn most_slots(&self, tokens: usize, chunk: usize) -> usize {
        let stay =
            self.kept as usize + self.sink_slots() as usize + self.slots_per_page as usize - 1;
        tokens.min(stay.saturating_add(chunk))
    }
}
