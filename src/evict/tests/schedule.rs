use std::ops::ControlFlow;

use proptest::prelude::*;

use super::cases::{Case, Head, case};
use super::oracle;
use crate::base::Positions;
use crate::evict::histogram::Histogram;
use crate::evict::schedule::{Costs, schedule_with};
use crate::evict::{Allocation, Cost, EvictError, HeadExtent, HeadSlots, Policy, Score, schedule};

const BOTH: [Cost; 2] = [Cost::MaxVictim, Cost::SumVictims];

/// Nothing protected.
fn bare(cost: Cost) -> Policy {
    Policy { sinks: 0, window: 0, floor_slots: 0, cost, allocation: Allocation::Global }
}

fn identity(scores: Vec<Score>, slots_per_page: usize) -> Head {
    Head { scores, positions: None, slots_per_page }
}

fn possible(case: &Case) -> usize {
    let views = case.views();
    views.iter().map(|head| oracle::page_costs(head, case.logical_len, &case.policy).len()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn equals_the_sorting_model(case in case()) {
        let views = case.views();
        let asked = (case.share * possible(&case) as f64).round() as usize;
        let expected = oracle::schedule(&views, case.logical_len, &case.policy, asked).unwrap();
        for costs in [None, Some(Costs::Kept), Some(Costs::Recomputed)] {
            let found =
                schedule_with(&views, case.logical_len, &case.policy, asked, costs).unwrap();
            prop_assert_eq!(found.pages(), &expected[..]);
            prop_assert_eq!(found.total(), asked);
            prop_assert_eq!(found.pages().iter().sum::<u32>() as usize, asked);
        }
    }

    #[test]
    fn asks_for_more_than_may_go_are_refused_with_the_numbers(case in case(), more in 1usize..9) {
        let possible = possible(&case);
        let views = case.views();
        let held: usize = views.iter().map(|head| head.extent().pages()).sum();
        let asked = possible + more;
        prop_assert_eq!(
            schedule(&views, case.logical_len, &case.policy, asked),
            Err(EvictError::Infeasible { asked, possible, held, floor: held - possible })
        );
        prop_assert!(schedule(&views, case.logical_len, &case.policy, possible).is_ok());
    }

    /// No other division of the pages among the heads costs less. Small whole scores, so that all
    /// sums are exact.
    #[test]
    fn no_division_is_cheaper(
        scores in prop::collection::vec(prop::collection::vec(0u8..20, 0..9), 1..4),
        pages in prop::collection::vec(1usize..4, 3),
        share in 0f64..=1.0,
        max in any::<bool>(),
    ) {
        let policy = bare(if max { Cost::MaxVictim } else { Cost::SumVictims });
        let heads: Vec<Head> = scores
            .iter()
            .zip(pages)
            .map(|(scores, slots_per_page)| {
                let score = |&s| Score::try_from(f32::from(s)).unwrap();
                identity(scores.iter().map(score).collect(), slots_per_page)
            })
            .collect();
        let views: Vec<_> = heads.iter().map(Head::view).collect();
        let costs: Vec<_> = views.iter().map(|h| oracle::page_costs(h, 8, &policy)).collect();
        let asked = (share * costs.iter().map(Vec::len).sum::<usize>() as f64).round() as usize;
        prop_assume!(asked > 0);

        let mut cheapest = u128::MAX;
        let mut division = vec![0; costs.len()];
        loop {
            if division.iter().sum::<usize>() == asked {
                let cost = costs.iter().zip(&division).map(|(c, &n)| c[..n].iter().sum::<u128>());
                cheapest = cheapest.min(cost.sum());
            }
            let Some(head) = (0..costs.len()).find(|&h| division[h] < costs[h].len()) else {
                break;
            };
            division[..head].fill(0);
            division[head] += 1;
        }
        let found = schedule(&views, 8, &policy, asked).unwrap();
        prop_assert_eq!(found.cost().unwrap() * 57f64.exp2(), cheapest as f64);
    }
}

#[test]
fn equal_scores_give_evenly() {
    for cost in BOTH {
        let heads = vec![identity(vec![Score::MAX; 64], 16); 5];
        let views: Vec<_> = heads.iter().map(Head::view).collect();
        let found = schedule(&views, 64, &bare(cost), 12).unwrap();
        assert_eq!(found.pages(), [3, 3, 2, 2, 2]);
    }
}

#[test]
fn the_costs_differ() {
    // One high victim among zeros against many middling ones.
    let one = |s: f32| Score::try_from(s).unwrap();
    let mut peaked = vec![Score::ZERO; 8];
    peaked[3] = one(3.0);
    let heads = [identity(peaked, 8), identity(vec![one(1.0); 8], 8)];
    let views = heads.each_ref().map(Head::view);
    assert_eq!(schedule(&views, 8, &bare(Cost::MaxVictim), 1).unwrap().pages(), [0, 1]);
    assert_eq!(schedule(&views, 8, &bare(Cost::MaxVictim), 1).unwrap().cost(), Some(1.0));
    assert_eq!(schedule(&views, 8, &bare(Cost::SumVictims), 1).unwrap().pages(), [1, 0]);
    assert_eq!(schedule(&views, 8, &bare(Cost::SumVictims), 1).unwrap().cost(), Some(3.0));
}

#[test]
fn a_partial_last_page_costs_its_real_size() {
    let one = Score::try_from(1.0).unwrap();
    // Seventeen slots: the first page to go takes one slot with it.
    let heads = [identity(vec![one; 16], 16), identity(vec![one; 17], 16)];
    let views = heads.each_ref().map(Head::view);
    let found = schedule(&views, 17, &bare(Cost::SumVictims), 1).unwrap();
    assert_eq!((found.pages(), found.cost()), (&[0, 1][..], Some(1.0)));
}

#[test]
fn infinite_scores_go_last() {
    for cost in BOTH {
        let finite = identity(vec![Score::MAX; 32], 16);
        let mut scores = vec![Score::ZERO; 31];
        scores.push(Score::INFINITY);
        let heads = [identity(scores, 16), finite];
        let views = heads.each_ref().map(Head::view);
        assert_eq!(schedule(&views, 32, &bare(cost), 3).unwrap().pages(), [1, 2]);
        let all = schedule(&views, 32, &bare(cost), 4).unwrap();
        assert_eq!((all.pages(), all.cost()), (&[2, 2][..], Some(f64::INFINITY)));
    }
}

#[test]
fn the_same_number_of_slots_for_every_head() {
    let policy = Policy { allocation: Allocation::PerHead, ..bare(Cost::MaxVictim) };
    let heads = [(40, 16), (64, 16), (64, 8), (64, 16)]
        .map(|(slots, page)| identity(vec![Score::ZERO; slots], page));
    let views = heads.each_ref().map(Head::view);
    assert_eq!(schedule(&views, 64, &policy, 1).unwrap().pages(), [0, 1, 0, 0]);
    // All at 48 but the one that held less.
    assert_eq!(schedule(&views, 64, &policy, 4).unwrap().pages(), [0, 1, 2, 1]);
    assert_eq!(schedule(&views, 64, &policy, 5).unwrap().pages(), [0, 2, 2, 1]);
    assert_eq!(schedule(&views, 64, &policy, 4).unwrap().cost(), None);
}

#[test]
fn nothing_is_asked_of_nothing() {
    let policy = Policy::default();
    assert_eq!(schedule(&[], 0, &policy, 0).unwrap().total(), 0);
    assert!(matches!(
        schedule(&[], 0, &policy, 1),
        Err(EvictError::Infeasible { asked: 1, possible: 0, held: 0, floor: 0 })
    ));
    let empty = HeadSlots { scores: &[], positions: Positions::Identity, slots_per_page: 16 };
    assert_eq!(schedule(&[empty], 0, &policy, 0).unwrap().pages(), [0]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let policy = bare(Cost::MaxVictim);
    let scores = [Score::ZERO; 4];
    let head = |positions, slots_per_page| HeadSlots { scores: &scores, positions, slots_per_page };
    let refused = |head, logical_len| schedule(&[head], logical_len, &policy, 0).unwrap_err();
    assert_eq!(refused(head(Positions::Identity, 0), 4), EvictError::EmptyPages(0));
    assert_eq!(
        refused(head(Positions::Identity, 2), 3),
        EvictError::TooManySlots { head: 0, slots: 4, logical_len: 3 }
    );
    assert_eq!(
        refused(head(Positions::Explicit(&[1, 0, 2]), 2), 4),
        EvictError::Length { what: "positions", got: 3, expected: 4 }
    );
    assert_eq!(
        refused(head(Positions::Explicit(&[1, 0, 4, 2]), 2), 4),
        EvictError::Position { head: 0, slot: 2, position: 4, logical_len: 4 }
    );
}

#[test]
fn lengths_beyond_32_bits_are_refused() {
    let scores = [Score::ZERO; 4];
    let head = HeadSlots { scores: &scores, positions: Positions::Identity, slots_per_page: 2 };
    let policy = bare(Cost::MaxVictim);
    let longest = u32::MAX as usize;
    assert_eq!(schedule(&[head], longest, &policy, 1).unwrap().pages(), [1]);
    let logical_len = longest + 1;
    assert_eq!(
        schedule(&[head], logical_len, &policy, 1),
        Err(EvictError::TooManySlots { head: 0, slots: 4, logical_len })
    );
}

#[test]
fn policies_of_any_size_protect_all() {
    let policy = Policy { sinks: usize::MAX, window: usize::MAX, ..bare(Cost::MaxVictim) };
    assert_eq!(policy.floor(), usize::MAX);
    assert!(policy.evictable(100).is_empty());
    let floor = Policy { floor_slots: usize::MAX, ..bare(Cost::MaxVictim) };
    assert_eq!((floor.floor(), floor.evictable(100)), (usize::MAX, 0..100));
    let head = identity(vec![Score::ZERO; 100], 16);
    for policy in [policy, floor] {
        let refused = schedule(&[head.view()], 100, &policy, 1).unwrap_err();
        let (asked, possible, held, floor) = (1, 0, 7, 7);
        assert_eq!(refused, EvictError::Infeasible { asked, possible, held, floor });
    }
}

/// A count divides by nothing, even where the extent makes no sense.
#[test]
fn extents_count_their_pages() {
    let extent = |slots, slots_per_page| HeadExtent { slots, slots_per_page };
    let counted = |extent: HeadExtent| (extent.pages(), extent.last_page_slots());
    assert_eq!(counted(extent(0, 16)), (0, 0));
    assert_eq!(counted(extent(1, 16)), (1, 1));
    assert_eq!(counted(extent(16, 16)), (1, 16));
    assert_eq!(counted(extent(17, 16)), (2, 1));
    assert_eq!(extent(3, 0).pages(), 3);
    assert_eq!(extent(3, 0).pages_within(3), 1);
    assert_eq!(extent(0, 16).pages_within(100), 0);
    assert_eq!([0, 1, 2].map(|pages| extent(17, 16).victims(pages)), [0, 1, 17]);
    assert_eq!([0, 1, 16, 17].map(|victims| extent(17, 16).pages_within(victims)), [0, 1, 1, 2]);
}

/// Scratch is what it says it is, and within a quarter of the scores where those are many.
#[test]
fn scratch_is_bounded() {
    const HISTOGRAM: usize = 65_536 * size_of::<u32>();
    let longest: usize = 1 << 16;
    let scores: Vec<Score> =
        (0..longest).map(|i| Score::from_bits((i * 40_503 % 65_536) as u16)).collect();
    for (count, slots, slots_per_page, costs) in [
        (32, longest, 1, Costs::Recomputed),
        (32, longest, 8, Costs::Recomputed),
        (32, longest, 10, Costs::Recomputed),
        (32, longest, 11, Costs::Kept),
        (32, longest, 16, Costs::Kept),
        (32, longest, 64, Costs::Kept),
        // Costs that take no more than a histogram are kept however few scores there are; eight bytes
        // of each head count.
        (1, longest, 2, Costs::Kept),
        (1, longest - 2, 1, Costs::Kept),
        (1, longest - 1, 1, Costs::Recomputed),
        (3, 21_844, 1, Costs::Recomputed),
        (3, 21_843, 1, Costs::Kept),
    ] {
        let scores = &scores[..slots];
        let head = HeadSlots { scores, positions: Positions::Identity, slots_per_page };
        let heads = vec![head; count];
        let pages: usize = slots.div_ceil(slots_per_page);
        let asked = pages;
        for cost in BOTH {
            let found = schedule_with(&heads, slots, &bare(cost), asked, None).unwrap();
            let own = count * (2 * size_of::<u32>() + 2 * size_of::<u32>());
            let costs = match costs {
                Costs::Kept => count * (pages * size_of::<u32>() + size_of::<usize>()),
                Costs::Recomputed => HISTOGRAM,
            };
            assert_eq!(found.scratch_bytes(), own + costs + HISTOGRAM, "{slots_per_page}");
            if count == 32 {
                assert!(found.scratch_bytes() * 4 <= count * slots * size_of::<Score>());
            }
        }
        let nothing = schedule(&heads, slots, &bare(BOTH[0]), 0).unwrap();
        assert_eq!(nothing.scratch_bytes(), count * 2 * size_of::<u32>());
        let per_head = Policy { allocation: Allocation::PerHead, ..bare(BOTH[0]) };
        let even = schedule(&heads, slots, &per_head, asked).unwrap();
        let extents = count * size_of::<HeadExtent>();
        assert_eq!(even.scratch_bytes(), nothing.scratch_bytes() + extents);
    }
}

#[test]
fn a_histogram_hands_out_what_it_counted_and_forgets() {
    let mut histogram = Histogram::new();
    let mut visits = |codes: &[u16], most: usize| {
        codes.iter().for_each(|&code| histogram.add(code));
        let mut seen = Vec::new();
        histogram.drain(|code, count| {
            seen.push((code, count));
            if seen.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        seen
    };
    assert_eq!(visits(&[70, 3, 0xFFFF, 3, 4], 9), [(3, 2), (4, 1), (70, 1), (0xFFFF, 1)]);
    assert_eq!(visits(&[70, 3, 4, 3], 1), [(3, 2)]);
    assert_eq!(visits(&[5, 5], 9), [(5, 2)], "what was not visited is forgotten too");
    assert_eq!(visits(&[], 9), []);
}
