use std::collections::HashSet;

use proptest::prelude::*;

use super::cases::{Head, case};
use super::oracle;
use crate::base::{HeadRewrite, Positions};
use crate::evict::{Budget, EvictError, HeadSlots, Policy, Score, plan};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// The right slots die, the others survive with all that belongs to them, and no move could be
    /// spared.
    #[test]
    fn compaction_keeps_exactly_what_it_should(case in case()) {
        let views = case.views();
        let (len, policy) = (case.logical_len, &case.policy);
        let possible: usize =
            views.iter().map(|head| oracle::page_costs(head, len, policy).len()).sum();
        let asked = (case.share * possible as f64).round() as usize;
        let pages = oracle::schedule(&views, len, policy, asked).unwrap();
        let plan = plan(&views, len, policy, asked).unwrap();
        prop_assert_eq!(plan.pages_freed(), asked);
        prop_assert_eq!(plan.heads().len(), views.len());
        prop_assert_eq!(
            plan.moves(), plan.heads().iter().map(|head| head.moves().len()).sum::<usize>()
        );

        let rewrites = plan.rewrites();
        let changed = plan.heads().iter().enumerate().filter(|(_, head)| head.pages_freed() > 0);
        let expected = changed.map(|(head, plan)| HeadRewrite {
            head,
            slots_after: plan.slots_after(),
            moves: plan.moves().to_vec(),
        });
        prop_assert_eq!(rewrites, expected.collect::<Vec<_>>());

        let dying = views.iter().zip(&pages).map(|(head, &n)| head.extent().victims(n as usize));
        prop_assert_eq!(plan.victims(), dying.sum::<usize>());

        for ((head, plan), &pages) in views.iter().zip(plan.heads()).zip(&pages) {
            let slots = head.scores.len();
            let dying = head.extent().victims(pages as usize);
            prop_assert_eq!(plan.pages_freed(), pages as usize);
            prop_assert_eq!(plan.is_untouched(), pages == 0);
            prop_assert_eq!((plan.slots_before(), plan.slots_after()), (slots, slots - dying));
            let after = plan.slots_after();
            prop_assert_eq!(
                after.div_ceil(head.slots_per_page), head.extent().pages() - pages as usize
            );
            prop_assert!(pages == 0 || after.is_multiple_of(head.slots_per_page));
            prop_assert!(pages == 0 || after >= policy.floor_slots);

            let evictable = oracle::evictable(head, len, policy);
            let victims: HashSet<usize> = evictable[..dying].iter().map(|v| v.2).collect();

            // Everything that survives, wherever it went: slot, position, score.
            let mut kept: Vec<_> = (0..slots)
                .map(|slot| (slot, head.positions.get(slot).unwrap(), head.scores[slot]))
                .collect();
            let mut positions = head.positions.to_vec(slots);
            let mut scores = head.scores.to_vec();
            let mut expected: Vec<_> =
                kept.iter().copied().filter(|slot| !victims.contains(&slot.0)).collect();
            prop_assert_eq!(plan.positions_after(head.positions), {
                let mut after = positions.clone();
                plan.apply_to(&mut after).map(|()| after)
            });
            plan.apply_to(&mut kept).unwrap();
            plan.apply_to(&mut positions).unwrap();
            plan.apply_to(&mut scores).unwrap();
            for (i, &(_, position, score)) in kept.iter().enumerate() {
                prop_assert_eq!((positions[i], scores[i]), (position, score));
            }
            kept.sort();
            expected.sort();
            prop_assert_eq!(kept, expected);

            let holes = (0..after).filter(|slot| victims.contains(slot)).count();
            prop_assert_eq!(plan.moves().len(), holes);
            for m in plan.moves() {
                prop_assert!((m.from as usize) >= after && (m.to as usize) < after);
                prop_assert!(!victims.contains(&(m.from as usize)));
                prop_assert!(victims.contains(&(m.to as usize)));
            }
            for pair in plan.moves().windows(2) {
                prop_assert!(pair[0].from < pair[1].from && pair[0].to < pair[1].to);
            }
            for (slot, position) in head.positions.to_vec(slots).into_iter().enumerate() {
                let position = position as usize;
                if position < policy.sinks || position + policy.window >= len {
                    prop_assert!(!victims.contains(&slot));
                }
            }
        }
    }

    /// The paper's fork under-evicts later sequences of a batch; here each gives what it was asked.
    #[test]
    fn every_sequence_of_a_batch_frees_what_was_asked(
        batch in prop::collection::vec(case(), 8), ratio in 1.0..16.0
    ) {
        for case in batch {
            let views = case.views();
            let extents: Vec<_> = views.iter().map(HeadSlots::extent).collect();
            let (len, policy) = (case.logical_len, &case.policy);
            let Ok(asked) = Budget::Ratio(ratio).pages_to_free(&extents, len, policy) else {
                continue;
            };
            match plan(&views, len, policy, asked) {
                Ok(plan) => {
                    let left: usize = views
                        .iter()
                        .zip(plan.heads())
                        .map(|(head, plan)| plan.slots_after().div_ceil(head.slots_per_page))
                        .sum();
                    let held: usize = extents.iter().map(|head| head.pages()).sum();
                    prop_assert_eq!(plan.pages_freed(), asked);
                    prop_assert_eq!(held - left, asked);
                }
                Err(error) => {
                    let infeasible = matches!(error, EvictError::Infeasible { .. });
                    prop_assert!(infeasible, "{}", error);
                }
            }
        }
    }
}

#[test]
fn ties_die_oldest_first_wherever_they_lie() {
    let head = Head {
        scores: vec![Score::MAX; 6],
        positions: Some(vec![5, 3, 1, 0, 4, 2]),
        slots_per_page: 2,
    };
    let policy = Policy { sinks: 0, window: 0, ..Policy::default() };
    let plan = plan(&[head.view()], 6, &policy, 2).unwrap();
    let mut positions = head.positions.unwrap();
    plan.heads()[0].apply_to(&mut positions).unwrap();
    assert_eq!(positions, [5, 4]);
}

#[test]
fn values_of_another_length_are_refused() {
    let head = Head { scores: vec![Score::ZERO; 40], positions: None, slots_per_page: 16 };
    let plan = plan(&[head.view(), head.view()], 40, &Policy::default(), 0).unwrap();
    let wrong = EvictError::Length { what: "the values of a head's slots", got: 3, expected: 40 };
    let mut short = vec![1u8; 3];
    assert_eq!(plan.heads()[0].apply_to(&mut short), Err(wrong.clone()));
    assert_eq!(short, [1; 3]);
    assert_eq!(plan.apply_to(&mut [vec![0u8; 40], vec![0; 3]]), Err(wrong));
    assert!(matches!(plan.apply_to(&mut [vec![0u8; 40]]), Err(EvictError::Length { .. })));
    let listed = [3, 1, 2];
    let short = plan.heads()[0].positions_after(Positions::Explicit(&listed));
    assert!(matches!(short, Err(EvictError::Length { got: 3, expected: 40, .. })));
}

#[test]
fn positions_are_written_down_when_a_head_first_evicts() {
    assert_eq!(Positions::Identity.to_vec(3), [0, 1, 2]);
    assert_eq!(Positions::Explicit(&[7, 5]).to_vec(2), [7, 5]);
    assert_eq!(Positions::Explicit(&[7, 5]).get(2), None);
}

/// Evicting again and again, as between prefill chunks: heads lose their order and grow anew.
#[test]
fn a_growing_sequence_stays_within_its_budget() {
    let policy = Policy { sinks: 4, window: 8, ..Policy::default() };
    let mut heads = vec![Head { scores: vec![], positions: Some(vec![]), slots_per_page: 16 }; 6];
    let mut state = 1u32;
    for chunk in 1..=20u32 {
        for head in &mut heads {
            for position in (chunk - 1) * 64..chunk * 64 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                head.scores.push(Score::from_bits((state >> 16) as u16));
                head.positions.as_mut().unwrap().push(position);
            }
        }
        let len = 64 * chunk as usize;
        let views: Vec<_> = heads.iter().map(Head::view).collect();
        let extents: Vec<_> = views.iter().map(HeadSlots::extent).collect();
        let asked = Budget::TokensPerHead(96).pages_to_free(&extents, len, &policy).unwrap();
        let plan = plan(&views, len, &policy, asked).unwrap();
        for (head, plan) in heads.iter_mut().zip(plan.heads()) {
            plan.apply_to(&mut head.scores).unwrap();
            plan.apply_to(head.positions.as_mut().unwrap()).unwrap();
            let positions = head.positions.as_ref().unwrap();
            let distinct: HashSet<_> = positions.iter().collect();
            assert_eq!(distinct.len(), positions.len());
            for protected in (0..4).chain(64 * chunk - 8..64 * chunk) {
                assert!(positions.contains(&protected));
            }
        }
        let held: usize = heads.iter().map(|head| head.view().extent().pages()).sum();
        assert_eq!(held, 36.min(6 * 4 * chunk as usize));
    }
}
