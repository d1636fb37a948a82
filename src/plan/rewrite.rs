//! Rewrites: heads that lose slots are compacted, and their freed pages return to the pool.

use std::ops::Range;

use super::{Page, PageCopy, PlanError, Sequence};
use crate::base::{HeadRewrite, SlotMove, apply_moves};

/// A rewrite that was granted and waits for the bytes to move.
///
/// The engine makes the [`copies`](Self::copies), then the moves, through the tables of
/// [`sequence`](Self::sequence), and then [`commit`](Self::commit)s. Dropped instead, it leaves the
/// sequence as it was (**copy-on-compress**: shared pages are never written).
#[derive(Debug)]
#[must_use = "a rewrite that is dropped changes nothing"]
pub struct Rewrite<'a> {
    sequence: &'a mut Sequence,
    heads: Vec<HeadRewrite>,
    copies: Vec<PageCopy>,
    tokens: Option<u32>,
    done: bool,
}

pub(super) fn begin<'a>(
    sequence: &'a mut Sequence,
    heads: Vec<HeadRewrite>,
    tokens: Option<u32>,
) -> Result<Rewrite<'a>, PlanError> {
    check(sequence, &heads)?;
    // The pages that moves write to, by head.
    let mut written: Vec<(usize, usize)> = Vec::new();
    for rewrite in &heads {
        let slots = sequence.plan.slots_per_page(rewrite.head);
        for m in &rewrite.moves {
            let page = (rewrite.head, m.to as usize / slots);
            if written.last() != Some(&page) {
                written.push(page);
            }
        }
    }
    let mut pages: Vec<Page> = Vec::new();
    let shared = sequence.shared.with_pool(|pool| -> Result<_, PlanError> {
        let mut shared = Vec::new();
        if sequence.sharing.any() {
            for &(head, index) in &written {
                if pool.references(sequence.tables.page(head, index))? > 1 {
                    shared.push((head, index));
                }
            }
        }
        pool.take(shared.len(), &mut pages)?;
        Ok(shared)
    })?;
    let mut copies = Vec::with_capacity(shared.len());
    for ((head, index), page) in shared.into_iter().zip(pages) {
        let from = sequence.tables.page(head, index).id;
        copies.push(PageCopy { head, from, to: page.id });
        sequence.replace(head, index, page);
    }
    Ok(Rewrite { sequence, heads, copies, tokens, done: false })
}

/// Refuses what does not fit: every index that a store will be given is checked here.
fn check(sequence: &Sequence, heads: &[HeadRewrite]) -> Result<(), PlanError> {
    let ascending = |pair: &[HeadRewrite]| pair[0].head < pair[1].head;
    for (i, rewrite) in heads.iter().enumerate() {
        let head = rewrite.head;
        let bad = |problem| Err(PlanError::BadRewrite { head, problem });
        if head >= sequence.heads.len() {
            return bad("no such head");
        }
        let slots = sequence.slots_of(head);
        if heads[i..].windows(2).next().is_some_and(|pair| !ascending(pair)) {
            return bad("heads are not in ascending order");
        }
        if rewrite.slots_after > slots as usize {
            return bad("more slots afterwards than before");
        }
        let kept = rewrite.slots_after as u32;
        let strays: Range<u32> = kept..slots;
        if rewrite.moves.iter().any(|m| m.to >= kept || !strays.contains(&m.from)) {
            return bad("a move does not go from the dropped tail into a kept slot");
        }
        let ordered = |m: &[SlotMove]| m[0].from < m[1].from && m[0].to < m[1].to;
        if !rewrite.moves.windows(2).all(ordered) {
            return bad("moves are not in ascending order");
        }
    }
    Ok(())
}

impl Rewrite<'_> {
    /// The sequence with its tables as they are before the cut.
    pub fn sequence(&self) -> &Sequence {
        self.sequence
    }

    /// What happens to each head.
    pub fn heads(&self) -> &[HeadRewrite] {
        &self.heads
    }

    /// Copies to make before the moves: pages that would be written and that others share.
    pub fn copies(&self) -> &[PageCopy] {
        &self.copies
    }

    /// Publishes the new tables and frees the pages that are no longer needed through the fence;
    /// returns the ids the tables let go of, which others may still share.
    pub fn commit(mut self) -> Vec<u32> {
        self.done = true;
        let sequence = &mut *self.sequence;
        let mut dropped = Vec::new();
        sequence.publish(&self.heads, self.tokens.unwrap_or(sequence.tokens), &mut dropped);
        let freed = dropped.iter().map(|page| page.id).collect();
        sequence.forget_replaced(&mut dropped);
        sequence.shared.give(&dropped);
        freed
    }
}

impl Drop for Rewrite<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut dropped = Vec::new();
        self.sequence.restore(&mut dropped);
        self.sequence.shared.give(&dropped);
    }
}

impl Sequence {
    /// Makes the tables and positions those after a rewrite that leaves `tokens` tokens; pages that fall
    /// off go to `dropped`.
    fn publish(&mut self, heads: &[HeadRewrite], tokens: u32, dropped: &mut Vec<Page>) {
        for HeadRewrite { head, slots_after, moves } in heads {
            let (head, kept) = (*head, *slots_after as u32);
            let lost = tokens - kept;
            let state = &self.heads[head];
            let cut_in_run = moves.is_empty() && lost == state.lost;
            if !cut_in_run || *slots_after < state.listed.len() {
                let table = self.head(head);
                let mut positions = table.positions.to_vec(table.slots);
                apply_moves(&mut positions, moves, *slots_after);
                // What is as if appended need not be listed.
                let mut pairs = positions.iter().enumerate();
                let last = pairs.rposition(|(slot, &p)| p as usize != slot + lost as usize);
                positions.truncate(last.map_or(0, |slot| slot + 1));
                self.heads[head].listed = positions.into_boxed_slice();
            }
            self.heads[head].lost = lost;
            let pages = slots_after.div_ceil(self.plan.slots_per_page(head));
            self.tables.truncate(head, pages, dropped);
            self.update_origin(head);
        }
        self.tokens = tokens;
        self.tables.shrink();
        self.fills.sort(&self.plan, |head| self.heads[head].lost);
        self.fills.move_to(&self.plan, tokens);
        self.sharing.unsettle();
    }
}
