//! The planner against a model that keeps every token of every head in plain vectors.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    bytes::{Bytes, Held, SLOTS, dies, eviction},
    steps::{check_mapping, naive_needs},
};
use crate::plan::*;

/// A sequence and what it should hold.
struct Modelled {
    sequence: Sequence,
    heads: Held,
    /// Its tables, kept up to date by what steps and rewrites say that they change.
    mirror: Vec<Vec<u32>>,
    /// A guard of it was forgotten.
    open: bool,
}

struct World {
    manager: BlockManager,
    bytes: Bytes,
    live: Vec<Modelled>,
}

/// What becomes of a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Commit,
    Drop,
    Forget,
}

#[derive(Clone, Debug)]
enum Op {
    Start,
    /// Append to some sequences (by index).
    Append {
        to: Vec<(usize, usize)>,
        end: End,
    },
    Fork(usize),
    /// Kill tokens by a hash of `seed` in the heads of a bit mask.
    Evict {
        of: usize,
        seed: u64,
        heads: u8,
        sparing: bool,
        end: End,
        /// Only after the moves are made.
        late: bool,
    },
    Truncate {
        of: usize,
        keep: usize,
    },
    Drop(usize),
    Retire,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let end = || prop_oneof![8 => Just(End::Commit), 1 => Just(End::Drop), 1 => Just(End::Forget)];
    let op = prop_oneof![
        2 => Just(Op::Start),
        6 => (prop::collection::vec((0usize..8, 0usize..12), 1..4), end())
            .prop_map(|(to, end)| Op::Append { to, end }),
        2 => (0usize..8).prop_map(Op::Fork),
        4 => (0usize..8, any::<u64>(), 0u8..32, any::<bool>(), end(), any::<bool>())
            .prop_map(|(of, seed, heads, sparing, end, late)| {
                Op::Evict { of, seed, heads, sparing, end, late }
            }),
        2 => (0usize..8, 0usize..40).prop_map(|(of, keep)| Op::Truncate { of, keep }),
        2 => (0usize..8).prop_map(Op::Drop),
        2 => Just(Op::Retire),
    ];
    prop::collection::vec(op, 1..60)
}

impl World {
    fn new(pages: usize) -> Self {
        let manager = BlockManager::new(pages).unwrap();
        Self { manager, bytes: Bytes::default(), live: Vec::new() }
    }

    /// Which of the live sequences an operation means.
    fn pick(&self, of: usize) -> Option<usize> {
        (!self.live.is_empty()).then(|| of % self.live.len())
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Start => {
                let sequence = self.manager.sequence(TablePlan::new(SLOTS).unwrap());
                let heads = vec![BTreeMap::new(); SLOTS.len()];
                let mirror = vec![Vec::new(); SLOTS.len()];
                self.live.push(Modelled { sequence, heads, mirror, open: false });
            }
            Op::Append { to, end } => self.append(&to, end),
            Op::Fork(of) => {
                let Some(of) = self.pick(of).map(|of| &self.live[of]) else { return };
                match self.manager.fork(&of.sequence) {
                    Ok(sequence) => {
                        let (heads, mirror) = (of.heads.clone(), of.mirror.clone());
                        self.live.push(Modelled { sequence, heads, mirror, open: false });
                    }
                    Err(error) => assert_eq!((error, of.open), (PlanError::OpenGuard, true)),
                }
            }
            Op::Evict { of, seed, heads, sparing, end, late } => {
                let Some(of) = self.pick(of) else { return };
                self.recover(of);
                let rewrites = eviction(&self.live[of].sequence, seed, heads);
                self.rewrite(
                    of,
                    (end, late),
                    |manager, sequence| match sparing {
                        true => manager.rewrite_sparing(sequence, rewrites),
                        false => manager.rewrite(sequence, rewrites),
                    },
                    |head, position| heads >> head & 1 == 0 || !dies(seed, position),
                );
            }
            Op::Truncate { of, keep } => self.truncate(of, keep),
            Op::Drop(of) => {
                if let Some(of) = self.pick(of) {
                    self.live.swap_remove(of);
                }
            }
            Op::Retire => {
                let step = self.manager.end_step();
                self.manager.retire(step);
                assert_eq!(self.manager.stats().fenced, 0);
            }
        }
    }

    /// Takes back what a guard left, if one was forgotten.
    fn recover(&mut self, of: usize) {
        let member = &mut self.live[of];
        assert_eq!(member.sequence.recover(), Ok(()));
        member.open = false;
    }

    fn append(&mut self, to: &[(usize, usize)], end: End) {
        let wanted: BTreeMap<usize, usize> =
            to.iter().filter_map(|&(of, tokens)| Some((self.pick(of)?, tokens))).collect();
        // Taking back what was forgotten frees pages, whatever becomes of the step.
        let settled = wanted.keys().all(|&of| !self.live[of].open);
        let all: Vec<&Sequence> = self.live.iter().map(|m| &m.sequence).collect();
        let asked: Vec<(&Sequence, usize)> =
            wanted.iter().map(|(&i, &tokens)| (all[i], tokens)).collect();
        let needs = self.manager.needs(asked.iter().copied()).ok();
        assert_eq!(needs.is_some(), settled);
        if let (Some(needs), true) = (needs, self.live.iter().all(|member| !member.open)) {
            assert_eq!((needs.growth, needs.copies), naive_needs(&all, &asked));
        }
        if let (Some(needs), [(sequence, tokens)]) = (needs, &asked[..]) {
            assert_eq!(sequence.pages_needed(*tokens), needs.pages());
        }
        let before = self.manager.stats();
        let mut members: Vec<_> = self.live.iter_mut().enumerate().collect();
        members.retain(|(i, _)| wanted.contains_key(i));
        let (mut sequences, mut models) = (Vec::new(), Vec::new());
        for (i, member) in members {
            sequences.push((&mut member.sequence, wanted[&i]));
            member.open = false;
            models.push((&mut member.heads, &mut member.mirror, &mut member.open));
        }
        let step = match self.manager.reserve(sequences) {
            Ok(step) => step,
            Err(error) => {
                match (&error, needs) {
                    (
                        PlanError::Pool(PoolError::OutOfPages {
                            needed, free, enough_after, ..
                        }),
                        Some(needs),
                    ) => {
                        let (missing, enough_after) = (needed - free, *enough_after);
                        assert_eq!(*needed, needs.pages());
                        assert_eq!(needs.admission, Admission::Later { missing, enough_after });
                    }
                    (&PlanError::NeverFits { needed, total }, Some(needs)) => {
                        assert_eq!(needs.admission, Admission::Never { needed, total });
                    }
                    (
                        PlanError::Pool(PoolError::OutOfPages { .. }) | PlanError::NeverFits { .. },
                        _,
                    ) => {}
                    (other, _) => panic!("{other}"),
                }
                assert!(!settled || self.manager.stats() == before);
                return;
            }
        };
        if let Some(needs) = needs {
            assert_eq!(needs.admission, Admission::Now);
            assert_eq!((step.pages_taken(), step.copies().len()), (needs.pages(), needs.copies));
        }
        check_mapping(&step);
        // What a step that fails has written must not be seen by anyone.
        let written = self.bytes.append(&step);
        match end {
            End::Commit => {
                for (member, TableEntry { head, index, page }) in step.entries() {
                    let mirror = &mut models[member].1[head];
                    assert_ne!(mirror.get(index), Some(&page), "nothing changed");
                    mirror.resize(mirror.len().max(index + 1), u32::MAX);
                    mirror[index] = page;
                }
                for ((heads, ..), written) in models.into_iter().zip(written) {
                    heads.iter_mut().zip(written).for_each(|(head, new)| head.extend(new));
                }
                step.commit();
            }
            End::Drop => drop(step),
            End::Forget => {
                models.into_iter().for_each(|(_, _, open)| *open = true);
                std::mem::forget(step);
            }
        }
    }

    fn truncate(&mut self, of: usize, keep: usize) {
        let Some(of) = self.pick(of) else { return };
        self.recover(of);
        let member = &mut self.live[of];
        if keep > member.sequence.tokens() {
            let refused = self.manager.truncate(&mut member.sequence, keep).unwrap_err();
            assert!(matches!(refused, PlanError::TruncateGrows { .. }));
            return;
        }
        self.rewrite(
            of,
            (End::Commit, true),
            |manager, sequence| manager.truncate(sequence, keep),
            |_, position| (position as usize) < keep,
        );
    }

    fn rewrite(
        &mut self,
        of: usize,
        (end, late): (End, bool),
        begin: impl for<'a> FnOnce(&BlockManager, &'a mut Sequence) -> Result<Rewrite<'a>, PlanError>,
        keeps: impl Fn(usize, u32) -> bool,
    ) {
        let before = self.manager.stats();
        let member = &mut self.live[of];
        let rewrite = match begin(&self.manager, &mut member.sequence) {
            Ok(rewrite) => rewrite,
            Err(PlanError::Pool(PoolError::OutOfPages { needed, free, fenced, .. })) => {
                assert_eq!((free, fenced), (before.free, before.fenced));
                assert!(needed > free);
                assert_eq!(self.manager.stats(), before);
                return;
            }
            Err(error) => panic!("{error}"),
        };
        if !late && end != End::Commit {
            if end == End::Forget {
                std::mem::forget(rewrite);
                member.open = true;
            }
            return;
        }
        let moving = rewrite.begin_moves();
        self.bytes.carry_out(&moving);
        let moves = moving.passes().flat_map(|pass| pass.heads()).any(|h| !h.moves().is_empty());
        match end {
            End::Commit => {
                for TableEntry { head, index, page } in moving.entries() {
                    assert_ne!(member.mirror[head][index], page, "nothing changed");
                    member.mirror[head][index] = page;
                }
                for head in moving.passes().flat_map(|pass| pass.heads()) {
                    let pages = head.slots_after().div_ceil(SLOTS[head.head()]);
                    member.mirror[head.head()].truncate(pages);
                }
                moving.commit();
                for (head, model) in member.heads.iter_mut().enumerate() {
                    model.retain(|&position, _| keeps(head, position));
                }
                return;
            }
            End::Drop => drop(moving),
            End::Forget => std::mem::forget(moving),
        }
        if moves {
            self.torn(of);
        } else {
            member.open = end == End::Forget;
        }
    }

    /// Nothing can be done with a torn sequence, and everybody says so.
    fn torn(&mut self, of: usize) {
        let manager = &self.manager;
        let sequence = &mut self.live[of].sequence;
        assert_eq!(sequence.recover(), Err(PlanError::Torn));
        assert_eq!(manager.fork(sequence).unwrap_err(), PlanError::Torn);
        assert_eq!(manager.reserve([(&mut *sequence, 0)]).unwrap_err(), PlanError::Torn);
        assert_eq!(manager.truncate(sequence, 0).unwrap_err(), PlanError::Torn);
        assert_eq!(manager.rewrite(sequence, vec![]).unwrap_err(), PlanError::Torn);
        assert_eq!(manager.rewrite_sparing(sequence, vec![]).unwrap_err(), PlanError::Torn);
        let listed = AuditError::Listed { index: 0, problem: PlanError::Torn };
        assert_eq!(manager.audit([&*sequence]), Err(listed));
        self.live.swap_remove(of);
    }

    /// Every head of every sequence holds exactly the tokens of its model, and every page is accounted
    /// for.
    fn check(&self) {
        for member in self.live.iter().filter(|member| !member.open) {
            assert_eq!(self.bytes.held(&member.sequence), member.heads);
            let tables: Vec<&[u32]> = member.sequence.heads().map(|table| table.pages).collect();
            assert_eq!(tables, member.mirror);
        }
        let audit = self.manager.audit(self.live.iter().map(|m| &m.sequence));
        if let Some(index) = self.live.iter().position(|member| member.open) {
            let problem = PlanError::OpenGuard;
            assert_eq!(audit, Err(AuditError::Listed { index, problem }));
            return;
        }
        let pool = audit.unwrap().pool;
        assert_eq!(pool.free + pool.held + pool.fenced, pool.total);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn tables_hold_what_the_model_holds(ops in ops(), pages in prop_oneof![20usize..80, 80usize..600]) {
        let mut world = World::new(pages);
        for op in ops {
            world.apply(op);
            world.check();
        }
        world.live.clear();
        let step = world.manager.end_step();
        world.manager.retire(step);
        prop_assert_eq!(world.manager.stats().free, pages);
    }

    #[test]
    fn a_forecast_is_what_the_steps_take(
        lengths in prop::collection::vec(0usize..30, 1..4),
        forked in any::<bool>(),
    ) {
        let manager = BlockManager::new(10_000).unwrap();
        let mut sequences: Vec<Sequence> = Vec::new();
        for length in lengths {
            let mut sequence = manager.sequence(TablePlan::new(SLOTS).unwrap());
            manager.reserve([(&mut sequence, length)]).unwrap().commit();
            let head = HeadRewrite { head: 1, slots_after: length / 2, moves: Vec::new() };
            manager.rewrite(&mut sequence, vec![head]).unwrap().begin_moves().commit();
            if forked {
                sequences.push(manager.fork(&sequence).unwrap());
            }
            sequences.push(sequence);
        }
        let forecast = BlockManager::forecast(&sequences, 20);
        for expected in forecast {
            let step = manager.reserve(sequences.iter_mut().map(|s| (s, 1))).unwrap();
            prop_assert_eq!(step.pages_taken(), expected.takes);
            step.commit();
        }
    }
}
