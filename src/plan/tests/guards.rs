//! Guards that are forgotten, given up, or asked about while they are open.

use std::{
    mem::forget,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{base::SlotMove, plan::*};

/// A prompt of six tokens in pages of four, and a fork of it.
fn forked(manager: &BlockManager) -> (Sequence, Sequence) {
    let mut original = manager.sequence(TablePlan::new([4, 4]).unwrap());
    manager.reserve([(&mut original, 6)]).unwrap().commit();
    let fork = manager.fork(&original).unwrap();
    (original, fork)
}

/// Head 0 loses its first slot, which a shared page holds.
fn eviction() -> Vec<HeadRewrite> {
    vec![HeadRewrite { head: 0, slots_after: 5, moves: vec![SlotMove { from: 5, to: 0 }] }]
}

fn tables(sequence: &Sequence) -> Vec<(Vec<u32>, Vec<u32>)> {
    sequence.heads().map(|t| (t.pages.to_vec(), t.positions.to_vec(t.slots))).collect()
}

/// Whatever comes after a forgotten step finds the sequence as it was before.
#[test]
fn a_forgotten_step_is_taken_back_by_the_next_verb() {
    let verbs: [fn(&BlockManager, &mut Sequence); 6] = [
        |manager, sequence| drop(manager.reserve([(sequence, 1)]).unwrap()),
        |manager, sequence| forget(manager.reserve([(sequence, 2)]).unwrap()),
        |manager, sequence| drop(manager.rewrite(sequence, eviction()).unwrap()),
        |manager, sequence| drop(manager.rewrite_sparing(sequence, eviction()).unwrap()),
        |manager, sequence| drop(manager.truncate(sequence, 6).unwrap()),
        |_, sequence| sequence.recover().unwrap(),
    ];
    for verb in verbs {
        let manager = BlockManager::new(40).unwrap();
        let (original, mut fork) = forked(&manager);
        let before = tables(&fork);
        let step = manager.reserve([(&mut fork, 1)]).unwrap();
        assert_eq!(step.copies().len(), 2);
        forget(step);
        verb(&manager, &mut fork);
        fork.recover().unwrap();
        assert_eq!((fork.tokens(), tables(&fork)), (6, before));
        assert_eq!(manager.stats().held, 4);
        manager.audit([&original, &fork]).unwrap();
    }
}

/// The tokens of an open step are not there yet: nobody may share or count them.
#[test]
fn those_who_only_look_refuse_an_open_sequence() {
    let manager = BlockManager::new(40).unwrap();
    let (original, mut fork) = forked(&manager);
    let listed = |index| AuditError::Listed { index, problem: PlanError::OpenGuard };

    let step = manager.reserve([(&mut fork, 1)]).unwrap();
    let (open, _) = step.sequences().next().unwrap();
    assert_eq!(manager.fork(open).unwrap_err(), PlanError::OpenGuard);
    assert_eq!(manager.audit([&original, open]), Err(listed(1)));
    forget(step);
    assert_eq!(manager.fork(&fork).unwrap_err(), PlanError::OpenGuard);
    assert_eq!(manager.audit([&fork, &original]), Err(listed(0)));

    forget(manager.rewrite(&mut fork, eviction()).unwrap());
    assert_eq!(manager.fork(&fork).unwrap_err(), PlanError::OpenGuard);
    assert_eq!(manager.audit([&fork, &original]), Err(listed(0)));
    fork.recover().unwrap();
    manager.audit([&fork, &original]).unwrap();
}

/// Pages that a guard holds beside the tables are the sequence's, and go with it.
#[test]
fn a_sequence_that_is_dropped_takes_a_forgotten_guards_pages_along() {
    let guards: [fn(&BlockManager, &mut Sequence); 4] = [
        |manager, sequence| forget(manager.reserve([(sequence, 3)]).unwrap()),
        |manager, sequence| forget(manager.rewrite(sequence, eviction()).unwrap()),
        |manager, sequence| forget(manager.rewrite(sequence, eviction()).unwrap().begin_moves()),
        |manager, sequence| drop(manager.rewrite(sequence, eviction()).unwrap().begin_moves()),
    ];
    for guard in guards {
        let manager = BlockManager::new(40).unwrap();
        let (original, mut fork) = forked(&manager);
        guard(&manager, &mut fork);
        drop(fork);
        let audit = manager.audit([&original]).unwrap();
        assert_eq!((audit.pool.held, audit.pool.shared), (4, 0));
        drop(original);
        manager.retire(manager.end_step());
        assert_eq!(manager.stats().free, 40);
    }
}

/// A rewrite can be dropped until its moves are handed out, and again where there are none.
#[test]
fn a_rewrite_that_is_given_up_while_slots_move_loses_the_sequence_and_nothing_else() {
    let manager = BlockManager::new(40).unwrap();
    let (original, mut fork) = forked(&manager);
    let before = tables(&fork);
    drop(manager.rewrite(&mut fork, eviction()).unwrap());
    let cut = HeadRewrite { head: 0, slots_after: 4, moves: Vec::new() };
    drop(manager.rewrite(&mut fork, vec![cut]).unwrap().begin_moves());
    assert_eq!(tables(&fork), before);
    manager.audit([&original, &fork]).unwrap();

    drop(manager.rewrite(&mut fork, eviction()).unwrap().begin_moves());
    assert_eq!(manager.truncate(&mut fork, 0).unwrap_err(), PlanError::Torn);
    assert_eq!(manager.fork(&fork).unwrap_err(), PlanError::Torn);
    let lost = AuditError::Listed { index: 1, problem: PlanError::Torn };
    assert_eq!(manager.audit([&original, &fork]), Err(lost));
    assert_eq!(tables(&original), before);
    drop(fork);
    manager.audit([&original]).unwrap();
}

/// A forgotten step of two sequences is taken back one by one, whatever the other does meanwhile.
#[test]
fn members_of_a_forgotten_step_come_back_one_by_one() {
    let manager = BlockManager::new(40).unwrap();
    let (mut original, mut fork) = forked(&manager);
    forget(manager.reserve([(&mut original, 5), (&mut fork, 1)]).unwrap());
    drop(original);
    manager.reserve([(&mut fork, 1)]).unwrap().commit();
    assert_eq!(tables(&fork)[1].1, [0, 1, 2, 3, 4, 5, 6]);
    let audit = manager.audit([&fork]).unwrap();
    assert_eq!((audit.pool.held, audit.pool.shared), (4, 0));
}

#[test]
fn a_panic_in_the_callers_code_changes_nothing() {
    let manager = BlockManager::new(40).unwrap();
    let (mut original, fork) = forked(&manager);
    let before = manager.stats();
    let members = [Some(&mut original), None].into_iter().map(|member| (member.unwrap(), 1));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(manager.reserve(members)))).is_err());
    let list = [Some(&fork), None].into_iter().map(Option::unwrap);
    assert!(catch_unwind(AssertUnwindSafe(|| manager.audit(list))).is_err());
    assert_eq!(manager.stats(), before);
    manager.audit([&original, &fork]).unwrap();
}

#[test]
fn values_follow_a_rewrite_only_if_there_is_one_for_each_slot() {
    let manager = BlockManager::new(40).unwrap();
    let (_original, mut fork) = forked(&manager);
    let moving = manager.rewrite(&mut fork, eviction()).unwrap().begin_moves();
    let head = moving.passes().next().unwrap().heads().next().unwrap();
    let mut short = vec![0u8; 5];
    let error = PlanError::WrongValues { head: 0, got: 5, expected: 6 };
    assert_eq!(head.apply_to(&mut short), Err(error));
    let mut values: Vec<u8> = (0..6).collect();
    head.apply_to(&mut values).unwrap();
    assert_eq!(values, [5, 1, 2, 3, 4]);
    moving.commit();
}
