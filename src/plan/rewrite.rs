//! Rewrites: heads that lose slots are compacted, and their freed pages return to the pool.

use std::{collections::HashSet, ops::Range};

use super::{
    error::PlanError,
    moves::{HeadWork, Pass},
    open::Open,
    pool::Page,
    sequence::Sequence,
    step::PageCopy,
};
use crate::base::{HeadRewrite, SlotMove};

/// A rewrite that was granted: the pages that it needs are taken, and nothing else has happened.
/// Dropped, it gives them back, and the sequence is as it was.
///
/// ```text
/// let moving = rewrite.begin_moves();
/// for pass in moving.passes() {   the copies of the pass, then the moves of its heads   }
/// moving.commit();
/// ```
#[derive(Debug)]
#[must_use = "a rewrite that is dropped changes nothing"]
pub struct Rewrite<'a>(Granted<'a>);

/// A rewrite whose slots move. The engine makes all of its [`passes`](Self::passes) in their order and
/// then [`commit`](Self::commit)s.
///
/// Moves overwrite slots that the old tables still name, so there is no way back: given up before the
/// commit, the sequence is [torn](PlanError::Torn), and all that can be done with it is to drop it. Its
/// pages are accounted for, and what others share with it is untouched (**copy-on-compress**: shared
/// pages are never written). Only where there is nothing to move does a drop leave it as it was.
/// The pass that was begun last may be made again, so what failed may be repeated; an earlier one may not,
/// since a later one copies into pages that it has let go of.
#[derive(Debug)]
#[must_use = "a rewrite that is given up while slots move loses what the sequence holds"]
pub struct Moving<'a>(Granted<'a>);

/// Closes the sequence when it goes.
#[derive(Debug)]
struct Granted<'a> {
    sequence: &'a mut Sequence,
    heads: Vec<HeadWork>,
    /// Heads of the first pass.
    first: usize,
    copies: Vec<PageCopy>,
    /// Copies go to these, which heads of the first pass let go of.
    reused: Vec<Page>,
    tokens: Option<u32>,
}

/// Which pages of a head stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// The first ones, so that moves are the caller's.
    First,
    /// Those that copy the fewest shared pages; copies may go to pages that other heads let go of.
    Sparing,
}

pub(super) fn begin<'a>(
    sequence: &'a mut Sequence,
    heads: Vec<HeadRewrite>,
    tokens: Option<u32>,
    stay: Stay,
) -> Result<Rewrite<'a>, PlanError> {
    check(sequence, &heads)?;
    // A truncation takes all heads alike; what else would leave holes a window has no name for.
    if tokens.is_none()
        && let Some(rewrite) = heads.iter().find(|rewrite| sequence.plan.is_windowed(rewrite.head))
    {
        let problem = "it has a window, and holds what that says";
        return Err(PlanError::BadRewrite { head: rewrite.head, problem });
    }
    let sparing = stay == Stay::Sparing;
    // A page that nobody shares cannot become shared while the sequence is borrowed; one that is shared
    // can be left by the others, and is then copied all the same.
    let shared = shared_pages(sequence, &heads)?;
    let mut heads: Vec<HeadWork> = (heads.into_iter().zip(shared))
        .map(|(head, shared)| HeadWork::new(sequence, head, shared, sparing))
        .collect();
    let needed: usize = heads.iter().map(|head| head.copied().len()).sum();

    // What heads without copies let go of is free once their moves are made. It has waited for no
    // step: the moves of this rewrite write in place too, so whatever still reads the sequence's pages
    // must be ordered before them already, as it is in one stream.
    let mut reused: Vec<Page> = Vec::new();
    let mut taken: Vec<Page> = Vec::new();
    sequence.shared.with_pool(|pool| {
        let short = needed.saturating_sub(pool.stats().free);
        if sparing && short > 0 {
            let giving = heads.iter().filter(|head| head.copied().is_empty());
            reused.extend(giving.flat_map(|head| head.freed(sequence)).take(short));
        }
        pool.take(needed - reused.len(), &mut taken)
    })?;
    let first = if reused.is_empty() {
        heads.len()
    } else {
        heads.sort_by_cached_key(|head| !head.copied().is_empty());
        heads.partition_point(|head| head.copied().is_empty())
    };
    let mut copies = Vec::with_capacity(needed);
    let mut targets = taken.iter().chain(&reused).copied();
    for head in &mut heads {
        let copied = head.copied();
        head.lay(sequence, &copied, &mut targets, &mut copies);
    }
    sequence.open = Open::Rewrite { taken };
    Ok(Rewrite(Granted { sequence, heads, first, copies, reused, tokens }))
}

/// For each head which of its pages others hold too; empty where there is none.
fn shared_pages(sequence: &Sequence, heads: &[HeadRewrite]) -> Result<Vec<Vec<bool>>, PlanError> {
    // Without a move nothing is written, and no order is better than the one there is.
    if !sequence.sharing.any() || heads.iter().all(|head| head.moves.is_empty()) {
        return Ok(vec![Vec::new(); heads.len()]);
    }
    sequence.shared.with_pool(|pool| {
        let of_head = |rewrite: &HeadRewrite| {
            let pages = sequence.tables.pages(rewrite.head);
            let shared = pages.map(|page| Ok(pool.references(page)? > 1));
            let shared: Vec<bool> = shared.collect::<Result<_, PlanError>>()?;
            Ok(if shared.contains(&true) { shared } else { Vec::new() })
        };
        heads.iter().map(of_head).collect()
    })
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

impl<'a> Rewrite<'a> {
    /// Shared pages that the rewrite copies.
    pub fn pages_copied(&self) -> usize {
        self.0.copies.len()
    }

    /// Hands out the moves. From here on the rewrite is committed or the sequence is lost.
    pub fn begin_moves(self) -> Moving<'a> {
        let Self(granted) = self;
        if granted.heads.iter().any(|head| !head.moves.is_empty()) {
            let taken = granted.sequence.open.take_pages();
            granted.sequence.open = Open::Moves { taken };
        }
        Moving(granted)
    }
}

impl Moving<'_> {
    /// What is to be done, in this order: one pass after another, in each of them the copies first, and
    /// then the moves. The second pass, if there is one, copies into pages that heads of the first have
    /// let go of.
    pub fn passes(&self) -> impl Iterator<Item = Pass<'_>> {
        let Granted { sequence, heads, first, copies, .. } = &self.0;
        let (now, later) = heads.split_at(*first);
        let (copies_now, copies_later) =
            if later.is_empty() { (&copies[..], &[][..]) } else { (&[][..], &copies[..]) };
        let passes = [(now, copies_now), (later, copies_later)];
        let passes = passes.into_iter().filter(|(heads, _)| !heads.is_empty());
        passes.map(|(heads, copies)| Pass { sequence, copies, heads })
    }

    /// What happens to each head.
    pub(super) fn work(&self) -> impl Iterator<Item = (&Sequence, &HeadWork)> {
        let Granted { sequence, heads, .. } = &self.0;
        heads.iter().map(|work| (&**sequence, work))
    }

    /// Publishes the new tables and frees the pages that are no longer needed through the fence;
    /// returns the ids that the tables let go of, copied ones among them. Others may still share them.
    pub fn commit(mut self) -> Vec<u32> {
        let Granted { sequence, heads, reused, tokens, .. } = &mut self.0;
        let mut dropped = Vec::new();
        sequence.publish(heads, tokens.unwrap_or(sequence.tokens), &mut dropped);
        sequence.open = Open::Nothing;
        if !reused.is_empty() {
            let reused: HashSet<u32> = reused.iter().map(|page| page.id).collect();
            dropped.retain(|page| !reused.contains(&page.id));
        }
        sequence.shared.give(&dropped);
        dropped.iter().map(|page| page.id).collect()
    }
}

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        self.sequence.take_back();
    }
}

impl Sequence {
    /// Makes the tables and positions those after a rewrite that leaves `tokens` tokens; pages that fall
    /// off go to `dropped`.
    fn publish(&mut self, heads: &[HeadWork], tokens: u32, dropped: &mut Vec<Page>) {
        for work in heads {
            let (head, kept) = (work.head, work.slots_after);
            let lost = tokens - kept as u32;
            let state = &self.heads[head];
            let cut_in_run = !work.reorders() && lost == state.lost;
            if !cut_in_run || kept < state.listed.len() {
                let table = self.head(head);
                let mut positions = table.positions.to_vec(table.slots);
                work.apply_to(&mut positions);
                // What is as if appended need not be listed.
                let mut pairs = positions.iter().enumerate();
                let last = pairs.rposition(|(slot, &p)| p as usize != slot + lost as usize);
                positions.truncate(last.map_or(0, |slot| slot + 1));
                self.heads[head].listed = positions.into_boxed_slice();
            }
            self.heads[head].lost = lost;
            work.publish(&mut self.tables, dropped);
            self.update_origin(head);
        }
        self.tokens = tokens;
        self.tables.shrink();
        self.fills.sort(self.plan.classes(), |head| self.heads[head].lost);
        self.fills.move_to(self.plan.classes(), tokens);
        self.note_windows();
        self.sharing.unsettle();
    }
}
