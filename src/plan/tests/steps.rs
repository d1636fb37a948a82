//! What steps take, share and tell, against plain computations and case by case.

use super::bytes::SLOTS;
use crate::{base::Positions, plan::*};

/// Growth and copies of a step of `members`, from the tables of all sequences alone.
pub(super) fn naive_needs(all: &[&Sequence], members: &[(&Sequence, usize)]) -> (usize, usize) {
    let mut growth = 0;
    // Of the partial pages that members append to: how many do.
    let mut appended = std::collections::BTreeMap::<u32, usize>::new();
    for &(sequence, tokens) in members {
        for (table, slots) in sequence.heads().zip(sequence.plan().slots()) {
            growth += (table.slots + tokens).div_ceil(slots) - table.pages.len();
            if tokens > 0 && table.slots % slots > 0 {
                *appended.entry(table.pages[table.pages.len() - 1]).or_default() += 1;
            }
        }
    }
    let copies = appended.into_iter().map(|(page, writers)| {
        let entries = all.iter().flat_map(|sequence| sequence.heads());
        let holders = entries.filter(|table| table.pages.contains(&page)).count();
        // The last holder writes in place.
        writers.min(holders - 1)
    });
    (growth, copies.sum())
}

/// Compares slot mappings, of all heads and of some, with a search of the tables.
pub(super) fn check_mapping(step: &Step<'_>) {
    let heads = step.sequences().map(|(sequence, _)| sequence.plan().heads()).min().unwrap_or(0);
    for heads in [0..heads, heads / 2..heads, 0..0] {
        let mut naive = Vec::new();
        for (sequence, tokens) in step.sequences() {
            for token in (0..tokens).rev() {
                for head in heads.clone() {
                    let (table, slots) =
                        (sequence.head(head), sequence.plan().slots_per_page(head));
                    let slot = table.slots - 1 - token;
                    let page = i64::from(table.pages[slot / slots]);
                    naive.push(page * slots as i64 + (slot % slots) as i64);
                }
            }
        }
        let mut mapping = vec![-1; naive.len()];
        step.slot_mapping(heads.clone(), &mut mapping).unwrap();
        assert_eq!(mapping, naive, "heads {heads:?}");
        let expected = naive.len();
        mapping.push(-1);
        let refused = step.slot_mapping(heads, &mut mapping);
        assert_eq!(refused, Err(PlanError::MappingLength { got: expected + 1, expected }));
    }
}

impl TablePlan {
    fn slots(&self) -> impl Iterator<Item = usize> {
        (0..self.heads()).map(|head| self.slots_per_page(head))
    }
}

fn grown(manager: &BlockManager, slots: &[usize], tokens: usize) -> Sequence {
    let plan = TablePlan::new(slots.iter().copied()).unwrap();
    let mut sequence = manager.sequence(plan);
    append(manager, &mut sequence, tokens);
    sequence
}

fn append(manager: &BlockManager, sequence: &mut Sequence, tokens: usize) {
    manager.reserve([(sequence, tokens)]).unwrap().commit();
}

/// Two forks that append together need one copy between them, as they do one after the other.
#[test]
fn the_last_sharer_writes_in_place_within_a_step() {
    for together in [true, false] {
        let manager = BlockManager::new(6).unwrap();
        let mut original = grown(&manager, &[4, 4], 6);
        let mut fork = manager.fork(&original).unwrap();
        if together {
            let step = manager.reserve([(&mut original, 1), (&mut fork, 1)]).unwrap();
            assert_eq!((step.copies().len(), step.pages_taken()), (2, 2));
            step.commit();
        } else {
            append(&manager, &mut original, 1);
            append(&manager, &mut fork, 1);
        }
        assert_eq!((manager.stats().free, manager.stats().shared), (0, 2));
        for head in 0..2 {
            assert_eq!(original.head(head).pages[0], fork.head(head).pages[0]);
            assert_ne!(original.head(head).pages[1], fork.head(head).pages[1]);
        }
        manager.audit([&original, &fork]).unwrap();
    }
}

/// The member that writes in place is the one with the most slots: a roll-back gives the others a page
/// whose slots are as they were.
#[test]
fn who_has_most_slots_writes_in_place() {
    let manager = BlockManager::new(8).unwrap();
    let mut long = grown(&manager, &[4], 7);
    let mut short = manager.fork(&long).unwrap();
    manager.truncate(&mut short, 5).unwrap().begin_moves().commit();
    let tail = long.head(0).pages[1];
    for short_first in [true, false] {
        let members = if short_first {
            [(&mut short, 1), (&mut long, 1)]
        } else {
            [(&mut long, 1), (&mut short, 1)]
        };
        let step = manager.reserve(members).unwrap();
        let tails: Vec<(usize, u32)> =
            step.sequences().map(|(s, _)| (s.tokens(), s.head(0).pages[1])).collect();
        assert!(tails.contains(&(8, tail)), "{tails:?}");
        assert_eq!(step.copies().len(), 1);
    }
    assert_eq!((short.head(0).pages[1], long.head(0).pages[1]), (tail, tail));
}

/// A holder that does not append still reads the page, so all who append copy it.
#[test]
fn nobody_writes_what_an_idle_holder_reads() {
    let manager = BlockManager::new(12).unwrap();
    let mut a = grown(&manager, &[4], 6);
    let (mut b, mut idle) = (manager.fork(&a).unwrap(), manager.fork(&a).unwrap());
    let needs = manager.needs([(&a, 1), (&b, 1), (&idle, 0)]).unwrap();
    assert_eq!((needs.growth, needs.copies), (0, 2));
    let step = manager.reserve([(&mut a, 1), (&mut b, 1), (&mut idle, 0)]).unwrap();
    assert_eq!(step.copies().len(), 2);
    step.commit();
    assert_eq!(manager.stats().shared, 1);
    // A full page is read, too, by one that appends behind it.
    let mut longer = manager.fork(&idle).unwrap();
    append(&manager, &mut longer, 2);
    let mut behind = manager.fork(&longer).unwrap();
    manager.truncate(&mut behind, 7).unwrap().begin_moves().commit();
    let step = manager.reserve([(&mut behind, 1), (&mut longer, 1)]).unwrap();
    assert_eq!((step.copies().len(), step.pages_taken()), (1, 2));
    step.commit();
    manager.audit([&a, &b, &idle, &longer, &behind]).unwrap();
}

#[test]
fn members_without_tokens_take_nothing() {
    let manager = BlockManager::new(4).unwrap();
    let mut original = grown(&manager, &[4, 4], 6);
    let fork = manager.fork(&original).unwrap();
    assert_eq!(original.pages_needed(0), 0);
    assert_eq!(manager.needs([(&original, 0)]).unwrap().pages(), 0);
    let step = manager.reserve([(&mut original, 0)]).unwrap();
    assert_eq!((step.copies().len(), step.pages_taken(), step.entries().count()), (0, 0, 0));
    step.commit();
    assert_eq!(original.head(0).pages, fork.head(0).pages);
    // Its pages are still shared: the next step says so.
    assert_eq!((original.pages_needed(1), fork.pages_needed(1)), (2, 2));
}

/// What is asked, forecast and told in errors is what a step takes.
#[test]
fn copies_of_shared_pages_are_in_every_forecast() {
    let manager = BlockManager::new(520).unwrap();
    let mut original = grown(&manager, &[16; 256], 20);
    let fork = manager.fork(&original).unwrap();
    assert_eq!(original.pages_needed(1), 256);
    let takes = [256, 0].map(|takes| StepForecast { takes, gives: 0 });
    assert_eq!(BlockManager::forecast([&original], 2), takes);
    assert_eq!(BlockManager::forecast([&original, &fork], 2), takes);
    let needs = manager.needs([(&original, 1)]).unwrap();
    let expected = StepNeeds {
        growth: 0,
        copies: 256,
        admission: Admission::Later { missing: 248, enough_after: None },
    };
    assert_eq!(needs, expected);
    let error = manager.reserve([(&mut original, 1)]).unwrap_err();
    assert_eq!(
        error,
        PoolError::OutOfPages { needed: 256, free: 8, fenced: 0, enough_after: None }.into()
    );
    let alone = manager.needs([(&original, 1), (&fork, 1)]).unwrap();
    assert_eq!((alone.growth, alone.copies), (0, 256));
    drop(fork);
    assert_eq!((original.pages_needed(1), original.pages_needed(13)), (0, 256));
    append(&manager, &mut original, 1);
}

/// Only sequences that may hold shared tails are looked at: who never forked is not, nor who has
/// appended since.
#[test]
fn sharing_is_known_without_asking() {
    let manager = BlockManager::new(100).unwrap();
    let mut alone = grown(&manager, &[4, 4], 6);
    let mut original = grown(&manager, &[4, 4], 6);
    let mut fork = manager.fork(&original).unwrap();
    let grandchild = manager.fork(&fork).unwrap();
    let known = |sequences: [&Sequence; 4]| sequences.map(|s| s.sharing.tails());
    assert_eq!(known([&alone, &original, &fork, &grandchild]), [false, true, true, true]);

    drop(manager.reserve([(&mut alone, 1), (&mut original, 1), (&mut fork, 1)]).unwrap());
    assert_eq!(known([&alone, &original, &fork, &grandchild]), [false, true, true, true]);
    let step = manager.reserve([(&mut alone, 1), (&mut original, 1), (&mut fork, 0)]).unwrap();
    step.commit();
    assert_eq!(known([&alone, &original, &fork, &grandchild]), [false, false, true, true]);

    // A full page that others hold may become the last one.
    manager.truncate(&mut original, 3).unwrap().begin_moves().commit();
    manager.truncate(&mut alone, 3).unwrap().begin_moves().commit();
    assert_eq!(known([&alone, &original, &fork, &grandchild]), [false, true, true, true]);
    let step = manager.reserve([(&mut original, 1)]).unwrap();
    assert_eq!(step.copies().len(), 2);
    step.commit();

    // The last sharer is gone: the next step finds out, and those after it need not ask.
    drop(grandchild);
    let step = manager.reserve([(&mut fork, 1)]).unwrap();
    assert!(step.copies().is_empty());
    step.commit();
    assert_eq!(known([&alone, &original, &fork, &fork]), [false; 4]);
}

/// A fork of a member waits until its step is closed; it then holds what the member holds.
#[test]
fn a_fork_has_what_its_source_committed() {
    let manager = BlockManager::new(20).unwrap();
    let mut original = grown(&manager, &[4, 4], 5);
    let step = manager.reserve([(&mut original, 1)]).unwrap();
    let refused = manager.fork(step.sequences().next().unwrap().0);
    assert_eq!(refused.unwrap_err(), PlanError::OpenGuard);
    step.commit();
    let fork = manager.fork(&original).unwrap();
    let step = manager.reserve([(&mut original, 1)]).unwrap();
    assert_eq!(step.copies().len(), 2);
    step.commit();
    assert_ne!(original.head(0).pages[1], fork.head(0).pages[1]);
    manager.audit([&original, &fork]).unwrap();
}

/// A step that needs no page does not ask for one, not even of a pool that has none left.
#[test]
fn a_full_pool_grants_what_fits_into_held_pages() {
    let manager = BlockManager::new(2).unwrap();
    let mut sequence = grown(&manager, &[4, 4], 1);
    for _ in 0..3 {
        assert_eq!(manager.needs([(&sequence, 1)]).unwrap().admission, Admission::Now);
        append(&manager, &mut sequence, 1);
    }
    let needs = manager.needs([(&sequence, 1)]).unwrap();
    assert_eq!(needs.admission, Admission::Never { needed: 4, total: 2 });
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    let manager = BlockManager::new(20).unwrap();
    let mut sequence = grown(&manager, &[4, 2], 3);
    let twice = manager.needs([(&sequence, 1), (&sequence, 1)]);
    assert_eq!(twice, Err(PlanError::ListedTwice));
    let other = BlockManager::new(20).unwrap();
    assert_eq!(other.needs([(&sequence, 1)]), Err(PlanError::ForeignSequence));
    let too_long = manager.needs([(&sequence, u32::MAX as usize)]);
    assert_eq!(too_long, Err(PlanError::TooLong(u32::MAX as usize + 3)));
    let step = manager.reserve([(&mut sequence, 1)]).unwrap();
    let refused = step.slot_mapping(0..3, &mut [0; 3]);
    assert_eq!(refused, Err(PlanError::NoSuchHead { head: 2, heads: 2 }));
}

/// Tables give memory back when evictions or truncations leave them mostly empty.
#[test]
fn tables_shrink() {
    let manager = BlockManager::new(4000).unwrap();
    let mut sequence = grown(&manager, &[1, 1, 1], 1000);
    let full = sequence.metadata_bytes();
    // A quarter of the pages: still worth keeping the room.
    manager.truncate(&mut sequence, 400).unwrap().begin_moves().commit();
    assert_eq!(sequence.metadata_bytes(), full);
    manager.truncate(&mut sequence, 10).unwrap().begin_moves().commit();
    assert!(sequence.metadata_bytes() < full / 20, "{}", sequence.metadata_bytes());
    append(&manager, &mut sequence, 5);
    manager.audit([&sequence]).unwrap();
}

/// Positions after the last eviction are a run: they take no memory, and no move when they go again.
#[test]
fn tokens_after_an_eviction_are_not_listed() {
    let manager = BlockManager::new(400).unwrap();
    let mut sequence = grown(&manager, &SLOTS, 12);
    let moves = vec![crate::base::SlotMove { from: 11, to: 5 }];
    let head = HeadRewrite { head: 1, slots_after: 8, moves };
    manager.rewrite(&mut sequence, vec![head]).unwrap().begin_moves().commit();
    let evicted = sequence.metadata_bytes();
    append(&manager, &mut sequence, 3);
    assert_eq!(sequence.metadata_bytes(), evicted);
    let table = sequence.head(1);
    let list = &[0, 1, 2, 3, 4, 11, 6, 7][..];
    assert_eq!(table.positions, Positions::Appended { list, run: 12 });
    assert_eq!((table.slots, table.position(5), table.position(10)), (11, 11, 14));

    let moving = manager.truncate(&mut sequence, 13).unwrap().begin_moves();
    assert!(moving.passes().flat_map(|pass| pass.heads()).all(|head| head.moves().is_empty()));
    moving.commit();
    assert_eq!(sequence.head(1).positions, Positions::Appended { list, run: 12 });
    assert_eq!(sequence.head(1).slots, 9);
    // Further back there is a hole at token 5, and before it nothing was ever evicted.
    manager.truncate(&mut sequence, 6).unwrap().begin_moves().commit();
    let list = &[0, 1, 2, 3, 4][..];
    assert_eq!(sequence.head(1).positions, Positions::Appended { list, run: 6 });
    manager.truncate(&mut sequence, 5).unwrap().begin_moves().commit();
    assert_eq!(sequence.head(1).positions, Positions::Identity);
    manager.audit([&sequence]).unwrap();
}
