//! Heads with windows against a list of the positions that they must hold.

use proptest::prelude::*;

use crate::{
    base::{HeadRewrite, Window, compact},
    plan::*,
};

/// Slots per page and windows of the heads: sinks that fill no page, one, and two; a window in one page;
/// none.
const SLOTS: [usize; 6] = [4, 4, 7, 3, 4, 16];

/// The head without one.
const ALL: usize = 4;

fn windows() -> [Option<Window>; 6] {
    let window = |tokens, sinks| Some(Window { tokens, sinks });
    [window(9, 0), window(9, 0), window(12, 5), window(6, 6), None, window(1, 0)]
}

fn plan(margin: usize) -> TablePlan {
    TablePlan::new(SLOTS).unwrap().with_windows(windows(), margin).unwrap()
}

/// Positions that a head of a sequence of `tokens` tokens must hold: those that the next query sees, also
/// after a rollback of up to `margin`.
fn needed(window: Window, tokens: usize, margin: usize) -> Vec<usize> {
    let Window { tokens: seen, sinks } = window;
    let first = tokens.saturating_sub(seen - 1 + margin);
    (0..tokens).filter(|&position| position >= first || position < sinks).collect()
}

/// Every head holds what it must and not a page more; positions, tables and the account agree.
fn check(manager: &BlockManager, sequences: &[&Sequence], margin: usize, floors: &[usize]) {
    for (sequence, &floor) in sequences.iter().zip(floors) {
        for (head, table) in sequence.heads().enumerate() {
            let slots_per_page = SLOTS[head];
            assert_eq!(table.pages.len(), table.slots.div_ceil(slots_per_page));
            let held: Vec<usize> = (0..table.slots).map(|slot| table.position(slot)).collect();
            if let Some(window) = windows()[head] {
                assert!(held.is_sorted(), "head {head}: {held:?}");
                let newest = held.last().map_or(0, |newest| newest + 1);
                assert!(newest == sequence.tokens() || window.tokens == 1, "head {head}");
                for position in needed(window, sequence.tokens(), margin.saturating_sub(floor)) {
                    assert!(held.contains(&position), "head {head} lacks {position}: {held:?}");
                }
                let sinks = window.sinks.next_multiple_of(slots_per_page);
                let most = window.tokens - 1 + margin + sinks + slots_per_page - 1;
                assert!(held.len() <= most, "head {head} keeps {held:?}");
            }
        }
    }
    manager.audit(sequences.iter().copied()).unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Step(usize, usize, bool),
    Truncate(usize, usize),
    Fork(usize),
    Drop(usize),
    Evict(usize, usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0usize..4, 0usize..40, any::<bool>()).prop_map(|(s, n, keep)| Op::Step(s, n, keep)),
        6 => (0usize..4, 0usize..3).prop_map(|(s, n)| Op::Step(s, n, true)),
        4 => (0usize..4, 0usize..30).prop_map(|(s, n)| Op::Truncate(s, n)),
        1 => (0usize..4).prop_map(Op::Fork),
        1 => (0usize..4).prop_map(Op::Drop),
        2 => (0usize..4, 1usize..9).prop_map(|(s, n)| Op::Evict(s, n)),
    ];
    prop::collection::vec(op, 1..60)
}

proptest! {
    #[test]
    fn windows_hold_what_queries_see(ops in ops(), margin in 0usize..12) {
        let manager = BlockManager::new(4000).unwrap();
        let plan = std::sync::Arc::new(plan(margin));
        let mut sequences = vec![manager.sequence(plan.clone()), manager.sequence(plan.clone())];
        // How much of the margin earlier rollbacks used up, until tokens came again.
        let mut used = vec![0usize, 0];
        for op in ops {
            let count = sequences.len();
            match op {
                Op::Step(s, tokens, keep) => {
                    let s = s % count;
                    let before = sequences[s].tokens();
                    let tables: Vec<Vec<u32>> =
                        sequences[s].heads().map(|table| table.pages.to_vec()).collect();
                    let forecast = BlockManager::forecast([&sequences[s]], 1)[0];
                    let step = manager.reserve([(&mut sequences[s], tokens)]).unwrap();
                    // A mirror that applies entries and what leaves has the tables.
                    let mut mirror = tables.clone();
                    for (_, entry) in step.entries() {
                        let table = &mut mirror[entry.head];
                        table.resize(table.len().max(entry.index + 1), u32::MAX);
                        table[entry.index] = entry.page;
                    }
                    let mut gives = 0;
                    for (_, leaving) in step.leaving() {
                        gives += leaving.pages;
                        mirror[leaving.head].drain(leaving.index..leaving.index + leaving.pages);
                    }
                    if tokens == 1 {
                        prop_assert_eq!(forecast.takes, step.pages_taken());
                        prop_assert_eq!(forecast.gives, gives);
                    }
                    if keep {
                        step.commit();
                        used[s] = used[s].saturating_sub(tokens);
                        for (table, mirror) in sequences[s].heads().zip(&mirror) {
                            prop_assert_eq!(table.pages, &mirror[..]);
                        }
                    } else {
                        drop(step);
                        prop_assert_eq!(sequences[s].tokens(), before);
                        for (table, before) in sequences[s].heads().zip(&tables) {
                            prop_assert_eq!(table.pages.len(), before.len());
                        }
                    }
                }
                Op::Truncate(s, back) => {
                    let s = s % count;
                    let (before, to) = (sequences[s].tokens(), sequences[s].tokens().saturating_sub(back));
                    // Whether the next query finds what it sees, head by head.
                    let fine = sequences[s].heads().zip(windows()).all(|(table, window)| {
                        let Some(window) = window else { return true };
                        let held: Vec<usize> =
                            (0..table.slots).map(|slot| table.position(slot)).collect();
                        needed(window, to, 0).iter().all(|position| held.contains(position))
                    });
                    let cut = manager.truncate(&mut sequences[s], to);
                    match cut.map(|rewrite| rewrite.begin_moves().commit()) {
                        Ok(_) => {
                            prop_assert!(fine, "{before} to {to} is let through");
                            used[s] += back;
                        }
                        Err(PlanError::PastMargin { tokens, to: asked, least, .. }) => {
                            prop_assert_eq!((tokens, asked), (before, to));
                            prop_assert!(!fine && back > margin - margin.min(used[s]) && least > to);
                            prop_assert_eq!(sequences[s].tokens(), before);
                        }
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Op::Fork(s) => {
                    if count < 5 {
                        let fork = manager.fork(&sequences[s % count]).unwrap();
                        sequences.push(fork);
                        used.push(used[s % count]);
                    }
                }
                Op::Drop(s) => {
                    if count > 1 {
                        sequences.swap_remove(s % count);
                        used.swap_remove(s % count);
                    }
                }
                // The head that sees all competes, those with windows are what they are.
                Op::Evict(s, part) => {
                    let sequence = &mut sequences[s % count];
                    let slots = sequence.head(ALL).slots;
                    let (slots_after, moves) = compact(slots, |slot| slot % part == 1);
                    let of = |head, moves| HeadRewrite { head, slots_after, moves };
                    let refused = manager.rewrite(sequence, vec![of(0, Vec::new())]).map(drop);
                    let refused = matches!(refused, Err(PlanError::BadRewrite { head: 0, .. }));
                    prop_assert!(refused);
                    let rewrite = manager.rewrite(sequence, vec![of(ALL, moves)]).unwrap();
                    rewrite.begin_moves().commit();
                }
            }
            let all: Vec<&Sequence> = sequences.iter().collect();
            check(&manager, &all, margin, &used);
            let step = manager.end_step();
            manager.retire(step);
        }
        drop(sequences);
        let step = manager.end_step();
        manager.retire(step);
        prop_assert_eq!(manager.stats().free, 4000);
    }

    /// A sequence that grows by chunks never holds more than is forecast for it.
    #[test]
    fn the_peak_is_the_most(chunks in prop::collection::vec(1usize..60, 1..12), margin in 0usize..9) {
        let manager = BlockManager::new(4000).unwrap();
        let plan = std::sync::Arc::new(plan(margin));
        let mut sequence = manager.sequence(plan.clone());
        let (tokens, chunk) = (chunks.iter().sum(), chunks.iter().copied().max().unwrap());
        let peak = plan.peak_pages(tokens, chunk);
        prop_assert!(peak <= plan.pages_for(tokens));
        for tokens in chunks {
            let step = manager.reserve([(&mut sequence, tokens)]).unwrap();
            let held: usize = step.sequences().map(|(sequence, _)| sequence.pages()).sum();
            prop_assert!(held <= peak, "{held} of {peak}");
            step.commit();
        }
        let slots: Vec<usize> = sequence.heads().map(|table| table.slots).collect();
        let said: Vec<usize> =
            (0..SLOTS.len()).map(|head| plan.unevicted_slots(head, tokens)).collect();
        prop_assert_eq!(slots, said);
    }
}

#[test]
fn windows_that_no_plan_can_have() {
    let plan = || TablePlan::new([4, 4]).unwrap();
    let window = |tokens, sinks| Some(Window { tokens, sinks });
    for (windows, margin) in [
        (vec![window(4, 0)], 0),
        (vec![window(4, 0); 3], 0),
        (vec![None, window(0, 0)], 0),
        (vec![window(3, 4), None], 0),
        (vec![None, window(4, 0)], usize::MAX),
        (vec![None, window(usize::MAX, 0)], 0),
    ] {
        let refused = plan().with_windows(windows.clone(), margin);
        let expected = PlanError::BadWindows { windows: windows.len(), heads: 2, margin };
        assert_eq!(refused, Err(expected));
    }
}
