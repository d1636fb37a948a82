//! Which block of a launch reads which pages.
//!
//! Attention is bound by memory, so work is weighed in bytes, not in tokens or heads: heads differ in
//! length, and a grid over (sequences, heads, longest length) would leave most blocks idle. Whole heads
//! go longest first to the least loaded list (LPT; Graham, *Bounds on Multiprocessing Timing
//! Anomalies*, 1969). Where that is uneven, heads are cut, and of two ways the better one counts:
//!
//! * McNaughton's wrap-around rule (*Scheduling with Deadlines and Loss Functions*, 1959): lists are
//!   filled one after another, and the head that reaches over a list's end goes on in the next. Lists
//!   come out even, but most have two ranges, and starting a range costs.
//! * Equal parts: heads longer than a list's share are cut into as many equal parts as that takes, and
//!   the parts go longest first to the least loaded list. Few, short heads come out best this way, a part
//!   a list.
//!
//! Both cut at most once per list. Each cut costs a partial result and its merge. The result is
//! deterministic.

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
    /// Heads that were cut.
    pub merges: Vec<WorkMerge>,
    /// Partial results over all merges.
    pub partials: u32,
    /// What the heaviest list costs.
    pub heaviest: u64,
    /// What all lists cost together.
    pub total: u64,
}

/// An imbalance that is not worth a cut, in percent.
const TOLERATED: u64 = 5;

impl WorkPlan {
    /// Divides heads of `slots` slots each.
    pub fn new(slots: &[u32], cost: &WorkCost, limits: &WorkLimits) -> Self {
        // Ties keep the order of heads, which is what makes the plan deterministic.
        let mut longest_first: Vec<u32> = (0..slots.len() as u32).collect();
        longest_first.sort_by_key(|&head| Reverse(slots[head as usize]));
        let lists = limits.lists.max(1);
        let whole = Self::placed(slots, cost, lists, whole_heads(slots, &longest_first));
        let floor = cost.of(limits.min_slots.max(cost.page_slots));
        let even = (whole.total / u64::from(lists)).max(floor);
        if whole.heaviest * 100 <= even * (100 + TOLERATED) {
            return whole;
        }
        let wrapped = Self::wrapped(slots, &longest_first, cost, lists, floor);
        let parts = Self::placed(slots, cost, lists, equal_parts(slots, cost, lists, floor));
        // The first of the lightest: a whole plan merges nothing.
        let plans = [whole, parts, wrapped];
        plans.into_iter().min_by_key(|plan| plan.heaviest).unwrap_or_default()
    }

    /// The most ranges that a plan over so many heads and lists has, for fixed buffers.
    pub fn most_ranges(heads: usize, lists: u32) -> usize {
        heads + lists.max(1) as usize
    }

    /// Ranges to the least loaded list, the heaviest first; `ranges` are sorted by head and page, and
    /// those of cut heads get their partial results.
    fn placed(slots: &[u32], cost: &WorkCost, lists: u32, mut ranges: Vec<WorkRange>) -> Self {
        let mut plan = Self::default();
        if ranges.len() > slots.len() {
            for of_head in ranges.chunk_by_mut(|a, b| a.head == b.head) {
                plan.cut(of_head);
            }
            // Ties keep the order of heads and pages, which is what makes the plan deterministic.
            ranges.sort_by_key(|range| Reverse(range.slots));
        }
        let mut least: BinaryHeap<Reverse<(u64, u32)>> =
            (0..lists).map(|list| Reverse((0, list))).collect();
        let mut placed: Vec<(u32, WorkRange)> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let weight = cost.of(range.slots);
            // There is at least one list, and each that is taken out is put back.
            let Some(Reverse((load, list))) = least.pop() else { break };
            placed.push((list, range));
            least.push(Reverse((load + weight, list)));
            plan.heaviest = plan.heaviest.max(load + weight);
            plan.total += weight;
        }
        placed.sort_by_key(|&(list, _)| list);
        plan.lists.push(0);
        for list in 0..lists {
            let from = plan.ranges.len();
            let here = placed[from..].iter().take_while(|&&(l, _)| l == list);
            plan.ranges.extend(here.map(|&(_, range)| range));
            plan.lists.push(plan.ranges.len() as u32);
        }
        plan
    }

    /// Gives the ranges of one head their partial results, if there are several.
    fn cut(&mut self, ranges: &mut [WorkRange]) {
        let (Some(&WorkRange { head, .. }), count @ 2..) = (ranges.first(), ranges.len() as u32)
        else {
            return;
        };
        let first = self.partials;
        for (partial, range) in (first..).zip(ranges) {
            range.partial = partial;
        }
        self.merges.push(WorkMerge { head, first, count });
        self.partials += count;
    }

    /// Fills list after list and cuts the heads that reach over an end.
    fn wrapped(
        slots: &[u32],
        longest_first: &[u32],
        cost: &WorkCost,
        lists: u32,
        floor: u64,
    ) -> Self {
        let mut plan = Self { lists: vec![0], ..Self::default() };
        let weight: u64 = slots.iter().map(|&slots| cost.of(slots)).sum();
        let cuts = u64::from(cost.range) * u64::from(lists - 1);
        let target = (weight + cuts).div_ceil(u64::from(lists)).max(floor);
        // Ends may move by this much to spare a sliver of a range; it does not add up, because the end
        // of each list is counted from the start of all.
        let slack = (target / 40).max(floor / 4).min(floor);
        // Where the list being filled ends, how far all lists are filled, and this one alone.
        let (mut end, mut filled, mut load) = (target, 0u64, 0u64);
        for &head in longest_first {
            let slots = slots[head as usize];
            let first_range = plan.ranges.len();
            let mut done = 0;
            loop {
                let left = slots - done;
                let last = plan.lists.len() as u64 == u64::from(lists);
                let room = end.saturating_sub(filled);
                let all = cost.of(left);
                if !last && load > 0 && room <= slack.min(all / 2) {
                    plan.close(&mut load);
                    end += target;
                    continue;
                }
                let take =
                    if last || all <= room + slack { left } else { cost.slots_in(room).min(left) };
                let range = WorkRange {
                    head,
                    first_page: done / cost.page_slots,
                    slots: take,
                    partial: NO_PARTIAL,
                };
                plan.ranges.push(range);
                load += cost.of(take);
                filled += cost.of(take);
                done += take;
                if done == slots {
                    break;
                }
                plan.close(&mut load);
                end += target;
            }
            let mut ranges = plan.ranges.split_off(first_range);
            plan.cut(&mut ranges);
            plan.ranges.append(&mut ranges);
        }
        plan.total = filled;
        while plan.lists.len() <= lists as usize {
            plan.close(&mut load);
        }
        plan
    }

    /// Ends the list being filled.
    fn close(&mut self, load: &mut u64) {
        self.lists.push(self.ranges.len() as u32);
        self.heaviest = self.heaviest.max(std::mem::take(load));
    }
}

/// A range for each head, in the order given.
fn whole_heads(slots: &[u32], order: &[u32]) -> Vec<WorkRange> {
    let range = |&head: &u32| {
        let slots = slots[head as usize];
        WorkRange { head, first_page: 0, slots, partial: NO_PARTIAL }
    };
    order.iter().map(range).collect()
}

/// Heads cut into equal parts of about a list's share, each at least `floor`; sorted by head and page.
fn equal_parts(slots: &[u32], cost: &WorkCost, lists: u32, floor: u64) -> Vec<WorkRange> {
    let total: u64 = slots.iter().map(|&slots| cost.of(slots)).sum();
    let share = (total / u64::from(lists)).max(floor).max(1);
    let mut ranges = Vec::with_capacity(slots.len() + lists as usize);
    for (head, &slots) in (0u32..).zip(slots) {
        // Rounded: over all heads that is at most a part per list and half a part per head.
        let pages = slots.div_ceil(cost.page_slots).max(1);
        let parts = ((cost.of(slots) + share / 2) / share).clamp(1, u64::from(pages)) as u32;
        for part in 0..parts {
            let edge = |part: u32| (u64::from(pages) * u64::from(part) / u64::from(parts)) as u32;
            let (first_page, end) = (edge(part), edge(part + 1));
            let start = first_page * cost.page_slots;
            let slots = (end * cost.page_slots).min(slots) - start;
            ranges.push(WorkRange { head, first_page, slots, partial: NO_PARTIAL });
        }
    }
    ranges
}

impl WorkCost {
    /// What a range of `slots` slots costs.
    fn of(&self, slots: u32) -> u64 {
        let pages = slots.div_ceil(self.page_slots);
        u64::from(slots) * u64::from(self.slot_bytes)
            + u64::from(pages) * u64::from(self.page)
            + u64::from(self.range)
    }

    /// Slots of whole pages, at least one, that cost about `room`.
    fn slots_in(&self, room: u64) -> u32 {
        let page = u64::from(self.page_slots) * u64::from(self.slot_bytes) + u64::from(self.page);
        let room = room.saturating_sub(u64::from(self.range)) + page / 2;
        u32::try_from(room / page.max(1)).unwrap_or(u32::MAX).max(1).saturating_mul(self.page_slots)
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
        let mut partials: Vec<u32> =
            plan.merges.iter().flat_map(|m| m.first..m.first + m.count).collect();
        partials.sort_unstable();
        assert_eq!(partials, (0..plan.partials).collect::<Vec<_>>());
        for (head, &slots) in (0u32..).zip(slots) {
            let mut ranges: Vec<_> = plan.ranges.iter().filter(|r| r.head == head).collect();
            ranges.sort_by_key(|r| r.first_page);
            let mut covered = 0;
            for (i, range) in ranges.iter().enumerate() {
                assert_eq!(range.first_page * COST.page_slots, covered, "head {head}");
                assert!(range.slots > 0 || slots == 0);
                covered += range.slots;
                let merge = plan.merges.iter().find(|merge| merge.head == head);
                assert_eq!(merge.map_or(1, |merge| merge.count) as usize, ranges.len());
                let partial = merge.map_or(NO_PARTIAL, |merge| merge.first + i as u32);
                assert_eq!(range.partial, partial);
            }
            assert_eq!(covered, slots, "head {head}");
        }
        // At most one cut per list.
        assert!(plan.ranges.len() < slots.len() + lists as usize);
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
            // Within a tenth of the mean, except where lists come down to ranges of the minimum: one
            // of these on top of a mean list, or one that took a sliver of up to its half along.
            let mean = plan.total as f64 / f64::from(lists);
            let smallest = COST.of(min_slots.max(COST.page_slots) + COST.page_slots) as f64;
            prop_assert!(plan.heaviest as f64 <= (1.1 * mean).max(mean + smallest).max(1.5 * smallest), "{:?}", plan);
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

    /// Heads a little longer than whole shares are cut alike, a part a list, rather than wrapped around.
    #[test]
    fn equal_heads_are_cut_into_equal_parts() {
        let limits = WorkLimits { lists: 264, min_slots: 128 };
        let cost = WorkCost { range: 48 << 10, ..COST };
        let plan = WorkPlan::new(&[1024; 64], &cost, &limits);
        assert_eq!((plan.ranges.len(), plan.merges.len()), (256, 64));
        assert!(plan.ranges.iter().all(|range| range.slots == 256));
    }

    #[test]
    fn nothing_to_do_is_an_empty_plan() {
        let plan = WorkPlan::new(&[], &COST, &WorkLimits { lists: 4, min_slots: 128 });
        assert_eq!((plan.ranges.len(), plan.lists.as_slice()), (0, [0u32; 5].as_slice()));
    }
}
