//! The N cheapest pages over all heads, by two histograms over the halves of their cost keys.

use std::ops::Range;

use super::{
    cost::{CostKey, cost_of, page_costs},
    heads::HeadSlots,
    histogram::Histogram,
    policy::Cost,
};

/// Where the costs of the pages come from, head by head, non-decreasing.
pub(super) trait PageCosts {
    fn visit(&mut self, head: usize, emit: impl FnMut(CostKey));
    /// Bytes held.
    fn bytes(&self) -> usize;
}

/// Costs that are computed anew on every visit: three passes over the scores, constant memory.
pub(super) struct Recomputed<'a> {
    pub heads: &'a [HeadSlots<'a>],
    /// The most pages each head may give up.
    pub limits: &'a [u32],
    pub evictable: Range<usize>,
    pub cost: Cost,
    pub histogram: Histogram,
}

impl PageCosts for Recomputed<'_> {
    fn visit(&mut self, head: usize, emit: impl FnMut(CostKey)) {
        let pages = self.limits[head] as usize;
        let histogram = &mut self.histogram;
        page_costs(&self.heads[head], &self.evictable, self.cost, pages, histogram, emit);
    }

    fn bytes(&self) -> usize {
        Histogram::BYTES
    }
}

/// Costs that are kept, four bytes per page: one pass over the scores.
pub(super) struct Kept {
    keys: Vec<CostKey>,
    ends: Vec<usize>,
}

impl Kept {
    /// Takes all costs of `source`, and its histogram.
    pub fn new(mut source: Recomputed<'_>) -> (Self, Histogram) {
        let heads = source.limits.len();
        let mut keys = Vec::with_capacity(source.limits.iter().map(|&n| n as usize).sum());
        let mut ends = Vec::with_capacity(heads);
        for head in 0..heads {
            source.visit(head, |key| keys.push(key));
            ends.push(keys.len());
        }
        (Self { keys, ends }, source.histogram)
    }

    /// Costs from elsewhere: those of head `i` end at `ends[i]`.
    pub fn of(keys: Vec<CostKey>, ends: Vec<usize>) -> Self {
        Self { keys, ends }
    }

    /// Bytes that [`Kept`] takes for so many pages and heads.
    pub fn bytes_for(pages: usize, heads: usize) -> usize {
        pages * size_of::<CostKey>() + heads * size_of::<usize>()
    }
}

impl PageCosts for Kept {
    fn visit(&mut self, head: usize, emit: impl FnMut(CostKey)) {
        let start = head.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.keys[start..self.ends[head]].iter().copied().for_each(emit);
    }

    fn bytes(&self) -> usize {
        self.keys.capacity() * size_of::<CostKey>() + self.ends.capacity() * size_of::<usize>()
    }
}

/// A head's part in the selection.
#[derive(Clone, Copy, Default)]
struct Part {
    /// Pages cheaper than the threshold.
    below: u32,
    /// Pages that cost exactly the threshold.
    ties: u32,
}

/// What was selected.
pub(super) struct Selection {
    /// Pages per head.
    pub pages: Vec<u32>,
    /// The sum of their costs.
    pub cost: f64,
    /// The most bytes held meanwhile, the result and `source` included.
    pub bytes: usize,
}

/// The `n` cheapest pages of `heads` heads, of which there are at least `n` (1 or more). Equal
/// costs are taken by their ordinal within the head, then by head. `histogram` is empty.
pub(super) fn cheapest(
    source: &mut impl PageCosts,
    heads: usize,
    n: usize,
    cost: Cost,
    mut histogram: Histogram,
) -> Selection {
    for head in 0..heads {
        source.visit(head, |key| histogram.add((key >> 16) as u16));
    }
    let (high, n) = histogram.drain_nth(n);
    for head in 0..heads {
        source.visit(head, |key| {
            if (key >> 16) as u16 == high {
                histogram.add(key as u16);
            }
        });
    }
    let (low, tied) = histogram.drain_nth(n);
    let threshold = CostKey::from(high) << 16 | CostKey::from(low);

    let mut total = tied as f64 * cost_of(cost, threshold);
    let mut parts = vec![Part::default(); heads];
    for (head, part) in parts.iter_mut().enumerate() {
        source.visit(head, |key| {
            if key < threshold {
                part.below += 1;
                total += cost_of(cost, key);
            } else {
                part.ties += u32::from(key == threshold);
            }
        });
    }
    let bytes = source.bytes()
        + Histogram::BYTES
        + parts.capacity() * size_of::<Part>()
        + heads * size_of::<u32>();
    Selection { pages: share_ties(&parts, tied), cost: total, bytes }
}

/// Gives out `tied` of the pages that cost the threshold: lowest ordinals first, then lowest heads.
fn share_ties(parts: &[Part], tied: usize) -> Vec<u32> {
    let taken = |part: &Part, ordinal: u32| ordinal.saturating_sub(part.below).min(part.ties);
    let taken_by = |ordinal| parts.iter().map(|part| taken(part, ordinal) as usize).sum::<usize>();

    // The largest ordinal up to which all ties can be taken.
    let (mut ordinal, mut above) = (0, u32::MAX);
    while above - ordinal > 1 {
        let middle = ordinal + (above - ordinal) / 2;
        if taken_by(middle) <= tied { ordinal = middle } else { above = middle }
    }
    let mut left = tied - taken_by(ordinal);
    let mut pages = Vec::with_capacity(parts.len());
    for part in parts {
        let ties = taken(part, ordinal);
        let next = u32::from(left > 0 && ties < taken(part, ordinal.saturating_add(1)));
        left -= next as usize;
        pages.push(part.below + ties + next);
    }
    pages
}
