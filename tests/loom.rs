//! Every interleaving of the planner's shared state, explored by loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --no-default-features --test loom`
#![cfg(loom)]

use headwise::plan::{BlockManager, TablePlan};
use loom::{sync::Arc, thread};

fn plan() -> TablePlan {
    TablePlan::new([2, 2]).unwrap()
}

#[test]
fn two_threads_never_get_the_same_page() {
    loom::model(|| {
        let manager = Arc::new(BlockManager::new(4).unwrap());
        let other = {
            let manager = Arc::clone(&manager);
            thread::spawn(move || {
                let mut sequence = manager.sequence(plan());
                manager.reserve([(&mut sequence, 2)]).unwrap().commit();
                sequence
            })
        };
        let mut mine = manager.sequence(plan());
        manager.reserve([(&mut mine, 2)]).unwrap().commit();
        let theirs = other.join().unwrap();
        let audit = manager.audit([&mine, &theirs]).unwrap();
        assert_eq!((audit.pool.held, audit.pool.shared), (4, 0));
    });
}

#[test]
fn one_of_two_steps_wins_the_last_pages_and_the_loser_changes_nothing() {
    loom::model(|| {
        let manager = Arc::new(BlockManager::new(3).unwrap());
        let other = {
            let manager = Arc::clone(&manager);
            thread::spawn(move || {
                let mut sequence = manager.sequence(plan());
                let won = manager.reserve([(&mut sequence, 1)]).map(|step| step.commit()).is_ok();
                (sequence, won)
            })
        };
        let mut mine = manager.sequence(plan());
        let won = manager.reserve([(&mut mine, 2)]).map(|step| step.commit()).is_ok();
        let (theirs, other_won) = other.join().unwrap();
        assert!(won != other_won);
        let audit = manager.audit([&mine, &theirs]).unwrap();
        assert_eq!((audit.pool.free, audit.pool.held), (1, 2));
    });
}

#[test]
fn a_fork_that_appends_and_an_original_that_leaves_agree_on_every_page() {
    loom::model(|| {
        let manager = Arc::new(BlockManager::new(6).unwrap());
        let mut original = manager.sequence(plan());
        manager.reserve([(&mut original, 1)]).unwrap().commit();
        let mut fork = manager.fork(&original).unwrap();
        let other = thread::spawn(move || drop(original));
        // Whether the tail is still shared depends on who was first; either way it is ours after.
        manager.reserve([(&mut fork, 1)]).unwrap().commit();
        other.join().unwrap();
        let audit = manager.audit([&fork]).unwrap();
        assert_eq!((audit.pool.held, audit.pool.shared), (2, 0));
    });
}

#[test]
fn a_page_freed_in_a_step_is_not_taken_before_the_step_retires() {
    loom::model(|| {
        let manager = Arc::new(BlockManager::new(2).unwrap());
        let mut sequence = manager.sequence(plan());
        manager.reserve([(&mut sequence, 1)]).unwrap().commit();
        drop(sequence);
        let ended = manager.end_step();
        let other = {
            let manager = Arc::clone(&manager);
            thread::spawn(move || manager.retire(ended))
        };
        let mut next = manager.sequence(plan());
        let granted = manager.reserve([(&mut next, 1)]).map(|step| step.commit()).is_ok();
        other.join().unwrap();
        let stats = manager.stats();
        assert_eq!((stats.held, stats.free), if granted { (2, 0) } else { (0, 2) });
        manager.audit([&next]).unwrap();
    });
}
