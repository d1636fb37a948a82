//! Rewrites of shared pages with as few free pages as can be.

use proptest::prelude::*;

use super::bytes::{Bytes, Held, SLOTS, dies, eviction};
use crate::{base::compact, plan::*};

/// Takes all pages that are free.
fn hog(manager: &BlockManager) -> Sequence {
    let mut hog = manager.sequence(TablePlan::new([1]).unwrap());
    manager.retire(manager.end_step());
    let free = manager.stats().free;
    manager.reserve([(&mut hog, free)]).unwrap().commit();
    hog
}

/// Lets `pages` of them go.
fn let_go(manager: &BlockManager, hog: &mut Sequence, pages: usize) {
    let left = hog.tokens() - pages;
    manager.truncate(hog, left).unwrap().begin_moves().commit();
    manager.retire(manager.end_step());
}

fn out_of_pages(refused: Result<Rewrite<'_>, PlanError>) -> usize {
    match refused {
        Err(PlanError::Pool(PoolError::OutOfPages { needed, .. })) => needed,
        other => panic!("{other:?}"),
    }
}

/// Pages of victims leave a shared table without a copy, though it is not the last ones that go.
#[test]
fn whole_pages_leave_a_full_pool_without_a_copy() {
    let manager = BlockManager::new(8).unwrap();
    let mut original = manager.sequence(TablePlan::new([4, 4]).unwrap());
    manager.reserve([(&mut original, 16)]).unwrap().commit();
    let mut fork = manager.fork(&original).unwrap();
    assert_eq!(manager.stats().free, 0);
    let heads: Vec<HeadRewrite> = (0..2)
        .map(|head| {
            let (slots_after, moves) = compact(16, |slot| (4..12).contains(&slot));
            HeadRewrite { head, slots_after, moves }
        })
        .collect();
    // The moves as they are would write to page 1 of both heads.
    assert_eq!(out_of_pages(manager.rewrite(&mut fork, heads.clone())), 2);
    for sequence in [&mut fork, &mut original] {
        let ids: Vec<u32> = sequence.head(1).pages.to_vec();
        let rewrite = manager.rewrite_sparing(sequence, heads.clone()).unwrap();
        assert_eq!(rewrite.pages_copied(), 0);
        let moving = rewrite.begin_moves();
        let mut values: Vec<usize> = (0..16).collect();
        for head in moving.passes().flat_map(|pass| pass.heads()) {
            assert!(head.moves().is_empty());
            if head.head() == 0 {
                head.apply_to(&mut values).unwrap();
            }
        }
        assert_eq!(values, [0, 1, 2, 3, 12, 13, 14, 15]);
        assert_eq!(moving.commit().len(), 4);
        assert_eq!(sequence.head(1).pages, [ids[0], ids[3]]);
        let table = sequence.head(1);
        let positions = table.positions.to_vec(table.slots);
        assert_eq!(positions, [0, 1, 2, 3, 12, 13, 14, 15]);
    }
    let audit = manager.audit([&fork, &original]).unwrap();
    assert_eq!((audit.pool.held, audit.pool.shared), (4, 4));
}

/// The copies of one head go to pages that another has just let go of, in a second pass.
#[test]
fn copies_go_to_pages_that_other_heads_let_go_of() {
    let manager = BlockManager::new(7).unwrap();
    let mut original = manager.sequence(TablePlan::new([4, 4]).unwrap());
    manager.reserve([(&mut original, 8)]).unwrap().commit();
    let mut fork = manager.fork(&original).unwrap();
    // The fork has a page of its own in head 1, and none in head 0.
    manager.reserve([(&mut fork, 4)]).unwrap().commit();
    let cut = HeadRewrite { head: 0, slots_after: 8, moves: Vec::new() };
    manager.rewrite(&mut fork, vec![cut]).unwrap().begin_moves().commit();
    let hog = hog(&manager);
    let own = fork.head(1).pages[2];
    let before = original.head(0).pages.to_vec();

    // Head 0 loses a slot of each page: the last one ends in its hole, the other is copied.
    let (slots_after, moves) = compact(8, |slot| slot == 0 || slot == 7);
    let heads = vec![
        HeadRewrite { head: 0, slots_after, moves },
        HeadRewrite { head: 1, slots_after: 8, moves: Vec::new() },
    ];
    assert_eq!(out_of_pages(manager.rewrite(&mut fork, heads.clone())), 1);
    assert_eq!(out_of_pages(manager.rewrite_sparing(&mut fork, heads[..1].to_vec())), 1);
    let moving = manager.rewrite_sparing(&mut fork, heads).unwrap().begin_moves();
    let passes: Vec<_> = moving.passes().collect();
    assert_eq!(passes.len(), 2);
    assert!(passes[0].copies().is_empty());
    assert_eq!(passes[1].copies(), [PageCopy { head: 0, from: before[0], to: own }]);
    drop(passes);
    assert_eq!(moving.commit(), [before[0]]);
    assert_eq!(fork.head(0).pages, [own, before[1]]);
    assert_eq!(original.head(0).pages, before);
    manager.audit([&fork, &original, &hog]).unwrap();
}

/// What a sequence shares with others and holds alone, in a pool without a free page.
struct Full {
    manager: BlockManager,
    bytes: Bytes,
    evicting: Sequence,
    others: Vec<Sequence>,
    hog: Sequence,
}

impl Full {
    /// `prefix` tokens that `forks` others share, `own` ones that they do not; evicted between the two
    /// by `early`, if it is given.
    fn new(prefix: usize, own: usize, forks: usize, early: Option<u64>) -> Self {
        let manager = BlockManager::new(400).unwrap();
        let mut bytes = Bytes::default();
        let mut evicting = manager.sequence(TablePlan::new(SLOTS).unwrap());
        let mut append = |sequence: &mut Sequence, tokens| {
            let step = manager.reserve([(sequence, tokens)]).unwrap();
            bytes.append(&step);
            step.commit();
        };
        append(&mut evicting, prefix);
        let others: Vec<Sequence> = (0..forks).map(|_| manager.fork(&evicting).unwrap()).collect();
        append(&mut evicting, own);
        if let Some(seed) = early {
            let heads = eviction(&evicting, seed, 0b101);
            let moving = manager.rewrite_sparing(&mut evicting, heads).unwrap().begin_moves();
            bytes.carry_out(&moving);
            moving.commit();
        }
        let hog = hog(&manager);
        Self { manager, bytes, evicting, others, hog }
    }

    fn held(&self) -> (Held, Vec<Held>) {
        let others = self.others.iter().map(|other| self.bytes.held(other));
        (self.bytes.held(&self.evicting), others.collect())
    }

    fn audit(&self) -> Audit {
        let all = self.others.iter().chain([&self.evicting, &self.hog]);
        self.manager.audit(all).unwrap()
    }
}

/// A truncation, if it is one, or else an eviction.
fn begin<'a>(
    manager: &BlockManager,
    sequence: &'a mut Sequence,
    truncate: Option<usize>,
    rewrites: &[HeadRewrite],
) -> Result<Rewrite<'a>, PlanError> {
    match truncate {
        Some(keep) => manager.truncate(sequence, keep),
        None => manager.rewrite_sparing(sequence, rewrites.to_vec()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The pages that a refusal asks for are enough, one fewer is not; what survives is right, and
    /// nobody else's tokens change.
    #[test]
    fn what_a_refusal_asks_for_is_what_it_takes(
        (prefix, own, forks) in (1usize..30, 0usize..12, 1usize..3),
        early in prop::option::of(any::<u64>()),
        (seed, heads, truncate) in (any::<u64>(), 1u8..32, prop::option::of(0usize..30)),
    ) {
        let mut full = Full::new(prefix, own, forks, early);
        let tokens = full.evicting.tokens();
        let keep = truncate.map(|keep| keep.min(tokens));
        let (before, others) = full.held();
        let rewrites = eviction(&full.evicting, seed, heads);
        let manager = &full.manager;
        let needed = match begin(manager, &mut full.evicting, keep, &rewrites) {
            Ok(rewrite) => { drop(rewrite); 0 }
            Err(PlanError::Pool(PoolError::OutOfPages { needed, free: 0, .. })) => needed,
            Err(error) => panic!("{error}"),
        };
        if keep.is_none() {
            match manager.rewrite(&mut full.evicting, rewrites.clone()) {
                Ok(rewrite) => prop_assert_eq!(needed, 0, "{:?}", rewrite.pages_copied()),
                Err(PlanError::Pool(PoolError::OutOfPages { needed: most, .. })) => {
                    prop_assert!(needed <= most);
                }
                Err(error) => panic!("{error}"),
            }
        }
        if needed > 0 {
            let_go(manager, &mut full.hog, needed - 1);
            prop_assert_eq!(out_of_pages(begin(manager, &mut full.evicting, keep, &rewrites)), needed);
            let_go(manager, &mut full.hog, 1);
        }
        let held = manager.stats().held;
        let moving = begin(manager, &mut full.evicting, keep, &rewrites).unwrap().begin_moves();
        full.bytes.carry_out(&moving);
        moving.commit();
        prop_assert!(manager.stats().held <= held + needed);
        let survives = |head: usize, position: u32| match keep {
            Some(keep) => (position as usize) < keep,
            None => heads >> head & 1 == 0 || !dies(seed, position),
        };
        let mut expected = before;
        for (head, held) in expected.iter_mut().enumerate() {
            held.retain(|&position, _| survives(head, position));
        }
        prop_assert_eq!(full.held(), (expected, others));
        full.audit();
    }
}
