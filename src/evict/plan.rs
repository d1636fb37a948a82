//! From pages to moves.

use super::{
    error::EvictError,
    heads::HeadSlots,
    histogram::Histogram,
    policy::Policy,
    schedule::{Limits, schedule},
    victims::Victims,
};
use crate::base::{HeadRewrite, Positions, SlotMove, apply_moves, close_gaps};

/// What one head does in an eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadPlan {
    pages_freed: u32,
    slots_before: u32,
    slots_after: u32,
    moves: Vec<SlotMove>,
}

impl HeadPlan {
    /// Pages that the head gives up: its last ones, once the moves are done.
    pub fn pages_freed(&self) -> usize {
        self.pages_freed as usize
    }

    /// Slots in use before.
    pub fn slots_before(&self) -> usize {
        self.slots_before as usize
    }

    /// Slots in use after the moves; all that lies behind them is dead.
    pub fn slots_after(&self) -> usize {
        self.slots_after as usize
    }

    /// The moves, as few as can be: both ends ascend, no slot is an end twice, and sources and
    /// destinations do not overlap, so that they may be done in any order or all at once.
    pub fn moves(&self) -> &[SlotMove] {
        &self.moves
    }

    /// Whether nothing happens to the head.
    pub fn is_untouched(&self) -> bool {
        self.pages_freed == 0
    }

    /// Does to `slots`, which holds one value per slot of the head (its positions, its scores),
    /// what the plan does to the head.
    ///
    /// # Errors
    /// `slots` does not hold [`slots_before`](Self::slots_before) values; it is then unchanged.
    pub fn apply_to<T: Copy>(&self, slots: &mut Vec<T>) -> Result<(), EvictError> {
        if slots.len() != self.slots_before() {
            let (got, expected) = (slots.len(), self.slots_before());
            return Err(EvictError::Length { what: "the values of a head's slots", got, expected });
        }
        apply_moves(slots, &self.moves, self.slots_after());
        Ok(())
    }

    /// The tokens that the head's slots hold afterwards, in slot order, from those `before`. A head that
    /// never evicted has no list of them until now.
    ///
    /// # Errors
    /// `before` does not describe [`slots_before`](Self::slots_before) slots.
    pub fn positions_after(&self, before: Positions<'_>) -> Result<Vec<u32>, EvictError> {
        let mut positions = before.to_vec(self.slots_before());
        self.apply_to(&mut positions)?;
        Ok(positions)
    }
}

/// What every head of a sequence does in an eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictionPlan {
    heads: Vec<HeadPlan>,
}

impl EvictionPlan {
    /// What each head does, in the order of the heads.
    pub fn heads(&self) -> &[HeadPlan] {
        &self.heads
    }

    /// Pages that all heads give up together.
    pub fn pages_freed(&self) -> usize {
        self.heads.iter().map(HeadPlan::pages_freed).sum()
    }

    /// Slots that all heads move together.
    pub fn moves(&self) -> usize {
        self.heads.iter().map(|head| head.moves.len()).sum()
    }

    /// Slots that all heads lose together.
    pub fn victims(&self) -> usize {
        self.heads.iter().map(|head| head.slots_before() - head.slots_after()).sum()
    }

    /// The eviction in the words of the planner, for
    /// [`BlockManager::rewrite`](crate::plan::BlockManager::rewrite): the heads that change, ascending.
    pub fn rewrites(&self) -> Vec<HeadRewrite> {
        let changed = self.heads.iter().enumerate().filter(|(_, head)| !head.is_untouched());
        changed
            .map(|(head, plan)| HeadRewrite {
                head,
                slots_after: plan.slots_after(),
                moves: plan.moves.clone(),
            })
            .collect()
    }

    /// [`HeadPlan::apply_to`] for every head: `slots` holds one vector per head.
    ///
    /// # Errors
    /// A vector is missing, or has not one value per slot of its head; nothing is then changed.
    pub fn apply_to<T: Copy>(&self, slots: &mut [Vec<T>]) -> Result<(), EvictError> {
        let (got, expected) = (slots.len(), self.heads.len());
        if got != expected {
            return Err(EvictError::Length { what: "the vectors of all heads", got, expected });
        }
        for (plan, slots) in self.heads.iter().zip(&*slots) {
            let (got, expected) = (slots.len(), plan.slots_before());
            if got != expected {
                let what = "the values of a head's slots";
                return Err(EvictError::Length { what, got, expected });
            }
        }
        self.heads.iter().zip(slots).try_for_each(|(plan, slots)| plan.apply_to(slots))
    }
}

/// [`schedule`], and then the slots that die for it and the moves that close the gaps.
///
/// A head that gives up `n` pages loses its `(n−1)·B + h` lowest evictable slots, so its length
/// becomes a whole number of pages. Equal scores die by position, the lowest first. Linear in the
/// number of slots.
///
/// # Errors
/// Those of [`schedule`].
pub fn plan(
    heads: &[HeadSlots<'_>],
    logical_len: usize,
    policy: &Policy,
    pages_to_free: usize,
) -> Result<EvictionPlan, EvictError> {
    let schedule = schedule(heads, logical_len, policy, pages_to_free)?;
    Ok(plan_possible(heads, logical_len, policy, schedule.pages()))
}

/// [`plan`] where it is known how many `pages` each head gives up: where heads of several ranks compete
/// ([`PagePrices`](super::PagePrices)), or an engine divides pages in a way of its own.
///
/// # Errors
/// Not one number of pages per head; a head that cannot give up so many; a head's slots, positions or
/// pages make no sense.
pub fn plan_pages(
    heads: &[HeadSlots<'_>],
    logical_len: usize,
    policy: &Policy,
    pages: &[u32],
) -> Result<EvictionPlan, EvictError> {
    let (got, expected) = (pages.len(), heads.len());
    if got != expected {
        return Err(EvictError::Length { what: "the pages of all heads", got, expected });
    }
    let limits = Limits::new(heads, logical_len, policy)?;
    let over = pages.iter().zip(&limits.pages).position(|(asked, possible)| asked > possible);
    if let Some(head) = over {
        let [asked, possible] = [pages[head], limits.pages[head]].map(|pages| pages as usize);
        let held = heads[head].extent().pages();
        return Err(EvictError::InfeasibleHead { head, asked, possible, held });
    }
    Ok(plan_possible(heads, logical_len, policy, pages))
}

/// The plan by which each head gives up its `pages`, which it can.
fn plan_possible(
    heads: &[HeadSlots<'_>],
    logical_len: usize,
    policy: &Policy,
    pages: &[u32],
) -> EvictionPlan {
    let evictable = policy.evictable(logical_len);
    let mut histogram = Histogram::new();
    let plan_head = |(head, &pages): (&HeadSlots<'_>, &u32)| {
        let extent = head.extent();
        let dying = extent.victims(pages as usize);
        let after = extent.slots - dying;
        let moves = if dying == 0 {
            Vec::new()
        } else {
            let victims = Victims::select(head, &evictable, dying, &mut histogram);
            close_gaps(extent.slots, after, |slot| victims.contains(slot))
        };
        // Slots are as many as tokens at most, which are 32 bits.
        let [slots_before, slots_after] = [extent.slots, after].map(|slots| slots as u32);
        HeadPlan { pages_freed: pages, slots_before, slots_after, moves }
    };
    EvictionPlan { heads: heads.iter().zip(pages).map(plan_head).collect() }
}
