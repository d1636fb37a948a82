use proptest::collection::vec;
use proptest::prelude::*;

use super::cases::{Head, policy};
use crate::evict::{
    Allocation, Budget, Cost, EvictError, HeadExtent, HeadSlots, Policy, Score, plan,
};

const POLICY: Policy = Policy {
    sinks: 4,
    window: 32,
    floor_slots: 0,
    cost: Cost::MaxVictim,
    allocation: Allocation::Global,
};

fn heads(count: usize, slots: usize, slots_per_page: usize) -> Vec<HeadExtent> {
    vec![HeadExtent { slots, slots_per_page }; count]
}

#[test]
fn budgets_in_pages() {
    let heads = heads(4, 2_048, 16);
    let target = |budget: Budget| budget.target_pages(&heads, 2_048, &POLICY).unwrap();
    assert_eq!(target(Budget::Ratio(1.0)), 512);
    assert_eq!(target(Budget::Ratio(8.0)), 64);
    assert_eq!(target(Budget::Ratio(3.0)), 170);
    assert_eq!(target(Budget::RatioOutsideProtected(1.0)), 512);
    assert_eq!(target(Budget::Ratio(513.0)), 0);
    // 36 + 2,012 / 8 = 287.5 tokens per head, 18 pages; and 36 + 2,012 / 7.98 = 288.1.
    assert_eq!(target(Budget::RatioOutsideProtected(8.0)), 72);
    assert_eq!(target(Budget::RatioOutsideProtected(7.98)), 76);
    // Whole pages of every head: what a sequence of so many tokens takes.
    assert_eq!(target(Budget::TokensPerHead(1)), 4);
    assert_eq!(target(Budget::TokensPerHead(96)), 24);
    assert_eq!(target(Budget::TokensPerHead(97)), 28);
    assert_eq!(target(Budget::TokensPerHead(2_032)), 508);
    // Never more than the sequence takes.
    assert_eq!(target(Budget::TokensPerHead(2_033)), 512);
    assert_eq!(target(Budget::TokensPerHead(usize::MAX)), 512);
    assert_eq!(target(Budget::Pages(7)), 7);
    assert_eq!(target(Budget::Pages(513)), 512);
}

#[test]
fn pages_differ_by_head() {
    let mixed = [heads(1, 96, 16), heads(1, 96, 32)].concat();
    let free = |budget: Budget| budget.pages_to_free(&mixed, 96, &POLICY).unwrap();
    assert_eq!(free(Budget::Ratio(1.0)), 0);
    assert_eq!(free(Budget::Ratio(3.0)), 6);
    assert_eq!(free(Budget::TokensPerHead(64)), 3);
    assert_eq!(free(Budget::Pages(100)), 0);
}

/// Ratios are of what the sequence would hold, so that a second application changes nothing.
#[test]
fn a_budget_met_stays_met() {
    let full = heads(4, 2_048, 16);
    assert_eq!(Budget::Ratio(8.0).pages_to_free(&full, 2_048, &POLICY), Ok(448));
    let evicted = heads(4, 256, 16);
    assert_eq!(Budget::Ratio(8.0).pages_to_free(&evicted, 2_048, &POLICY), Ok(0));
}

#[test]
fn budgets_that_make_no_sense_are_refused() {
    let heads = heads(4, 2_048, 16);
    let refused = |budget: Budget| budget.pages_to_free(&heads, 2_048, &POLICY).unwrap_err();
    for ratio in [0.0, 0.99, -3.0, f64::INFINITY] {
        assert_eq!(refused(Budget::Ratio(ratio)), EvictError::Ratio(ratio));
        assert_eq!(refused(Budget::RatioOutsideProtected(ratio)), EvictError::Ratio(ratio));
    }
    assert!(matches!(refused(Budget::Ratio(f64::NAN)), EvictError::Ratio(_)));
    let beyond = EvictError::RatioBeyondPages { ratio: 512.5, pages: 512 };
    assert_eq!(
        beyond.to_string(),
        "a compression ratio of 512.5 leaves none of the sequence's 512 pages"
    );
    assert_eq!(refused(Budget::Ratio(512.5)), beyond);
    assert_eq!(Budget::Ratio(512.0).pages_to_free(&heads, 2_048, &POLICY), Ok(511));
    assert_eq!(refused(Budget::Pages(0)), EvictError::EmptyBudget);
    assert_eq!(refused(Budget::TokensPerHead(0)), EvictError::EmptyBudget);
    let under = EvictError::BudgetUnderFloor { tokens: 35, floor: 36 };
    assert_eq!(
        under.to_string(),
        "a budget of 35 tokens per head is under the 36 that every head keeps"
    );
    assert_eq!(refused(Budget::TokensPerHead(35)), under);
    assert_eq!(Budget::TokensPerHead(35).check(&POLICY), Err(under));
    assert_eq!(Budget::TokensPerHead(36).check(&POLICY), Ok(()));
    assert_eq!(Budget::TokensPerHead(36).pages_to_free(&heads, 2_048, &POLICY), Ok(500));
    assert_eq!(Budget::Pages(0).check(&POLICY), Err(EvictError::EmptyBudget));
    assert_eq!(Budget::Ratio(1e300).check(&POLICY), Ok(()));
    let floor = Policy { floor_slots: 40, ..POLICY };
    let under = EvictError::BudgetUnderFloor { tokens: 39, floor: 40 };
    assert_eq!(Budget::TokensPerHead(39).check(&floor), Err(under));
    let no_slots = [HeadExtent { slots: 0, slots_per_page: 0 }];
    assert_eq!(
        Budget::Pages(1).pages_to_free(&no_slots, 0, &POLICY),
        Err(EvictError::EmptyPages(0))
    );
}

/// A budget that contradicts the policy, or is beyond the pages, is refused when pages must go for it
/// and not before.
#[test]
fn nothing_to_free_is_nothing_to_refuse() {
    for budget in [
        Budget::Ratio(8.0),
        Budget::Ratio(1e300),
        Budget::RatioOutsideProtected(8.0),
        Budget::TokensPerHead(1),
        Budget::Pages(1),
    ] {
        assert_eq!(budget.pages_to_free(&heads(4, 0, 16), 0, &POLICY), Ok(0), "{budget:?}");
    }
    let under = Budget::TokensPerHead(17);
    for tokens in [1, 17, 18, 32] {
        assert_eq!(under.pages_to_free(&heads(4, tokens, 16), tokens, &POLICY), Ok(0), "{tokens}");
    }
    let refused = EvictError::BudgetUnderFloor { tokens: 17, floor: 36 };
    assert_eq!(under.pages_to_free(&heads(4, 33, 16), 33, &POLICY), Err(refused));
    assert_eq!(under.pages_to_free(&heads(4, 32, 16), 33, &POLICY), Ok(0));
}

fn budget(len: usize) -> impl Strategy<Value = Budget> {
    let ratio = prop_oneof![1.0..=64.0, (1u8..=64).prop_map(f64::from)];
    (ratio, 1..=len + 20, 0u8..4).prop_map(|(ratio, count, form)| match form {
        0 => Budget::Ratio(ratio),
        1 => Budget::RatioOutsideProtected(ratio),
        2 => Budget::TokensPerHead(count),
        _ => Budget::Pages(count),
    })
}

/// A sequence that never evicted: its length, and heads whose pages hold different numbers of slots.
fn fresh() -> impl Strategy<Value = (usize, Vec<Head>)> {
    (1usize..=200, vec(1usize..=40, 1..6)).prop_flat_map(|(len, pages)| {
        let head = move |slots_per_page| {
            vec((0u16..50).prop_map(Score::from_bits), len).prop_map(move |scores| Head {
                scores,
                positions: None,
                slots_per_page,
            })
        };
        (Just(len), pages.into_iter().map(head).collect::<Vec<_>>())
    })
}

fn extents_of(heads: &[Head]) -> Vec<HeadExtent> {
    heads.iter().map(|head| head.view().extent()).collect()
}

fn pages_of(heads: &[HeadExtent]) -> usize {
    heads.iter().map(HeadExtent::pages).sum()
}

fn pages_of_tokens(heads: &[HeadExtent], tokens: usize) -> usize {
    heads.iter().map(|head| tokens.div_ceil(head.slots_per_page)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// A budget at or above a sequence's length is all of its pages: nothing goes, whatever is held and
    /// whatever is protected.
    #[test]
    fn an_identity_budget_frees_nothing(
        len in 1usize..=200,
        heads in vec((1usize..=40, 0.0..=1.0), 1..6),
        policy in policy(),
        more in prop_oneof![Just(0), 1usize..50, Just(usize::MAX / 2)],
    ) {
        let held = |&(slots_per_page, share): &(usize, f64)| {
            HeadExtent { slots: (len as f64 * share) as usize, slots_per_page }
        };
        let partial: Vec<HeadExtent> = heads.iter().map(held).collect();
        let full: Vec<HeadExtent> =
            partial.iter().map(|head| HeadExtent { slots: len, ..*head }).collect();
        for budget in [
            Budget::Ratio(1.0),
            Budget::RatioOutsideProtected(1.0),
            Budget::TokensPerHead(len + more),
            Budget::Pages(pages_of(&full) + more),
        ] {
            for heads in [&full, &partial] {
                prop_assert_eq!(budget.target_pages(heads, len, &policy), Ok(pages_of(&full)));
                prop_assert_eq!(budget.pages_to_free(heads, len, &policy), Ok(0), "{:?}", budget);
            }
        }
    }

    /// What a budget asks for and what a plan may give up are in one unit: a budget is met to the page,
    /// or refused with the numbers because sinks, window and floors keep more; and once met it asks for
    /// nothing.
    #[test]
    fn budgets_are_met_to_the_page_or_refused(
        ((len, heads), budget) in fresh().prop_flat_map(|sequence| {
            let budget = budget(sequence.0);
            (Just(sequence), budget)
        }),
        policy in policy(),
    ) {
        let extents = extents_of(&heads);
        let held = pages_of(&extents);
        let target = budget.target_pages(&extents, len, &policy).unwrap();
        let floor = pages_of_tokens(&extents, policy.floor().min(len));
        prop_assert!(target <= held);
        let asked = match budget.pages_to_free(&extents, len, &policy) {
            Ok(asked) => asked,
            Err(EvictError::BudgetUnderFloor { tokens, floor }) => {
                prop_assert_eq!(budget, Budget::TokensPerHead(tokens));
                prop_assert!(tokens < floor && floor == policy.floor() && target < held);
                return Ok(());
            }
            Err(error) => {
                let Budget::Ratio(ratio) = budget else { panic!("{error}") };
                prop_assert_eq!(error, EvictError::RatioBeyondPages { ratio, pages: held });
                prop_assert!(target == 0 && ratio > held as f64);
                return Ok(());
            }
        };
        prop_assert_eq!(asked, held - target);
        let views: Vec<HeadSlots<'_>> = heads.iter().map(Head::view).collect();
        let plan = match plan(&views, len, &policy, asked) {
            Ok(plan) => plan,
            Err(error) => {
                let possible = held - floor;
                prop_assert_eq!(error, EvictError::Infeasible { asked, possible, held, floor });
                prop_assert!(target < floor);
                return Ok(());
            }
        };
        prop_assert!(target >= floor);
        let after: Vec<HeadExtent> = plan.heads().iter().zip(&extents)
            .map(|(head, before)| HeadExtent { slots: head.slots_after(), ..*before })
            .collect();
        prop_assert_eq!(pages_of(&after), target);
        prop_assert_eq!(budget.pages_to_free(&after, len, &policy), Ok(0));
        if let Budget::Ratio(ratio) = budget {
            prop_assert!(target as f64 * ratio <= held as f64 * (1.0 + 1e-12));
            prop_assert!((target + 1) as f64 * ratio > held as f64 * (1.0 - 1e-12));
        }
        if let Budget::TokensPerHead(tokens) = budget {
            // Room for the tokens, and heads that do not compete keep them.
            prop_assert_eq!(pages_of(&after), pages_of_tokens(&extents, tokens.min(len)));
            let alike = extents.iter().all(|head| *head == extents[0]);
            if alike && policy.allocation == Allocation::PerHead {
                prop_assert!(after.iter().all(|head| head.slots >= tokens.min(len)));
            }
        }
        if let Budget::RatioOutsideProtected(ratio) = budget {
            let protected = len - policy.evictable(len).len();
            let kept = protected as f64 + (len - protected) as f64 / ratio;
            prop_assert_eq!(target, pages_of_tokens(&extents, kept.ceil() as usize));
        }
    }

    /// More tokens or a lower ratio never leave fewer pages.
    #[test]
    fn targets_rise_with_the_budget((len, heads) in fresh(), policy in policy()) {
        let extents = extents_of(&heads);
        let target = |budget: Budget| budget.target_pages(&extents, len, &policy).unwrap();
        let rising = |targets: Vec<usize>| targets.is_sorted();
        prop_assert!(rising((1..=len + 1).map(|n| target(Budget::TokensPerHead(n))).collect()));
        let ratios = || (2..=128).rev().map(|half| f64::from(half) / 2.0);
        prop_assert!(rising(ratios().map(|r| target(Budget::Ratio(r))).collect()));
        prop_assert!(rising(ratios().map(|r| target(Budget::RatioOutsideProtected(r))).collect()));
    }
}

#[test]
fn policies_and_budgets_are_configuration() {
    let policy: Policy = serde_json::from_str(r#"{"window": 8, "cost": "sum-victims"}"#).unwrap();
    assert_eq!((policy.sinks, policy.window), (4, 8));
    assert_eq!(policy.cost, Cost::SumVictims);
    assert!(serde_json::from_str::<Policy>(r#"{"windw": 8}"#).is_err());
    let budget: Budget = serde_json::from_str(r#"{"ratio": 8.0}"#).unwrap();
    assert_eq!(budget, Budget::Ratio(8.0));
}
