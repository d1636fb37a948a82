//! The planner against a model that keeps every token of every head in plain vectors.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::steps::{check_mapping, naive_needs};
use crate::base::compact;
use crate::plan::*;

/// Slots per page of the heads under test: ragged on purpose.
pub(super) const SLOTS: [usize; 3] = [1, 4, 7];

/// What a store would hold: the tag of the token in each slot of each page.
#[derive(Default)]
struct Bytes(BTreeMap<(u32, usize), u64>);

impl Bytes {
    fn copy(&mut self, copies: &[PageCopy]) {
        for copy in copies {
            for slot in 0..SLOTS[copy.head] {
                match self.0.get(&(copy.from, slot)).copied() {
                    Some(tag) => self.0.insert((copy.to, slot), tag),
                    None => self.0.remove(&(copy.to, slot)),
                };
            }
        }
    }

    fn at(&self, head: usize, table: &HeadTable<'_>, slot: usize) -> (u32, usize) {
        (table.pages[slot / SLOTS[head]], slot % SLOTS[head])
    }
}

/// A sequence and what each head of it should hold: token position → tag.
struct Modelled {
    sequence: Sequence,
    heads: Vec<BTreeMap<u32, u64>>,
    /// Its tables, kept up to date by what steps and rewrites say that they change.
    mirror: Vec<Vec<u32>>,
}

struct World {
    manager: BlockManager,
    bytes: Bytes,
    live: Vec<Modelled>,
    next_tag: u64,
}

#[derive(Clone, Debug)]
enum Op {
    Start,
    /// Append to some sequences (by index) and commit or roll back.
    Append {
        to: Vec<(usize, usize)>,
        commit: bool,
    },
    Fork(usize),
    /// Kill tokens by a hash of `seed` in the heads of a bit mask.
    Evict {
        of: usize,
        seed: u64,
        heads: u8,
        commit: bool,
    },
    Truncate {
        of: usize,
        keep: usize,
    },
    Drop(usize),
    Retire,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        2 => Just(Op::Start),
        6 => (prop::collection::vec((0usize..8, 0usize..12), 1..4), prop::bool::weighted(0.8))
            .prop_map(|(to, commit)| Op::Append { to, commit }),
        2 => (0usize..8).prop_map(Op::Fork),
        4 => (0usize..8, any::<u64>(), 0u8..8, prop::bool::weighted(0.8))
            .prop_map(|(of, seed, heads, commit)| Op::Evict { of, seed, heads, commit }),
        2 => (0usize..8, 0usize..40).prop_map(|(of, keep)| Op::Truncate { of, keep }),
        2 => (0usize..8).prop_map(Op::Drop),
        2 => Just(Op::Retire),
    ];
    prop::collection::vec(op, 1..60)
}

impl World {
    fn new(pages: usize) -> Self {
        let manager = BlockManager::new(pages).unwrap();
        Self { manager, bytes: Bytes::default(), live: Vec::new(), next_tag: 1 }
    }

    /// Which of the live sequences an operation means.
    fn pick(&self, of: usize) -> Option<usize> {
        (!self.live.is_empty()).then(|| of % self.live.len())
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Start => {
                let sequence = self.manager.sequence(TablePlan::new(SLOTS).unwrap());
                let (heads, mirror) = (vec![BTreeMap::new(); 3], vec![Vec::new(); 3]);
                self.live.push(Modelled { sequence, heads, mirror });
            }
            Op::Append { to, commit } => self.append(&to, commit),
            Op::Fork(of) => {
                let Some(of) = self.pick(of).map(|of| &self.live[of]) else { return };
                let sequence = self.manager.fork(&of.sequence).unwrap();
                let (heads, mirror) = (of.heads.clone(), of.mirror.clone());
                self.live.push(Modelled { sequence, heads, mirror });
            }
            Op::Evict { of, seed, heads, commit } => self.evict(of, seed, heads, commit),
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

    fn append(&mut self, to: &[(usize, usize)], commit: bool) {
        let before = self.manager.stats();
        let wanted: BTreeMap<usize, usize> =
            to.iter().filter_map(|&(of, tokens)| Some((self.pick(of)?, tokens))).collect();
        let all: Vec<&Sequence> = self.live.iter().map(|m| &m.sequence).collect();
        let asked: Vec<(&Sequence, usize)> =
            wanted.iter().map(|(&i, &tokens)| (all[i], tokens)).collect();
        let needs = self.manager.needs(asked.iter().copied()).unwrap();
        assert_eq!((needs.growth, needs.copies), naive_needs(&all, &asked));
        if let [(sequence, tokens)] = asked[..] {
            assert_eq!(sequence.pages_needed(tokens), needs.pages());
        }
        let mut members: Vec<_> = self.live.iter_mut().enumerate().collect();
        members.retain(|(i, _)| wanted.contains_key(i));
        let (mut sequences, mut models) = (Vec::new(), Vec::new());
        for (i, member) in members {
            sequences.push((&mut member.sequence, wanted[&i]));
            models.push((&mut member.heads, &mut member.mirror));
        }
        let step = match self.manager.reserve(sequences) {
            Ok(step) => step,
            Err(error) => {
                match error {
                    PlanError::Pool(PoolError::OutOfPages { needed, free, .. }) => {
                        let missing = needed - free;
                        assert_eq!(needed, needs.pages());
                        assert_eq!(needs.admission, Admission::Later { missing });
                    }
                    PlanError::NeverFits { needed, total } => {
                        assert_eq!(needs.admission, Admission::Never { needed, total });
                    }
                    other => panic!("{other}"),
                }
                assert_eq!(self.manager.stats(), before);
                return;
            }
        };
        assert_eq!(needs.admission, Admission::Now);
        assert_eq!((step.pages_taken(), step.copies().len()), (needs.pages(), needs.copies));
        check_mapping(&step);
        self.bytes.copy(step.copies());
        if !commit {
            // What a step that fails has written must not be seen by anyone.
            for (sequence, tokens) in step.sequences() {
                for head in 0..SLOTS.len() {
                    let table = sequence.head(head);
                    for slot in table.slots - tokens..table.slots {
                        self.bytes.0.insert(self.bytes.at(head, &table, slot), u64::MAX);
                    }
                }
            }
            drop(step);
            return;
        }
        for (member, TableEntry { head, index, page }) in step.entries() {
            let mirror = &mut models[member].1[head];
            assert_ne!(mirror.get(index), Some(&page), "nothing changed");
            mirror.resize(mirror.len().max(index + 1), u32::MAX);
            mirror[index] = page;
        }
        let mut tag = self.next_tag;
        for ((sequence, tokens), (heads, _)) in step.sequences().zip(models) {
            for token in 0..tokens {
                let position = sequence.tokens() - tokens + token;
                for (head, model) in heads.iter_mut().enumerate() {
                    let table = sequence.head(head);
                    let at = self.bytes.at(head, &table, table.slots - tokens + token);
                    self.bytes.0.insert(at, tag);
                    model.insert(position as u32, tag);
                    tag += 1;
                }
            }
        }
        self.next_tag = tag;
        step.commit();
    }

    fn evict(&mut self, of: usize, seed: u64, heads: u8, commit: bool) {
        let Some(of) = self.pick(of) else { return };
        let member = &mut self.live[of];
        let dies = |position: u32| {
            let mixed = (u64::from(position) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed >> 62 == 0
        };
        let mut rewrites = Vec::new();
        for (head, table) in member.sequence.heads().enumerate() {
            if heads >> head & 1 == 1 {
                let dead = |slot| dies(table.position(slot) as u32);
                let (slots_after, moves) = compact(table.slots, dead);
                rewrites.push(HeadRewrite { head, slots_after, moves });
            }
        }
        self.rewrite(
            of,
            commit,
            |manager, sequence| manager.rewrite(sequence, rewrites),
            |head, position| heads >> head & 1 == 0 || !dies(position),
        );
    }

    fn truncate(&mut self, of: usize, keep: usize) {
        let Some(of) = self.pick(of) else { return };
        let member = &mut self.live[of];
        if keep > member.sequence.tokens() {
            let refused = self.manager.truncate(&mut member.sequence, keep).unwrap_err();
            assert!(matches!(refused, PlanError::TruncateGrows { .. }));
            return;
        }
        self.rewrite(
            of,
            true,
            |manager, sequence| manager.truncate(sequence, keep),
            |_, position| (position as usize) < keep,
        );
    }

    fn rewrite(
        &mut self,
        of: usize,
        commit: bool,
        begin: impl for<'a> FnOnce(&BlockManager, &'a mut Sequence) -> Result<Rewrite<'a>, PlanError>,
        keeps: impl Fn(usize, u32) -> bool,
    ) {
        let before = self.manager.stats();
        let member = &mut self.live[of];
        let rewrite = match begin(&self.manager, &mut member.sequence) {
            Ok(rewrite) => rewrite,
            Err(error) => {
                assert!(matches!(error, PlanError::Pool(PoolError::OutOfPages { .. })), "{error}");
                assert_eq!(self.manager.stats(), before);
                return;
            }
        };
        if !commit {
            return;
        }
        self.bytes.copy(rewrite.copies());
        for TableEntry { head, index, page } in rewrite.entries() {
            member.mirror[head][index] = page;
        }
        for head in rewrite.heads() {
            member.mirror[head.head].truncate(head.slots_after.div_ceil(SLOTS[head.head]));
        }
        for head in rewrite.heads() {
            let table = rewrite.sequence().head(head.head);
            for m in &head.moves {
                let from = self.bytes.at(head.head, &table, m.from as usize);
                let to = self.bytes.at(head.head, &table, m.to as usize);
                let tag = self.bytes.0[&from];
                self.bytes.0.insert(to, tag);
            }
        }
        rewrite.commit();
        for (head, model) in member.heads.iter_mut().enumerate() {
            model.retain(|&position, _| keeps(head, position));
        }
    }

    /// Every head of every sequence holds exactly the tokens of its model, and every page is accounted
    /// for.
    fn check(&self) {
        for member in &self.live {
            for (head, model) in member.heads.iter().enumerate() {
                let table = member.sequence.head(head);
                let held: BTreeMap<u32, u64> = (0..table.slots)
                    .map(|slot| {
                        let at = self.bytes.at(head, &table, slot);
                        (table.position(slot) as u32, self.bytes.0[&at])
                    })
                    .collect();
                assert_eq!(table.slots, held.len(), "a position stands twice");
                assert_eq!(table.pages, member.mirror[head]);
                assert_eq!(&held, model);
            }
        }
        let audit = self.manager.audit(self.live.iter().map(|m| &m.sequence)).unwrap();
        assert_eq!(audit.pool.free + audit.pool.held + audit.pool.fenced, audit.pool.total);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn tables_hold_what_the_model_holds(ops in ops(), pages in 40usize..600) {
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
            manager.rewrite(&mut sequence, vec![head]).unwrap().commit();
            if forked {
                sequences.push(manager.fork(&sequence).unwrap());
            }
            sequences.push(sequence);
        }
        let forecast = BlockManager::forecast(&sequences, 20);
        for expected in forecast {
            let step = manager.reserve(sequences.iter_mut().map(|s| (s, 1))).unwrap();
            prop_assert_eq!(step.pages_taken(), expected);
            step.commit();
        }
    }
}
