//! Eviction of all sequences of a decode loop: prices and victims on the device, budgets and tables on
//! the host.

use rayon::prelude::*;

use super::{cache::Cache, error::ServingError};
use crate::{
    base::{HeadRewrite, SlotMove},
    cuda::{Staging, driver::Stream},
    device::eviction::{Costs, Losing, PriceHead},
    evict::{Budget, EvictError, HeadExtent, Policy, cheapest_pages},
    plan::Sequence,
};

/// Pages of a head that are priced, in times of what heads give up on average. Where a head gives up all
/// of them and has more, more are priced.
const PRICED_SPREAD: usize = 8;

/// What an eviction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Pages that went back to the pool.
    pub pages: usize,
    /// Slots that were moved.
    pub moved: usize,
}

impl Cache {
    /// Evicts whole pages of every sequence until it is within one page in `rate`. The steps of the
    /// last plan are all queued.
    ///
    /// # Errors
    /// A budget that cannot be met: nothing has changed then. After any other error, of the device or
    /// the planner, slots may have moved that the tables do not know of, and the cache is of no more use.
    pub fn evict(
        &mut self,
        rate: f64,
        policy: &Policy,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<Evicted, ServingError> {
        let budget = Budget::Ratio(rate);
        let wanted: Vec<usize> = self
            .sequences
            .iter()
            .map(|s| budget.pages_to_free(&self.extents(s), s.tokens(), policy))
            .collect::<Result<_, _>>()?;
        if wanted.iter().all(|&pages| pages == 0) {
            return Ok(Evicted::default());
        }
        let priced = self.priced(policy)?;
        let pages = self.cheapest(&wanted, &priced, staging, stream)?;
        let (page_ids, data) = (self.mirror.address(), self.data);
        let slots_per_page = self.layout.slots;
        let Some(evictor) = &mut self.evictor else { return Ok(Evicted::default()) };
        let losing: Vec<Losing> = priced
            .iter()
            .zip(pages.iter().flatten())
            .filter(|(_, pages)| **pages > 0)
            .map(|(head, &pages)| {
                let extent = HeadExtent { slots: head.slots as usize, slots_per_page };
                let PriceHead { pages: at, slots, begin, end, .. } = *head;
                let dying = extent.victims(pages as usize) as u32;
                Losing { pages: at, slots, begin, end, dying }
            })
            .collect();
        // SAFETY: the heads are the mirror's tables with the slots they have when the queued steps are
        // done; scores and positions are of the same pages. The device counted the slots that may die
        // when it priced the pages. No sequence shares pages with another.
        unsafe { evictor.evict(&losing, self.arena, page_ids, data, staging, stream) }?;
        // The moves are read when they are made, so the pages are free as soon as they are given back.
        let mut moves = evictor.moves(staging, stream)?.into_iter();
        let rewrites: Vec<Vec<HeadRewrite>> = self
            .sequences
            .iter()
            .zip(&pages)
            .map(|(sequence, pages)| rewrites(sequence, pages, &mut moves))
            .collect();
        let manager = &self.manager;
        let done = (self.sequences.par_iter_mut().zip(rewrites))
            .map(|(sequence, rewrites)| {
                let moved = rewrites.iter().map(|rewrite| rewrite.moves.len()).sum();
                let pages = manager.rewrite(sequence, rewrites)?.begin_moves().commit().len();
                Ok(Evicted { pages, moved })
            })
            .try_reduce(Evicted::default, |a, b| {
                Ok::<_, ServingError>(Evicted {
                    pages: a.pages + b.pages,
                    moved: a.moved + b.moved,
                })
            })?;
        self.fence.record(self.manager.end_step(), stream)?;
        if let Some(step) = self.fence.wait()? {
            self.manager.retire(step);
        }
        Ok(done)
    }

    /// How many pages each head of each sequence gives up, so that the wanted ones go at the least cost.
    fn cheapest(
        &mut self,
        wanted: &[usize],
        priced: &[PriceHead],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<Vec<Vec<u32>>, ServingError> {
        let (page_ids, data, heads) = (self.mirror.address(), self.data, self.shape.heads());
        let Some(evictor) = &mut self.evictor else {
            return Ok(wanted.iter().map(|_| vec![0; heads]).collect());
        };
        // No head gives up more than all heads of its sequence together, or than it has.
        let most_wanted = wanted.iter().copied().max().unwrap_or(0);
        let longest = priced.iter().map(|head| head.most as usize).max().unwrap_or(0);
        let bound = most_wanted.min(longest).max(1);
        let mut most = (PRICED_SPREAD * most_wanted.div_ceil(heads.max(1))).clamp(1, bound);
        loop {
            // SAFETY: the heads are the mirror's tables with the slots they have when the queued steps
            // are done; scores and positions are of the same pages.
            let costs = unsafe { evictor.costs(priced, most, page_ids, data, staging, stream) }?;
            let pages: Result<Vec<Vec<u32>>, EvictError> = wanted
                .par_iter()
                .enumerate()
                .map(|(s, &pages)| cheapest_pages(heads_of(&costs, s, heads), pages))
                .collect();
            let short = match &pages {
                Ok(pages) => pages.iter().flatten().any(|&pages| pages as usize == most),
                Err(_) => true,
            };
            if most == bound || !short {
                return Ok(pages?);
            }
            most = (4 * most).min(bound);
        }
    }

    fn extent(&self, slots: usize) -> HeadExtent {
        HeadExtent { slots, slots_per_page: self.layout.slots }
    }

    fn extents(&self, sequence: &Sequence) -> Vec<HeadExtent> {
        sequence.heads().map(|table| self.extent(table.slots)).collect()
    }

    /// All heads, sequence after sequence, layer after layer.
    fn priced(&self, policy: &Policy) -> Result<Vec<PriceHead>, ServingError> {
        let kv_heads = self.shape.kv_heads;
        let mut priced = Vec::with_capacity(self.sequences.len() * self.shape.heads());
        for (s, sequence) in self.sequences.iter().enumerate() {
            let evictable = policy.evictable(sequence.tokens());
            for (index, table) in sequence.heads().enumerate() {
                let at = self.table(index / kv_heads, s, index % kv_heads);
                let spare = table.slots.saturating_sub(policy.floor_slots);
                priced.push(PriceHead {
                    pages: self.mirror.extent(at)?.offset,
                    slots: table.slots as u32,
                    begin: evictable.start as u32,
                    end: evictable.end as u32,
                    most: self.extent(table.slots).pages_within(spare) as u32,
                });
            }
        }
        Ok(priced)
    }
}

/// What the planner is told of the heads that give up `pages`, whose moves come next.
fn rewrites(
    sequence: &Sequence,
    pages: &[u32],
    moves: &mut impl Iterator<Item = Vec<SlotMove>>,
) -> Vec<HeadRewrite> {
    let losing = sequence.heads().zip(pages).enumerate().filter(|(_, (_, pages))| **pages > 0);
    losing
        .map(|(head, (table, &pages))| {
            let slots_per_page = sequence.plan().slots_per_page(head);
            let extent = HeadExtent { slots: table.slots, slots_per_page };
            let slots_after = table.slots - extent.victims(pages as usize);
            HeadRewrite { head, slots_after, moves: moves.next().unwrap_or_default() }
        })
        .collect()
}

/// The costs of one sequence's heads.
fn heads_of(
    costs: &Costs,
    sequence: usize,
    heads: usize,
) -> impl Iterator<Item = impl ExactSizeIterator<Item = crate::evict::Score> + '_> {
    (sequence * heads..(sequence + 1) * heads).map(|head| costs.head(head))
}
