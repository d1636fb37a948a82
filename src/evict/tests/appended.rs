//! Heads that evicted and went on: their newest positions are a run, not a list.

use proptest::collection::vec;
use proptest::prelude::*;

use super::cases::{Case, case};
use crate::base::Positions;
use crate::evict::scorer::{KvCompress, Random, SinksWindow};
use crate::evict::{EvictError, HeadContext, HeadSlots, Policy, Score, Scorer, plan, schedule};

/// A case whose heads all got the same newest tokens, and as many scores for these.
fn went_on() -> impl Strategy<Value = (Case, usize)> {
    (case(), 0usize..40, vec(any::<u16>(), 40)).prop_map(|(mut case, appended, codes)| {
        let first = case.logical_len as u32;
        case.logical_len += appended;
        for (head, seed) in case.heads.iter_mut().zip(1..) {
            let codes = codes.iter().cycle().skip(seed * 7).take(appended);
            head.scores.extend(codes.map(|&code| Score::from_bits(code)));
            let held = head.scores.len() - appended;
            let lost = head.positions.is_none() && held < first as usize;
            let positions = head.positions.take();
            let listed = positions.or_else(|| lost.then(|| (0..held as u32).collect()));
            head.positions = listed.map(|mut positions| {
                positions.extend(first..first + appended as u32);
                positions
            });
        }
        (case, appended)
    })
}

proptest! {
    /// A run is the list it stands for, in what is scheduled and in who dies and moves.
    #[test]
    fn a_run_is_the_list_it_stands_for((case, appended) in went_on()) {
        let Case { heads, logical_len, policy, share } = &case;
        let listed: Vec<HeadSlots<'_>> = heads.iter().map(|head| head.view()).collect();
        let runs: Vec<HeadSlots<'_>> = (heads.iter().zip(&listed))
            .map(|(head, view)| match &head.positions {
                None => *view,
                Some(positions) => {
                    let list = &positions[..positions.len() - appended];
                    let run = (logical_len - appended) as u32;
                    HeadSlots { positions: Positions::Appended { list, run }, ..*view }
                }
            })
            .collect();
        let pages: usize = listed.iter().map(|head| head.extent().pages()).sum();
        let asked = (pages as f64 * share) as usize;
        prop_assert_eq!(
            schedule(&listed, *logical_len, policy, asked),
            schedule(&runs, *logical_len, policy, asked)
        );
        let (listed, runs) = (
            plan(&listed, *logical_len, policy, asked),
            plan(&runs, *logical_len, policy, asked),
        );
        match (listed, runs) {
            (Ok(listed), Ok(runs)) => prop_assert_eq!(listed.heads(), runs.heads()),
            (listed, runs) => prop_assert_eq!(listed.err(), runs.err()),
        }
    }

    /// Scorers that go by positions see the same ones.
    #[test]
    fn scorers_see_the_list_that_a_run_stands_for(
        (list, appended) in (Just((0..30u32).collect::<Vec<_>>()).prop_shuffle(), 1usize..20),
        cut in 0usize..30,
        attention in vec(0.0f32..1.0, 50),
    ) {
        let list = &list[..cut];
        let listed: Vec<u32> = list.iter().copied().chain(30..30 + appended as u32).collect();
        let slots = listed.len();
        let context = |positions| HeadContext {
            head: 3,
            logical_len: 30 + appended,
            positions,
            head_dim: 16,
            group: 1,
            queries: 1,
            keys: None,
            attention: Some(&attention[..slots]),
        };
        let scorers: [Box<dyn Scorer>; 3] = [
            Box::new(KvCompress::new(1, 5).unwrap()),
            Box::new(SinksWindow),
            Box::new(Random::new(9)),
        ];
        for scorer in scorers {
            let (mut a, mut b) = (vec![0.0; slots], vec![0.0; slots]);
            scorer.score(&context(Positions::Explicit(&listed)), &mut a).unwrap();
            scorer.score(&context(Positions::Appended { list, run: 30 }), &mut b).unwrap();
            prop_assert_eq!(a, b);
        }
    }
}

#[test]
fn runs_that_make_no_sense_are_refused() {
    let scores = [Score::ZERO; 4];
    let refused = |list, run, logical_len| {
        let positions = Positions::Appended { list, run };
        let head = HeadSlots { scores: &scores, positions, slots_per_page: 2 };
        schedule(&[head], logical_len, &Policy::default(), 0).unwrap_err()
    };
    assert_eq!(
        refused(&[0, 1, 2, 3, 4], 5, 9),
        EvictError::Length { what: "positions", got: 5, expected: 4 }
    );
    assert_eq!(
        refused(&[1, 0], 3, 4),
        EvictError::Position { head: 0, slot: 3, position: 4, logical_len: 4 }
    );
    assert_eq!(
        refused(&[1, 0], u32::MAX, 4),
        EvictError::Position { head: 0, slot: 2, position: u32::MAX, logical_len: 4 }
    );
}
