use crate::evict::{Budget, EvictError, HeadExtent, Policy};

const POLICY: Policy = Policy {
    sinks: 4,
    window: 32,
    floor_slots: 0,
    cost: crate::evict::Cost::MaxVictim,
    allocation: crate::evict::Allocation::Global,
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
    // 36 + 2,012 / 8 = 287.5 tokens per head.
    assert_eq!(target(Budget::RatioOutsideProtected(8.0)), 72);
    assert_eq!(target(Budget::TokensPerHead(100)), 25);
    assert_eq!(target(Budget::TokensPerHead(101)), 26);
    assert_eq!(target(Budget::TokensPerHead(usize::MAX)), 1 << 62);
    assert_eq!(target(Budget::Pages(7)), 7);
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
    assert_eq!(refused(Budget::Ratio(1e300)), EvictError::EmptyBudget);
    assert_eq!(refused(Budget::Pages(0)), EvictError::EmptyBudget);
    assert_eq!(refused(Budget::TokensPerHead(0)), EvictError::EmptyBudget);
    let under = EvictError::BudgetUnderFloor { tokens: 35, floor: 36 };
    assert_eq!(
        under.to_string(),
        "a budget of 35 tokens per head is under the 36 that every head keeps"
    );
    assert_eq!(refused(Budget::TokensPerHead(35)), under);
    let no_slots = [HeadExtent { slots: 0, slots_per_page: 0 }];
    assert_eq!(
        Budget::Pages(1).pages_to_free(&no_slots, 0, &POLICY),
        Err(EvictError::EmptyPages(0))
    );
}

#[test]
fn an_empty_sequence_needs_no_page() {
    assert_eq!(Budget::Ratio(8.0).pages_to_free(&heads(4, 0, 16), 0, &POLICY), Ok(0));
}

#[test]
fn policies_and_budgets_are_configuration() {
    let policy: Policy = serde_json::from_str(r#"{"window": 8, "cost": "sum-victims"}"#).unwrap();
    assert_eq!((policy.sinks, policy.window), (4, 8));
    assert_eq!(policy.cost, crate::evict::Cost::SumVictims);
    assert!(serde_json::from_str::<Policy>(r#"{"windw": 8}"#).is_err());
    let budget: Budget = serde_json::from_str(r#"{"ratio": 8.0}"#).unwrap();
    assert_eq!(budget, Budget::Ratio(8.0));
}
