//! The pool's fence and generations, and what an audit finds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::plan::{audit::audit, *};

fn sequence_of(manager: &BlockManager, tokens: usize) -> Sequence {
    let mut sequence = manager.sequence(TablePlan::new([4, 4]).unwrap());
    manager.reserve([(&mut sequence, tokens)]).unwrap().commit();
    sequence
}

fn taken(pool: &mut PagePool, count: usize) -> Vec<Page> {
    let mut pages = Vec::new();
    pool.take(count, &mut pages).unwrap();
    pages
}

/// Pages wait for the step that freed them, not for an older one.
#[test]
fn each_page_waits_for_the_step_that_freed_it() {
    let mut pool = PagePool::new(6).unwrap();
    let pages = taken(&mut pool, 6);
    pool.give(&pages[..2]).unwrap();
    let first = pool.end_step();
    pool.give(&pages[2..5]).unwrap();
    assert_eq!(pool.enough_after(2), Some(first));
    assert_eq!(pool.enough_after(3), Some(StepId(1)));
    assert_eq!(pool.enough_after(6), None);
    let second = pool.end_step();
    let mut freed = Vec::new();
    pool.retire(first, |page| freed.push(page));
    assert_eq!((pool.stats().free, pool.stats().fenced), (2, 3));
    freed.sort_unstable();
    assert_eq!(freed, [pages[0].id, pages[1].id]);
    let refused = pool.take(6, &mut Vec::new()).unwrap_err();
    let message = "6 pages needed, 2 free, 3 fenced: not enough even once they retire";
    assert_eq!(refused.to_string(), message);
    pool.retire(second, |_| ());
    assert_eq!((pool.stats().free, pool.stats().fenced), (5, 0));
    let refused = pool.take(6, &mut Vec::new()).unwrap_err();
    assert_eq!(refused.to_string(), "6 pages needed, 5 free");
}

/// A claim is on one life of its page, also where the page is held again.
#[test]
fn a_claim_from_an_earlier_life_of_a_held_page_is_stale() {
    let mut pool = PagePool::new(1).unwrap();
    let old = taken(&mut pool, 1);
    pool.give(&old).unwrap();
    let step = pool.end_step();
    pool.retire(step, |_| ());
    let new = taken(&mut pool, 1);
    assert_eq!(old[0].id, new[0].id);
    let stale = PoolError::Stale { page: old[0], current: 1 };
    assert_eq!(pool.give(&old), Err(stale.clone()));
    assert_eq!(pool.share(&old), Err(stale.clone()));
    assert_eq!(pool.references(old[0]), Err(stale));
    assert_eq!(pool.references(new[0]), Ok(1));
}

#[test]
fn a_panic_of_who_is_told_loses_no_page() {
    let mut pool = PagePool::new(6).unwrap();
    let pages = taken(&mut pool, 6);
    pool.give(&pages[..2]).unwrap();
    pool.end_step();
    pool.give(&pages[2..]).unwrap();
    let step = pool.end_step();
    let told = AssertUnwindSafe(|| pool.retire(step, |page| assert!(page != pages[3].id)));
    assert!(catch_unwind(told).is_err());
    assert_eq!((pool.stats().free, pool.stats().held, pool.stats().fenced), (6, 0, 0));
    let mut ids: Vec<u32> = taken(&mut pool, 6).iter().map(|page| page.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
}

/// What is wrong with the list is not blamed on the planner.
#[test]
fn an_audit_says_what_is_wrong_with_the_list() {
    let manager = BlockManager::new(20).unwrap();
    let other = BlockManager::new(20).unwrap();
    let (a, b, foreign) =
        (sequence_of(&manager, 1), sequence_of(&manager, 5), sequence_of(&other, 1));
    let listed = |index, problem| Err(AuditError::Listed { index, problem });
    assert_eq!(manager.audit([]), Err(AuditError::Unlisted { listed: 0, live: 2 }));
    assert_eq!(manager.audit([&b]), Err(AuditError::Unlisted { listed: 1, live: 2 }));
    assert_eq!(manager.audit([&a, &foreign]), listed(1, PlanError::ForeignSequence));
    assert_eq!(manager.audit([&a, &b, &a]), listed(2, PlanError::ListedTwice));
    let audit = manager.audit([&a, &b]).unwrap();
    assert_eq!((audit.sequences, audit.references), (2, 6));
    drop(b);
    manager.audit([&a]).unwrap();
}

/// A reference more than entries in tables, as a leak would leave it.
#[test]
fn an_audit_finds_a_page_that_no_table_names() {
    let manager = BlockManager::new(8).unwrap();
    let sequence = sequence_of(&manager, 5);
    let page = sequence.tables.page(1, 0);
    manager.with_pool(|pool| pool.share(&[page])).unwrap();
    let lost = Defect::References { page: page.id, references: 2, entries: 1 };
    assert_eq!(manager.audit([&sequence]), Err(AuditError::Defect(lost)));
    manager.with_pool(|pool| pool.give(&[page])).unwrap();
    manager.audit([&sequence]).unwrap();
    let leaked = manager.with_pool(|pool| taken(pool, 1))[0].id;
    let lost = Defect::References { page: leaked, references: 1, entries: 0 };
    assert_eq!(manager.audit([&sequence]), Err(AuditError::Defect(lost)));
}

/// A page in two lists of the pool, in none, or twice in one.
#[test]
fn an_audit_finds_a_page_in_the_wrong_list() {
    let manager = BlockManager::new(8).unwrap();
    let sequence = sequence_of(&manager, 5);
    drop(sequence_of(&manager, 1));
    let (survey, stats) = manager.with_pool(|pool| (pool.survey(), pool.stats()));
    audit(&survey, stats, &[&sequence]).unwrap();
    let held = sequence.tables.page(0, 0).id;
    let fenced = survey.iter().position(|page| page.fenced == 1).unwrap() as u32;
    let free = survey.iter().position(|page| page.free == 1).unwrap() as u32;
    let state = |page, references, free, fenced| Defect::State { page, references, free, fenced };
    for (page, free, fenced, found) in [
        (held, 1, 0, state(held, 1, 1, 0)),
        (held, 0, 1, state(held, 1, 0, 1)),
        (free, 2, 0, state(free, 0, 2, 0)),
        (free, 0, 0, state(free, 0, 0, 0)),
        (fenced, 1, 1, state(fenced, 0, 1, 1)),
        (fenced, 0, 2, state(fenced, 0, 0, 2)),
    ] {
        let mut survey = survey.clone();
        (survey[page as usize].free, survey[page as usize].fenced) = (free, fenced);
        assert_eq!(audit(&survey, stats, &[&sequence]), Err(found));
    }
}

#[test]
fn an_audit_finds_a_claim_from_an_earlier_life() {
    let manager = BlockManager::new(8).unwrap();
    let mut sequence = sequence_of(&manager, 5);
    let page = sequence.tables.page(0, 1);
    let old = Page { generation: page.generation.wrapping_sub(1), ..page };
    sequence.tables.replace(0, 1, old);
    assert_eq!(manager.audit([&sequence]), Err(AuditError::Defect(Defect::Stale(page.id))));
    sequence.tables.replace(0, 1, page);
    manager.audit([&sequence]).unwrap();
}

/// Pages, slots and tokens that do not fit together.
#[test]
fn an_audit_finds_a_table_that_does_not_fit() {
    let manager = BlockManager::new(8).unwrap();
    let mut sequence = sequence_of(&manager, 5);
    let wrong = |sequence: &Sequence, slots, pages, positions| {
        let table = Defect::Table { head: 1, slots, pages, positions, tokens: sequence.tokens() };
        assert_eq!(manager.audit([sequence]), Err(AuditError::Defect(table)));
    };
    // More slots, or fewer, than its pages are for; more tokens lost than there were.
    for (lost, slots) in [(1, 4), (6, 0)] {
        sequence.heads[1].lost = lost;
        wrong(&sequence, slots, 2, 0);
    }
    sequence.heads[1].lost = 0;
    // More positions than slots.
    sequence.heads[1].listed = (0..6).collect();
    wrong(&sequence, 5, 2, 6);
    sequence.heads[1].listed = Box::default();
    let mut cut = Vec::new();
    sequence.tables.truncate(1, 1, &mut cut);
    wrong(&sequence, 5, 1, 0);
    sequence.tables.extend(1, 1, &mut cut.iter().copied());
    manager.audit([&sequence]).unwrap();
}
