//! How many pages each head gives up.

use super::histogram::Histogram;
use super::select::{Kept, Recomputed, cheapest};
use super::uniform::level;
use super::{Allocation, EvictError, HeadExtent, HeadSlots, Policy, Score};

/// How many pages each head of a sequence gives up.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pages: Vec<u32>,
    total: usize,
    cost: Option<f64>,
    scratch_bytes: usize,
}

impl Schedule {
    /// Pages that each head gives up, in the order of the heads.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Pages that all heads give up together: exactly as many as were asked for.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The sum of the costs of those pages; `None` under [`Allocation::PerHead`], which looks at no
    /// cost.
    pub fn cost(&self) -> Option<f64> {
        self.cost
    }

    /// The most bytes that finding the schedule held at once, the result included.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_bytes
    }
}

/// Page costs are kept while they take no more than this, however few scores there are: less than
/// the two histograms that no input can do without.
const KEPT_ALWAYS: usize = Histogram::BYTES;

/// Whether page costs are kept, or computed anew in each of the three passes of the selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Costs {
    Kept,
    Recomputed,
}

/// Finds the `pages_to_free` pages of a sequence of `logical_len` tokens that go at the least cost.
///
/// The heads are those of all layers; their pages have equal bytes but not equal slots. Page `j` of
/// a head (from 1) takes the `(j−1)·B + h` lowest of its evictable slots with it, `B` its slots per
/// page and `h` those in its last page. Equal costs are taken by `j`, then by head, so that heads
/// with equal scores give evenly. Linear in the number of slots; holds at most a quarter of the
/// bytes of the scores beside two histograms of 256 KiB.
///
/// # Errors
/// Fewer pages may go than were asked for; a head's slots, positions or pages make no sense.
pub fn schedule(
    heads: &[HeadSlots<'_>],
    logical_len: usize,
    policy: &Policy,
    pages_to_free: usize,
) -> Result<Schedule, EvictError> {
    schedule_with(heads, logical_len, policy, pages_to_free, None)
}

/// [`schedule`], with or without keeping the page costs; `None` chooses.
pub(super) fn schedule_with(
    heads: &[HeadSlots<'_>],
    logical_len: usize,
    policy: &Policy,
    pages_to_free: usize,
    costs: Option<Costs>,
) -> Result<Schedule, EvictError> {
    let limits = limits(heads, logical_len, policy, pages_to_free)?;
    let own_bytes = 2 * heads.len() * size_of::<u32>();
    if pages_to_free == 0 {
        let pages = vec![0; heads.len()];
        return Ok(Schedule { pages, total: 0, cost: None, scratch_bytes: own_bytes });
    }
    if policy.allocation == Allocation::PerHead {
        let extents: Vec<HeadExtent> = heads.iter().map(HeadSlots::extent).collect();
        let pages = level(&extents, &limits, pages_to_free);
        let scratch_bytes = own_bytes + extents.capacity() * size_of::<HeadExtent>();
        return Ok(Schedule { pages, total: pages_to_free, cost: None, scratch_bytes });
    }

    let candidates: usize = limits.iter().map(|&pages| pages as usize).sum();
    let costs = costs.unwrap_or_else(|| {
        let slots: usize = heads.iter().map(|head| head.scores.len()).sum();
        // Three sixteenths of the scores leave room for the histograms within a quarter of them.
        let room = slots * size_of::<Score>() / 16 * 3;
        let kept = Kept::bytes_for(candidates, heads.len());
        if kept <= room.max(KEPT_ALWAYS) { Costs::Kept } else { Costs::Recomputed }
    });
    let mut source = Recomputed {
        heads,
        limits: &limits,
        evictable: policy.evictable(logical_len),
        cost: policy.cost,
        histogram: Histogram::new(),
    };
    let selection = match costs {
        Costs::Kept => {
            let (mut kept, histogram) = Kept::new(source);
            cheapest(&mut kept, heads.len(), pages_to_free, policy.cost, histogram)
        }
        Costs::Recomputed => {
            let histogram = Histogram::new();
            cheapest(&mut source, heads.len(), pages_to_free, policy.cost, histogram)
        }
    };
    Ok(Schedule {
        pages: selection.pages,
        total: pages_to_free,
        cost: Some(selection.cost),
        scratch_bytes: own_bytes / 2 + selection.bytes,
    })
}

/// The most pages that each head may give up, none of them more than are asked for. Refuses what
/// makes no sense, and what cannot be.
fn limits(
    heads: &[HeadSlots<'_>],
    logical_len: usize,
    policy: &Policy,
    asked: usize,
) -> Result<Vec<u32>, EvictError> {
    for (head, slots) in heads.iter().enumerate() {
        slots.check(head, logical_len)?;
    }
    let held: usize = heads.iter().map(|head| head.extent().pages()).sum();
    if u32::try_from(held).is_err() {
        return Err(EvictError::TooManyPages(held));
    }
    let evictable = policy.evictable(logical_len);
    let mut limits = Vec::with_capacity(heads.len());
    let mut possible = 0;
    for head in heads {
        let extent = head.extent();
        let spare = extent.slots.saturating_sub(policy.floor_slots);
        let limit = extent.pages_within(spare.min(head.count_evictable(&evictable)));
        possible += limit;
        // No more than `held`, which is 32 bits.
        limits.push(limit.min(asked) as u32);
    }
    if asked > possible {
        return Err(EvictError::Infeasible { asked, possible, held, floor: held - possible });
    }
    Ok(limits)
}
