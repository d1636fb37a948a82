//! What the pages of heads cost, for schedulers that see more than one process does.

use super::{
    cost::{CostKey, page_cost, page_costs},
    error::EvictError,
    heads::{HeadExtent, HeadSlots},
    histogram::Histogram,
    page_cost::PageCost,
    policy::{Allocation, Cost, Policy},
    schedule::{Limits, Schedule},
    select::{PageCosts, cheapest},
    uniform::level,
};

/// What one head would give up its pages for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadPrices<'a> {
    /// The head's place among all (layer, KV head) pairs of the sequence, over all ranks: equal costs go
    /// by it.
    pub head: usize,
    /// How much of its pages it uses.
    pub extent: HeadExtent,
    /// The most pages that it may give up.
    pub possible: usize,
    /// What the first, the second, … page costs: non-decreasing, of as many of the possible pages as
    /// were listed.
    pub costs: &'a [PageCost],
}

/// The prices of the pages of some heads of one sequence.
///
/// [`schedule`](super::schedule()) needs the scores of all heads in one place. Prices are an eighth of
/// them or less, and enough: ranks of a tensor- or pipeline-parallel engine each price their own heads,
/// send the lists round, [merge](Self::merge) them and come to the [schedule](Self::schedule) that one
/// process with all heads would have found, ties included. A scheduler of its own reads the
/// [lists](Self::heads), over sequences too.
///
/// ```
/// use std::sync::Arc;
///
/// use headwise::{
///     base::SlotMove,
///     evict::{Budget, HeadSlots, PagePrices, Policy, Score, plan_pages},
///     plan::{BlockManager, TablePlan},
/// };
///
/// // Two ranks, each with one of the two KV heads of two layers: rank 0 has the heads 0 and 2 of the
/// // model, rank 1 has 1 and 3. Each has a pool and a sequence of 64 tokens, 16 slots to a page.
/// let numbers = [[0, 2], [1, 3]];
/// let mut ranks = Vec::new();
/// for _ in &numbers {
///     let manager = BlockManager::new(64)?;
///     let mut sequence = manager.sequence(Arc::new(TablePlan::new([16, 16])?));
///     manager.reserve([(&mut sequence, 64)])?.commit();
///     ranks.push((manager, sequence));
/// }
///
/// // The engine's scores: one per slot of each head.
/// let policy = Policy { sinks: 2, window: 4, ..Policy::default() };
/// let scores = numbers.map(|heads| {
///     heads.map(|head| {
///         let value = |slot: usize| ((slot * 7 + head * 13) % 31 * (head + 1)) as f32;
///         (0..64).map(|slot| Score::try_from(value(slot)).unwrap()).collect::<Vec<_>>()
///     })
/// });
/// let heads: Vec<Vec<HeadSlots>> = (ranks.iter().zip(&scores))
///     .map(|((_, sequence), scores)| {
///         let heads = sequence.heads().zip(scores).map(|(table, scores)| {
///             HeadSlots { scores, positions: table.positions, slots_per_page: 16 }
///         });
///         heads.collect()
///     })
///     .collect();
///
/// // Each rank prices its heads; all of them merge what all sent, and agree.
/// let prices = (heads.iter().zip(numbers))
///     .map(|(heads, numbers)| PagePrices::new(heads, 64, &policy, usize::MAX)?.numbered(numbers))
///     .collect::<Result<Vec<_>, _>>()?;
/// let all = PagePrices::merge(&prices)?;
/// let free = Budget::Ratio(2.0).pages_to_free(&all.extents(), 64, &policy)?;
/// let schedule = all.schedule(free)?;
/// assert_eq!(schedule.total(), 8);
///
/// // Each rank plans its own share, moves its bytes and publishes its tables.
/// let plans = (heads.iter().zip(numbers))
///     .map(|(heads, numbers)| {
///         let share = numbers.map(|head| schedule.pages()[head]);
///         plan_pages(heads, 64, &policy, &share)
///     })
///     .collect::<Result<Vec<_>, _>>()?;
/// for ((manager, sequence), plan) in ranks.iter_mut().zip(&plans) {
///     let moving = manager.rewrite(sequence, plan.rewrites())?.begin_moves();
///     for head in moving.passes().flat_map(|pass| pass.heads()) {
///         let _moves: &[SlotMove] = head.moves(); // the engine's kernel
///     }
///     assert_eq!(moving.commit().len(), plan.pages_freed());
///     // What the engine keeps per slot follows: `plan.apply_to(&mut scores)`.
/// }
/// let held: usize = ranks.iter().map(|(_, sequence)| sequence.pages()).sum();
/// assert_eq!(held, 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagePrices {
    policy: Policy,
    logical_len: usize,
    /// Ascending by number.
    heads: Vec<Priced>,
    costs: Vec<PageCost>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Priced {
    head: usize,
    extent: HeadExtent,
    possible: u32,
    /// Where the costs of the head end among all costs.
    end: usize,
}

impl PagePrices {
    /// Prices the pages of `heads`, numbered as they come, of a sequence of `logical_len` tokens: the
    /// first `most` of each head at most. An eviction of no more than `most` pages needs no others.
    ///
    /// # Errors
    /// A head's slots, positions or pages make no sense.
    pub fn new(
        heads: &[HeadSlots<'_>],
        logical_len: usize,
        policy: &Policy,
        most: usize,
    ) -> Result<Self, EvictError> {
        let limits = Limits::new(heads, logical_len, policy)?;
        let evictable = policy.evictable(logical_len);
        let listed = limits.pages.iter().map(|&pages| most.min(pages as usize));
        let mut costs = Vec::with_capacity(listed.clone().sum());
        let mut histogram = Histogram::new();
        let mut priced = Vec::with_capacity(heads.len());
        for (head, ((slots, &possible), listed)) in
            heads.iter().zip(&limits.pages).zip(listed).enumerate()
        {
            page_costs(slots, &evictable, policy.cost, listed, &mut histogram, |key| {
                costs.push(page_cost(policy.cost, key));
            });
            priced.push(Priced { head, extent: slots.extent(), possible, end: costs.len() });
        }
        Ok(Self { policy: *policy, logical_len, heads: priced, costs })
    }

    /// Prices from lists that were sent, or that a device made, in any order.
    ///
    /// # Errors
    /// A head that comes twice; a list that does not ascend or is longer than the pages that may go, of
    /// which there are no more than the head holds.
    pub fn from_heads<'a>(
        policy: &Policy,
        logical_len: usize,
        heads: impl IntoIterator<Item = HeadPrices<'a>>,
    ) -> Result<Self, EvictError> {
        let mut lists: Vec<HeadPrices<'_>> = heads.into_iter().collect();
        lists.sort_by_key(|list| list.head);
        if let Some(pair) = lists.windows(2).find(|pair| pair[0].head == pair[1].head) {
            return Err(EvictError::PricedTwice(pair[0].head));
        }
        let mut costs = Vec::with_capacity(lists.iter().map(|list| list.costs.len()).sum());
        let mut priced = Vec::with_capacity(lists.len());
        let mut held = 0usize;
        for HeadPrices { head, extent, possible, costs: list } in lists {
            extent.check(head)?;
            let bad = |problem| Err(EvictError::BadCosts { head, problem });
            if possible > extent.pages() {
                return bad("more pages may go than it holds");
            }
            if list.len() > possible {
                return bad("more costs than pages that may go");
            }
            if !list.is_sorted() {
                return bad("costs do not ascend");
            }
            held = held.saturating_add(extent.pages());
            costs.extend_from_slice(list);
            // Checked below, with all the others.
            priced.push(Priced { head, extent, possible: possible as u32, end: costs.len() });
        }
        match u32::try_from(held) {
            Ok(_) => Ok(Self { policy: *policy, logical_len, heads: priced, costs }),
            Err(_) => Err(EvictError::TooManyPages(held)),
        }
    }

    /// The same prices of heads with other `numbers`: those that the heads have over all ranks, for each
    /// head in the order of its number until now.
    ///
    /// # Errors
    /// Not one number per head, or one twice.
    pub fn numbered(self, numbers: impl IntoIterator<Item = usize>) -> Result<Self, EvictError> {
        let numbers: Vec<usize> = numbers.into_iter().collect();
        let (got, expected) = (numbers.len(), self.heads.len());
        if got != expected {
            return Err(EvictError::Length { what: "the numbers of all heads", got, expected });
        }
        let heads = self.heads().zip(numbers).map(|(list, head)| HeadPrices { head, ..list });
        Self::from_heads(&self.policy, self.logical_len, heads)
    }

    /// The prices of all ranks together.
    ///
    /// # Errors
    /// None at all; prices of different policies or lengths; a head that two ranks price.
    pub fn merge<'a>(ranks: impl IntoIterator<Item = &'a Self>) -> Result<Self, EvictError> {
        let ranks: Vec<&Self> = ranks.into_iter().collect();
        let Some(first) = ranks.first() else {
            return Err(EvictError::UnlikePrices("no rank"));
        };
        if ranks.iter().any(|rank| rank.policy != first.policy) {
            return Err(EvictError::UnlikePrices("different policies"));
        }
        if ranks.iter().any(|rank| rank.logical_len != first.logical_len) {
            return Err(EvictError::UnlikePrices("different lengths"));
        }
        let heads = ranks.iter().flat_map(|rank| rank.heads());
        Self::from_heads(&first.policy, first.logical_len, heads)
    }

    /// What the prices are of: their policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Tokens that the sequence has seen.
    pub fn logical_len(&self) -> usize {
        self.logical_len
    }

    /// The prices of each head, ascending by number.
    pub fn heads(&self) -> impl ExactSizeIterator<Item = HeadPrices<'_>> {
        self.heads.iter().enumerate().map(|(index, priced)| HeadPrices {
            head: priced.head,
            extent: priced.extent,
            possible: priced.possible as usize,
            costs: self.costs_of(index),
        })
    }

    /// How much of its pages each head uses, as a [`Budget`](super::Budget) asks for it.
    pub fn extents(&self) -> Vec<HeadExtent> {
        self.heads.iter().map(|priced| priced.extent).collect()
    }

    /// What [`schedule`](super::schedule()) finds from the scores of these heads, which are those of the
    /// whole sequence: entry `i` of its pages is that of head `i`. [`plan_pages`](super::plan_pages)
    /// makes a plan of each rank's share.
    ///
    /// # Errors
    /// A number that no head has; fewer pages may go than were asked for; a head that lists fewer costs
    /// than it would take to know.
    pub fn schedule(&self, pages_to_free: usize) -> Result<Schedule, EvictError> {
        if let Some(missing) =
            (0..).zip(&self.heads).find(|(number, priced)| *number != priced.head)
        {
            return Err(EvictError::NotPriced(missing.0));
        }
        let pages: Vec<u32> = self.heads.iter().map(|priced| priced.possible).collect();
        let possible = pages.iter().map(|&pages| pages as usize).sum();
        let held = self.heads.iter().map(|priced| priced.extent.pages()).sum();
        let limits = Limits { pages, possible, held }.within(pages_to_free)?;
        let own_bytes = (limits.capacity() + self.heads.len()) * size_of::<u32>();
        let without_costs = |pages, scratch_bytes| {
            Ok(Schedule { pages, total: pages_to_free, cost: None, scratch_bytes })
        };
        if pages_to_free == 0 {
            return without_costs(vec![0; self.heads.len()], own_bytes);
        }
        if self.policy.allocation == Allocation::PerHead {
            let extents = self.extents();
            let bytes = own_bytes + extents.capacity() * size_of::<HeadExtent>();
            return without_costs(level(&extents, &limits, pages_to_free), bytes);
        }
        let (asked, possible) = (pages_to_free, self.costs.len());
        if asked > possible {
            return Err(EvictError::TooFewCosts { asked, possible });
        }
        // Page costs decode as sums do, whichever of the two they are.
        let (heads, histogram) = (self.heads.len(), Histogram::new());
        let found = cheapest(&mut &*self, heads, asked, Cost::SumVictims, histogram);
        for (index, (&pages, &limit)) in found.pages.iter().zip(&limits).enumerate() {
            let listed = self.costs_of(index).len();
            if pages as usize == listed && pages < limit {
                return Err(EvictError::CostsCut { head: index, listed, asked });
            }
        }
        let (pages, cost) = (found.pages, Some(found.cost));
        let scratch_bytes = found.bytes + limits.capacity() * size_of::<u32>();
        Ok(Schedule { pages, total: asked, cost, scratch_bytes })
    }

    fn costs_of(&self, index: usize) -> &[PageCost] {
        let start = index.checked_sub(1).map_or(0, |before| self.heads[before].end);
        &self.costs[start..self.heads[index].end]
    }
}

impl PageCosts for &PagePrices {
    fn visit(&mut self, head: usize, emit: impl FnMut(CostKey)) {
        self.costs_of(head).iter().map(|cost| cost.to_bits()).for_each(emit);
    }

    /// The prices were there before.
    fn bytes(&self) -> usize {
        0
    }
}
