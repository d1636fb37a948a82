//! Which block of a launch reads which pages.
//!
//! Attention is bound by memory, so work is weighed in bytes, not in tokens or heads: heads differ in
//! length, and a grid over (sequences, heads, longest length) would leave most blocks idle. Heads are
//! cut into ranges of whole pages only as far as the loads need it (each cut costs a partial result
//! and its merge), and the ranges go longest first to the least loaded list (LPT; Graham, *Bounds on
//! Multiprocessing Timing Anomalies*, 1969). The result is deterministic.

use std::{cmp::Reverse, collections::BinaryHeap};

/// A range that writes its result itself.
pub const NO_PARTIAL: u32 = u32::MAX;

/// What work costs, in bytes of memory traffic or their equivalent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkCost {
    /// Slots of a page.
    pub page_slots: u32,
    /// Bytes of a slot, K and V.
    pub slot_bytes: u32,
    /// What each page costs besides its bytes: its address, its first access.
    pub page: u32,
    /// What each range costs: loading queries, writing the result.
    pub range: u32,
}

/// How finely work is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkLimits {
    /// Lists to fill, one for each block: multiprocessors × blocks that fit on one.
    pub lists: u32,
    /// The fewest slots worth a range of their own when a head is cut.
    pub min_slots: u32,
}

/// Consecutive pages of one head, read by one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkRange {
    /// Which of the heads given.
    pub head: u32,
    /// First page, counted in the head's table.
    pub first_page: u32,
    /// Slots in use from the first slot of that page; 0 for an empty head.
    pub slots: u32,
    /// Which partial result it writes, or [`NO_PARTIAL`].
    pub partial: u32,
}

/// A head whose ranges' results are to be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkMerge {
    /// Which of the heads given.
    pub head: u32,
    /// Its first partial result; the others follow.
    pub first: u32,
    /// How many there are, at least two.
    pub count: u32,
}

/// The work of one launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkPlan {
    /// All ranges, list after list.
    pub ranges: Vec<WorkRange>,
    /// List `i` is `ranges[lists[i]..lists[i + 1]]`.
    pub lists: Vec<u32>,
    /// Heads that were cut, in order.
    pub merges: Vec<WorkMerge>,
    /// Partial results over all merges.
    pub partials: u32,
    /// What the heaviest list costs.
    pub heaviest: u64,
    /// What all lists cost together.
    pub total: u64,
}

/// Cuts per list that are tried at most. Ranges of a tenth of a list's load bound the imbalance to a
/// tenth.
const FINEST: u64 = 10;
/// An imbalance that is not worth another cut, in percent.
const TOLERATED: u64 = 5;

impl WorkPlan {
    /// Divides heads of `slots` slots each.
    pub fn new(slots: &[u32], cost: &WorkCost, limits: &WorkLimits) -> Self {
        let lists = u64::from(limits.lists.max(1));
        let whole: u64 = slots.iter().map(|&slots| cost.of(slots)).sum();
        let floor = cost.of(limits.min_slots.max(cost.page_slots));
        let mut best = Self::cut(slots, cost, limits, u64::MAX);
        for cuts in 1..=FINEST {
            if best.balanced(lists) {
                break;
            }
            let target = (whole / (lists * cuts)).max(floor);
            let plan = Self::cut(slots, cost, limits, target);
            if plan.heaviest < best.heaviest {
                best = plan;
            }
            if target == floor {
                break;
            }
        }
        best
    }

    /// The most ranges that a plan over so many heads and lists has, for fixed buffers.
    pub fn most_ranges(heads: usize, lists: u32) -> usize {
        heads + (FINEST as usize + 1) * lists.max(1) as usize
    }

    fn balanced(&self, lists: u64) -> bool {
        self.heaviest * lists * 100 <= self.total * (100 + TOLERATED)
    }

    /// Cuts every head that costs more than `target` into equal parts, and fills the lists.
    fn cut(slots: &[u32], cost: &WorkCost, limits: &WorkLimits, target: u64) -> Self {
        let mut plan = Self::default();
        let mut ranges: Vec<(Reverse<u64>, WorkRange)> = Vec::with_capacity(slots.len());
        for (head, &slots) in (0u32..).zip(slots) {
            let pages = slots.div_ceil(cost.page_slots);
            let parts = cost.of(slots).div_ceil(target).min(u64::from(pages.max(1))) as u32;
            if parts > 1 {
                plan.merges.push(WorkMerge { head, first: plan.partials, count: parts });
            }
            for part in 0..parts {
                let page =
                    |part: u32| (u64::from(pages) * u64::from(part) / u64::from(parts)) as u32;
                let (first_page, end) = (page(part), page(part + 1) * cost.page_slots);
                let slots = end.min(slots) - first_page * cost.page_slots;
                let partial = if parts > 1 { plan.partials + part } else { NO_PARTIAL };
                let range = WorkRange { head, first_page, slots, partial };
                ranges.push((Reverse(cost.of(slots)), range));
            }
            plan.partials += if parts > 1 { parts } else { 0 };
        }
        // Ties keep the order of heads and pages, which is what makes the plan deterministic.
        ranges.sort_by_key(|&(weight, _)| weight);

        let lists = limits.lists.max(1);
        let mut least: BinaryHeap<Reverse<(u64, u32)>> =
            (0..lists).map(|i| Reverse((0, i))).collect();
        let mut filled: Vec<Vec<WorkRange>> = vec![Vec::new(); lists as usize];
        for (Reverse(weight), range) in ranges {
            // There is at least one list, and each that is taken out is put back.
            let Some(Reverse((load, list))) = least.pop() else { break };
            filled[list as usize].push(range);
            least.push(Reverse((load + weight, list)));
            plan.heaviest = plan.heaviest.max(load + weight);
            plan.total += weight;
        }
        plan.lists.push(0);
        for list in filled {
            plan.ranges.extend(list);
            plan.lists.push(plan.ranges.len() as u32);
        }
        plan
    }
}

impl WorkCost {
    /// What a range of `slots` slots costs.
    fn of(&self, slots: u32) -> u64 {
        let pages = slots.div_ceil(self.page_slots);
        u64::from(slots) * u64::from(self.slot_bytes)
            + u64::from(pages) * u64::from(self.page)
            + u64::from(self.range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COST: WorkCost = WorkCost { page_slots: 16, slot_bytes: 512, page: 128, range: 2048 };

    /// Every slot of every head is in exactly one range, and cut heads have their merges.
    fn check(slots: &[u32], plan: &WorkPlan, lists: u32) {
        assert_eq!(plan.lists.len(), lists as usize + 1);
        assert!(plan.lists.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!((plan.lists[0], plan.lists[lists as usize] as usize), (0, plan.ranges.len()));
        assert!(plan.ranges.len() <= WorkPlan::most_ranges(slots.len(), lists));
        let mut merges = plan.merges.iter();
        let mut next_partial = 0;
        for (head, &slots) in (0u32..).zip(slots) {
            let mut ranges: Vec<_> = plan.ranges.iter().filter(|r| r.head == head).collect();
            ranges.sort_by_key(|r| r.first_page);
            let mut covered = 0;
            for (i, range) in ranges.iter().enumerate() {
                assert_eq!(range.first_page * COST.page_slots, covered, "head {head}");
                assert!(range.slots > 0 || slots == 0);
                covered += range.slots;
                if ranges.len() > 1 {
                    assert_eq!(range.partial, next_partial + i as u32);
                } else {
                    assert_eq!(range.partial, NO_PARTIAL);
                }
            }
            assert_eq!(covered, slots, "head {head}");
            if ranges.len() > 1 {
                let count = ranges.len() as u32;
                assert_eq!(merges.next(), Some(&WorkMerge { head, first: next_partial, count }));
                next_partial += count;
            }
        }
        assert_eq!((merges.next(), plan.partials), (None, next_partial));
    }

    fn loads(plan: &WorkPlan) -> Vec<u64> {
        let lists = plan.lists.windows(2);
        let load = |w: &[u32]| {
            plan.ranges[w[0] as usize..w[1] as usize].iter().map(|r| COST.of(r.slots)).sum()
        };
        lists.map(load).collect()
    }

    proptest! {
        #[test]
        fn every_slot_is_covered_once_and_loads_are_even(
            slots in prop::collection::vec(
                prop_oneof![1 => Just(0u32), 3 => 1u32..200, 6 => 1u32..20_000], 1..80),
            lists in 1u32..300,
            min_slots in 1u32..400,
        ) {
            let limits = WorkLimits { lists, min_slots };
            let plan = WorkPlan::new(&slots, &COST, &limits);
            check(&slots, &plan, lists);
            prop_assert_eq!(&plan, &WorkPlan::new(&slots, &COST, &limits));
            let loads = loads(&plan);
            prop_assert_eq!(loads.iter().max(), Some(&plan.heaviest));
            prop_assert_eq!(loads.iter().sum::<u64>(), plan.total);
            // Within a tenth of the mean, or of what cannot be cut further: a range of at most the
            // minimum, rounded up to a page, on top of a mean list.
            let mean = plan.total as f64 / f64::from(lists);
            let smallest = COST.of(min_slots.max(COST.page_slots) + COST.page_slots) as f64;
            prop_assert!(plan.heaviest as f64 <= (1.1 * mean).max(mean + smallest), "{:?}", plan);
        }

        /// Where there is enough of it, ragged work is balanced within a tenth, without exception.
        #[test]
        fn ragged_lengths_are_balanced_within_a_tenth(
            slots in prop::collection::vec(1u32..131_072, 64..256),
            lists in prop::sample::select(vec![108u32, 132, 264, 296]),
        ) {
            let limits = WorkLimits { lists, min_slots: 128 };
            let plan = WorkPlan::new(&slots, &COST, &limits);
            let mean = plan.total as f64 / f64::from(lists);
            prop_assume!(mean > 15.0 * COST.of(128) as f64);
            prop_assert!(plan.heaviest as f64 <= 1.1 * mean, "{} {}", plan.heaviest, mean);
        }
    }

    #[test]
    fn heads_that_fill_the_device_stay_whole() {
        let plan = WorkPlan::new(&[4096; 256], &COST, &WorkLimits { lists: 260, min_slots: 128 });
        assert_eq!((plan.ranges.len(), plan.partials), (256, 0));
        let plan = WorkPlan::new(&[64; 8], &COST, &WorkLimits { lists: 132, min_slots: 256 });
        assert_eq!((plan.ranges.len(), plan.partials), (8, 0));
    }

    #[test]
    fn one_long_head_is_spread_over_the_device() {
        let plan = WorkPlan::new(&[131_072], &COST, &WorkLimits { lists: 132, min_slots: 128 });
        check(&[131_072], &plan, 132);
        assert_eq!(plan.merges, [WorkMerge { head: 0, first: 0, count: plan.partials }]);
        assert!(loads(&plan).iter().all(|&load| load > 0));
    }

    #[test]
    fn nothing_to_do_is_an_empty_plan() {
        let plan = WorkPlan::new(&[], &COST, &WorkLimits { lists: 4, min_slots: 128 });
        assert_eq!((plan.ranges.len(), plan.lists.as_slice()), (0, [0u32; 5].as_slice()));
    }
}
