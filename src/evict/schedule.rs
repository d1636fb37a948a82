//! How many pages each head gives up.

use super::{
    error::EvictError,
    heads::{HeadExtent, HeadSlots},
    histogram::Histogram,
    policy::{Allocation, Policy},
    score::Score,
    select::{Kept, Recomputed, cheapest},
    uniform::level,
};

/// How many pages each head of a sequence gives up.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub(super) pages: Vec<u32>,
    pub(super) total: usize,
    pub(super) cost: Option<f64>,
    pub(super) scratch_bytes: usize,
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
    let limits = Limits::new(heads, logical_len, policy)?.within(pages_to_free)?;
    let limits_bytes = limits.capacity() * size_of::<u32>();
    let own_bytes = limits_bytes + heads.len() * size_of::<u32>();
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
        scratch_bytes: limits_bytes + selection.bytes,
    })
}

/// The most pages that each head may give up.
pub(super) struct Limits {
    pub pages: Vec<u32>,
    /// Their sum.
    pub possible: usize,
    /// Pages that the heads hold.
    pub held: usize,
}

impl Limits {
    /// Refuses what makes no sense.
    pub fn new(
        heads: &[HeadSlots<'_>],
        logical_len: usize,
        policy: &Policy,
    ) -> Result<Self, EvictError> {
        let evictable = policy.evictable(logical_len);
        let mut limits = Self { pages: Vec::with_capacity(heads.len()), possible: 0, held: 0 };
        for (index, head) in heads.iter().enumerate() {
            let evictable = head.count_evictable(&evictable, index, logical_len)?;
            let extent = head.extent();
            let spare = extent.slots.saturating_sub(policy.floor_slots);
            let pages = extent.pages_within(spare.min(evictable));
            limits.possible += pages;
            limits.held += extent.pages();
            // Pages are as many as tokens at most, which are 32 bits.
            limits.pages.push(pages as u32);
        }
        match u32::try_from(limits.held) {
            Ok(_) => Ok(limits),
            Err(_) => Err(EvictError::TooManyPages(limits.held)),
        }
    }

    /// The pages of each head, none of them more than are `asked` for. Refuses to free more than may go.
    pub fn within(mut self, asked: usize) -> Result<Vec<u32>, EvictError> {
        let Self { possible, held, .. } = self;
        if asked > possible {
            return Err(EvictError::Infeasible { asked, possible, held, floor: held - possible });
        }
        // All of them together are 32 bits.
        self.pages.iter_mut().for_each(|pages| *pages = (*pages).min(asked as u32));
        Ok(self.pages)
    }
}
