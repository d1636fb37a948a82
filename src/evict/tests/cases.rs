//! Random sequences: heads of different lengths, page sizes and histories.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::base::Positions;
use crate::evict::{Allocation, Cost, HeadSlots, Policy, Score};

/// A head that owns its slots.
#[derive(Clone, Debug)]
pub struct Head {
    pub scores: Vec<Score>,
    /// `None`: it never evicted.
    pub positions: Option<Vec<u32>>,
    pub slots_per_page: usize,
}

impl Head {
    pub fn view(&self) -> HeadSlots<'_> {
        let positions = match &self.positions {
            None => Positions::Identity,
            Some(positions) => Positions::Explicit(positions),
        };
        HeadSlots { scores: &self.scores, positions, slots_per_page: self.slots_per_page }
    }
}

#[derive(Clone, Debug)]
pub struct Case {
    pub heads: Vec<Head>,
    pub logical_len: usize,
    pub policy: Policy,
    /// Share of the pages that may go which are asked for.
    pub share: f64,
}

impl Case {
    pub fn views(&self) -> Vec<HeadSlots<'_>> {
        self.heads.iter().map(Head::view).collect()
    }
}

fn score() -> impl Strategy<Value = Score> {
    any::<u16>().prop_map(Score::from_bits)
}

fn scores(slots: usize) -> impl Strategy<Value = Vec<Score>> {
    let few = prop_oneof![
        Just(Score::ZERO),
        Just(Score::from_bits(1)),
        Just(Score::from_bits(0x4000)),
        Just(Score::MAX),
        Just(Score::INFINITY)
    ];
    prop_oneof![
        vec(score(), slots),
        vec(few, slots),
        score().prop_map(move |score| vec![score; slots]),
        (0u16..0xFF00)
            .prop_flat_map(move |base| vec((base..base + 3).prop_map(Score::from_bits), slots)),
    ]
}

fn head(logical_len: usize) -> impl Strategy<Value = Head> {
    let page = prop::sample::select(vec![1usize, 2, 3, 4, 7, 16, 29, 32]);
    (0..=logical_len, page, any::<bool>()).prop_flat_map(
        move |(slots, slots_per_page, has_evicted)| {
            let all = Just((0..logical_len as u32).collect::<Vec<_>>()).prop_shuffle();
            (scores(slots), all).prop_map(move |(scores, mut all)| {
                all.truncate(slots);
                Head { scores, positions: has_evicted.then_some(all), slots_per_page }
            })
        },
    )
}

pub fn policy() -> impl Strategy<Value = Policy> {
    let cost = prop::sample::select(vec![Cost::MaxVictim, Cost::SumVictims]);
    let allocation =
        prop::sample::select(vec![Allocation::Global, Allocation::Global, Allocation::PerHead]);
    (0usize..6, 0usize..20, 0usize..30, cost, allocation).prop_map(
        |(sinks, window, floor_slots, cost, allocation)| Policy {
            sinks,
            window,
            floor_slots,
            cost,
            allocation,
        },
    )
}

pub fn case() -> impl Strategy<Value = Case> {
    (0usize..150).prop_flat_map(|logical_len| {
        (vec(head(logical_len), 1..6), policy(), 0.0..=1.0)
            .prop_map(move |(heads, policy, share)| Case { heads, logical_len, policy, share })
    })
}
