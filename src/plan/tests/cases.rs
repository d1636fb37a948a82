//! Cases that have names.

use crate::{base::SlotMove, plan::*};

fn sequence_of(manager: &BlockManager, tokens: usize) -> Sequence {
    let mut sequence = manager.sequence(TablePlan::new([4, 4]).unwrap());
    manager.reserve([(&mut sequence, tokens)]).unwrap().commit();
    sequence
}

#[test]
fn a_step_is_granted_to_all_or_to_none() {
    let manager = BlockManager::new(10).unwrap();
    let (mut a, mut b) = (sequence_of(&manager, 4), sequence_of(&manager, 4));
    let before = manager.stats();
    let error = manager.reserve([(&mut a, 8), (&mut b, 9)]).unwrap_err();
    let expected = PoolError::OutOfPages { needed: 10, free: 6, fenced: 0, enough_after: None };
    assert_eq!(error, PlanError::Pool(expected));
    assert_eq!(manager.stats(), before);
    assert_eq!((a.tokens(), a.pages(), b.tokens()), (4, 2, 4));
    let error = manager.reserve([(&mut a, 1000)]).unwrap_err();
    assert_eq!(error, PlanError::NeverFits { needed: 502, total: 10 });
    assert!(matches!(manager.reserve([(&mut a, u32::MAX as usize)]), Err(PlanError::TooLong(_))));
}

/// Freeing all that others hold would not help: what a sequence holds itself counts.
#[test]
fn a_sequence_that_outgrows_the_pool_never_fits() {
    let manager = BlockManager::new(10).unwrap();
    let mut sequence = sequence_of(&manager, 16);
    assert_eq!(sequence.pages(), 8);
    let error = manager.reserve([(&mut sequence, 12)]).unwrap_err();
    assert_eq!(error, PlanError::NeverFits { needed: 14, total: 10 });
    let full = PoolError::OutOfPages { needed: 2, free: 0, fenced: 0, enough_after: None };
    let other = sequence_of(&manager, 4);
    assert_eq!(manager.reserve([(&mut sequence, 4)]).unwrap_err(), full.into());
    drop(other);
    let step = manager.end_step();
    manager.retire(step);
    manager.reserve([(&mut sequence, 4)]).unwrap().commit();
}

/// A fork that pays for private copies fits once its sharer has left.
#[test]
fn copies_of_shared_pages_do_not_make_a_step_impossible() {
    let manager = BlockManager::new(4).unwrap();
    let mut original = sequence_of(&manager, 6);
    let fork = manager.fork(&original).unwrap();
    let error = manager.reserve([(&mut original, 1)]).unwrap_err();
    assert_eq!(
        error,
        PoolError::OutOfPages { needed: 2, free: 0, fenced: 0, enough_after: None }.into()
    );
    drop(fork);
    manager.reserve([(&mut original, 1)]).unwrap().commit();
}

#[test]
fn needs_beyond_all_counting_are_saturated() {
    let manager = BlockManager::new(4).unwrap();
    let sequence = sequence_of(&manager, 1);
    assert_eq!(sequence.pages_needed(usize::MAX), (1 << 62) - 1 + ((1 << 62) - 1));
    let dense = manager.sequence(TablePlan::new([1, 1]).unwrap());
    assert_eq!(dense.pages_needed(usize::MAX), usize::MAX);
    assert_eq!(dense.plan().pages_for(usize::MAX), usize::MAX);
}

#[test]
fn pages_of_a_dropped_step_wait_too() {
    let manager = BlockManager::new(4).unwrap();
    let mut sequence = sequence_of(&manager, 4);
    drop(manager.reserve([(&mut sequence, 1)]).unwrap());
    assert_eq!((sequence.tokens(), sequence.pages()), (4, 2));
    assert_eq!((manager.stats().free, manager.stats().fenced), (0, 2));
    let step = manager.end_step();
    manager.retire(step);
    assert_eq!(manager.stats().free, 2);
}

#[test]
fn freed_pages_wait_for_their_step() {
    let manager = BlockManager::new(4).unwrap();
    let sequence = sequence_of(&manager, 8);
    drop(sequence);
    assert_eq!(manager.stats().fenced, 4);
    let mut next = manager.sequence(TablePlan::new([4, 4]).unwrap());
    let error = manager.reserve([(&mut next, 4)]).unwrap_err();
    let after = Some(StepId(0));
    let refusal = PoolError::OutOfPages { needed: 2, free: 0, fenced: 4, enough_after: after };
    assert_eq!(refusal.to_string(), "2 pages needed, 0 free, 4 fenced: enough once step 0 retires");
    assert_eq!(error, refusal.into());
    assert_eq!(manager.admission(3, 2), Admission::Later { missing: 5, enough_after: None });
    assert_eq!(manager.admission(3, 1), Admission::Later { missing: 4, enough_after: after });
    let step = manager.end_step();
    let later = manager.end_step();
    assert!(step < later);
    manager.retire(step);
    assert_eq!(manager.stats().free, 4);
}

#[test]
fn retiring_the_running_step_frees_nothing() {
    let manager = BlockManager::new(4).unwrap();
    drop(sequence_of(&manager, 8));
    manager.retire(StepId(u64::MAX));
    assert_eq!(manager.stats().fenced, 4);
}

#[test]
fn the_pool_refuses_stale_and_doubled_claims() {
    let mut pool = PagePool::new(4).unwrap();
    let mut pages = Vec::new();
    pool.take(3, &mut pages).unwrap();
    assert_eq!(pages.iter().map(|p| p.id).collect::<Vec<_>>(), [0, 1, 2]);
    pool.share(&pages[..1]).unwrap();
    let before = pool.stats();
    // Page 1 stands twice but is held once.
    let doubled = [pages[0], pages[1], pages[1]];
    assert!(matches!(pool.give(&doubled), Err(PoolError::Stale { .. })));
    assert_eq!(pool.stats(), before);
    // Page 0 stands twice and is held twice.
    assert_eq!(pool.give(&[pages[0], pages[0]]), Ok(1));
    assert!(matches!(pool.give(&pages[..1]), Err(PoolError::Stale { current: 1, .. })));
    assert!(matches!(pool.share(&[pages[1], pages[0]]), Err(PoolError::Stale { .. })));
    assert_eq!(pool.references(pages[1]), Ok(1));
    let foreign = Page { id: 9, generation: 0 };
    assert_eq!(pool.give(&[foreign]), Err(PoolError::NoSuchPage { page: 9, pages: 4 }));
    assert!(PagePool::new(0).is_err());
    assert!(PagePool::new(usize::MAX).is_err());
}

#[test]
fn a_fork_shares_until_someone_writes() {
    let manager = BlockManager::new(20).unwrap();
    let mut original = sequence_of(&manager, 6);
    let mut fork = manager.fork(&original).unwrap();
    assert_eq!(manager.stats().shared, 4);
    let step = manager.reserve([(&mut fork, 1)]).unwrap();
    // One private tail per head; the full page stays shared.
    assert_eq!(step.copies().len(), 2);
    assert_eq!(step.pages_taken(), 2);
    step.commit();
    assert_eq!(manager.stats().shared, 2);
    // The original's tail is its own again.
    let step = manager.reserve([(&mut original, 1)]).unwrap();
    assert!(step.copies().is_empty());
    step.commit();
    assert_eq!(fork.head(0).pages[0], original.head(0).pages[0]);
    assert_ne!(fork.head(0).pages[1], original.head(0).pages[1]);
    manager.audit([&fork, &original]).unwrap();
}

#[test]
fn an_eviction_copies_only_the_shared_pages_it_writes() {
    let manager = BlockManager::new(20).unwrap();
    let original = sequence_of(&manager, 12);
    let mut fork = manager.fork(&original).unwrap();
    // Head 0 loses slots 5..9: slots 9..12 move into the hole, page 1 is written, page 2 freed.
    let moves: Vec<SlotMove> = (0..3).map(|i| SlotMove { from: 9 + i, to: 5 + i }).collect();
    let head = HeadRewrite { head: 0, slots_after: 8, moves };
    let rewrite = manager.rewrite(&mut fork, vec![head]).unwrap();
    assert_eq!(rewrite.pages_copied(), 1);
    let moving = rewrite.begin_moves();
    let passes: Vec<_> = moving.passes().collect();
    assert_eq!(passes.len(), 1);
    assert_eq!(passes[0].copies()[0].from, original.head(0).pages[1]);
    drop(passes);
    assert_eq!(moving.commit(), original.head(0).pages[1..]);
    assert_eq!(fork.head(0).pages[0], original.head(0).pages[0]);
    assert_eq!(fork.head(0).positions.to_vec(8), [0, 1, 2, 3, 4, 9, 10, 11]);
    manager.audit([&fork, &original]).unwrap();
}

#[test]
fn rewrites_that_do_not_fit_are_refused() {
    let manager = BlockManager::new(20).unwrap();
    let mut sequence = sequence_of(&manager, 8);
    let head = |head, slots_after, moves: &[(u32, u32)]| HeadRewrite {
        head,
        slots_after,
        moves: moves.iter().map(|&(from, to)| SlotMove { from, to }).collect(),
    };
    for bad in [
        vec![head(2, 0, &[])],
        vec![head(1, 0, &[]), head(0, 0, &[])],
        vec![head(0, 0, &[]), head(0, 0, &[])],
        vec![head(0, 9, &[])],
        vec![head(0, 4, &[(8, 0)])],
        vec![head(0, 4, &[(3, 0)])],
        vec![head(0, 4, &[(5, 4)])],
        vec![head(0, 4, &[(6, 0), (5, 1)])],
        vec![head(0, 4, &[(5, 1), (6, 1)])],
    ] {
        let refused = manager.rewrite(&mut sequence, bad.clone());
        assert!(matches!(refused, Err(PlanError::BadRewrite { .. })), "{bad:?}");
    }
    let other = BlockManager::new(20).unwrap();
    assert!(matches!(other.rewrite(&mut sequence, vec![]), Err(PlanError::ForeignSequence)));
    assert!(matches!(other.fork(&sequence), Err(PlanError::ForeignSequence)));
    assert!(matches!(other.reserve([(&mut sequence, 1)]), Err(PlanError::ForeignSequence)));
    assert!(matches!(other.truncate(&mut sequence, 0), Err(PlanError::ForeignSequence)));
    assert!(matches!(TablePlan::new([]), Err(PlanError::BadTablePlan { heads: 0 })));
    let error = TablePlan::new([16, 0]).unwrap_err();
    assert_eq!(error, PlanError::BadPageSlots { head: 1, slots: 0 });
    manager.audit([&sequence]).unwrap();
}

#[test]
fn admission_keeps_pages_for_those_that_run() {
    let manager = BlockManager::new(10).unwrap();
    assert_eq!(manager.admission(10, 0), Admission::Now);
    assert_eq!(manager.admission(10, 2), Admission::Later { missing: 2, enough_after: None });
    let _running = sequence_of(&manager, 8);
    assert_eq!(manager.admission(4, 2), Admission::Now);
    assert_eq!(manager.admission(6, 2), Admission::Later { missing: 2, enough_after: None });
    assert_eq!(manager.admission(11, 0), Admission::Never { needed: 11, total: 10 });
}
