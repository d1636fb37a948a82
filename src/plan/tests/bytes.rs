//! What a store would hold, as tags, and evictions by a hash.

use std::collections::BTreeMap;

use crate::{base::compact, plan::*};

/// Slots per page of the heads under test: ragged on purpose, and several of one size.
pub(super) const SLOTS: [usize; 5] = [1, 4, 7, 4, 4];

/// What a store would hold: the tag of the token in each slot of each page.
#[derive(Clone, Default)]
pub(super) struct Bytes {
    tags: BTreeMap<(u32, usize), u64>,
    next: u64,
}

/// What each head of a sequence holds: token position → tag.
pub(super) type Held = Vec<BTreeMap<u32, u64>>;

impl Bytes {
    fn copy(&mut self, copies: &[PageCopy]) {
        for copy in copies {
            for slot in 0..SLOTS[copy.head] {
                match self.tags.get(&(copy.from, slot)).copied() {
                    Some(tag) => self.tags.insert((copy.to, slot), tag),
                    None => self.tags.remove(&(copy.to, slot)),
                };
            }
        }
    }

    fn at(head: usize, pages: &[u32], slot: usize) -> (u32, usize) {
        (pages[slot / SLOTS[head]], slot % SLOTS[head])
    }

    /// Writes the new tokens of a step, each with a tag of its own; returns position and tag of each,
    /// member by member and head by head.
    pub fn append(&mut self, step: &Step<'_>) -> Vec<Held> {
        self.copy(step.copies());
        let mut written = Vec::new();
        for (sequence, tokens) in step.sequences() {
            let mut held = vec![BTreeMap::new(); SLOTS.len()];
            for (head, table) in sequence.heads().enumerate() {
                for token in 0..tokens {
                    let at = Self::at(head, table.pages, table.slots - tokens + token);
                    self.next += 1;
                    self.tags.insert(at, self.next);
                    held[head].insert((sequence.tokens() - tokens + token) as u32, self.next);
                }
            }
            written.push(held);
        }
        written
    }

    /// Makes all passes of a rewrite.
    pub fn carry_out(&mut self, moving: &Moving<'_>) {
        for pass in moving.passes() {
            self.copy(pass.copies());
            for head in pass.heads() {
                for m in head.moves() {
                    let from = Self::at(head.head(), head.pages(), m.from as usize);
                    let to = Self::at(head.head(), head.pages(), m.to as usize);
                    let tag = self.tags[&from];
                    self.tags.insert(to, tag);
                }
            }
        }
    }

    /// What the tables of a sequence name.
    pub fn held(&self, sequence: &Sequence) -> Held {
        let of_head = |(head, table): (usize, HeadTable<'_>)| {
            let slots = 0..table.slots;
            let held: BTreeMap<u32, u64> = slots
                .map(|slot| {
                    let at = Self::at(head, table.pages, slot);
                    (table.position(slot) as u32, self.tags[&at])
                })
                .collect();
            assert_eq!(table.slots, held.len(), "a position stands twice");
            held
        };
        sequence.heads().enumerate().map(of_head).collect()
    }
}

/// Whether an eviction by `seed` kills the token at `position`: one in four.
pub(super) fn dies(seed: u64, position: u32) -> bool {
    (u64::from(position) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 == 0
}

/// The eviction by `seed` from the heads of a bit mask.
pub(super) fn eviction(sequence: &Sequence, seed: u64, heads: u8) -> Vec<HeadRewrite> {
    let tables = sequence.heads().enumerate().filter(|(head, _)| heads >> head & 1 == 1);
    let rewrite = |(head, table): (usize, HeadTable<'_>)| {
        let dead = |slot| dies(seed, table.position(slot) as u32);
        let (slots_after, moves) = compact(table.slots, dead);
        HeadRewrite { head, slots_after, moves }
    };
    tables.map(rewrite).collect()
}
