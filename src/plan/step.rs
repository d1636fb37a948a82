//! The step plan: all sequences of one engine iteration get their pages, or none does.

use super::{Page, PlanError, Sequence, manager::Shared};
use crate::base::sync::Arc;

/// A whole-page copy that the engine makes before it writes to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The head, among all heads of its sequence.
    pub head: usize,
    /// The page that is read. It is not handed out anew before the step retires. Another sequence may
    /// hold it, though, and once the step is committed that one may be its only holder and write to it
    /// in place. So copies and what is written by later steps and rewrites must run in one order, as
    /// they do in one stream.
    pub from: u32,
    /// The page that is written.
    pub to: u32,
}

/// A granted step. Its sequences already count the new tokens, so kernels can be given their tables.
///
/// [`commit`](Self::commit) keeps the tokens; dropping the step takes them back and leaves every
/// sequence as it was. The pages that the step had taken are then fenced like all that are freed: what
/// was launched for it may still write to them, and until
/// [`BlockManager::retire`](super::BlockManager::retire) the pool has that many fewer.
#[derive(Debug)]
#[must_use = "a step that is dropped is rolled back"]
pub struct Step<'a> {
    appends: Vec<Append<'a>>,
    copies: Vec<PageCopy>,
    pages: usize,
}

/// One sequence's part of a step.
#[derive(Debug)]
struct Append<'a> {
    sequence: &'a mut Sequence,
    tokens: u32,
}

pub(super) fn reserve<'a>(
    shared: &Arc<Shared>,
    appends: Vec<(&'a mut Sequence, usize)>,
) -> Result<Step<'a>, PlanError> {
    let mut checked = Vec::with_capacity(appends.len());
    let mut growth = Vec::with_capacity(appends.len());
    // Of the whole step, and of the sequence that will hold the most: neither can be met by freeing
    // what others hold.
    let (mut needed, mut largest) = (0, 0);
    for (sequence, tokens) in appends {
        let too_long = || PlanError::TooLong(sequence.tokens().saturating_add(tokens));
        let count =
            u32::try_from(tokens).ok().filter(|&n| sequence.tokens.checked_add(n).is_some());
        let count = count.ok_or_else(too_long)?;
        let extra: Vec<u32> = (0..sequence.heads.len())
            .map(|head| sequence.head_needs(head, tokens) as u32)
            .collect();
        let taken = extra.iter().map(|&n| n as usize).sum::<usize>();
        needed += taken;
        largest = largest.max(sequence.pages() + taken);
        growth.push(extra);
        checked.push(Append { sequence, tokens: count });
    }

    let mut pages: Vec<Page> = Vec::new();
    // Which shared tails need a private copy and whether the pool can pay for everything is one
    // question: another thread may fork or free in between.
    let tails = shared.with_pool(|pool| {
        let mut tails = Vec::new();
        if pool.stats().shared > 0 {
            for (index, append) in checked.iter().enumerate().filter(|(_, a)| a.tokens > 0) {
                for (head, page) in append.sequence.partial_tails() {
                    if pool.references(page)? > 1 {
                        tails.push((index, head));
                    }
                }
            }
        }
        let (least, total) = (needed.max(largest), pool.stats().total);
        if least > total {
            return Err(PlanError::NeverFits { needed: least, total });
        }
        pool.take(needed + tails.len(), &mut pages)?;
        Ok(tails)
    })?;

    let total = pages.len();
    let mut pages = pages.into_iter();
    let mut copies = Vec::with_capacity(tails.len());
    for ((index, head), page) in tails.into_iter().zip(&mut pages) {
        let sequence = &mut *checked[index].sequence;
        let last = sequence.tables.len(head) - 1;
        let from = sequence.tables.page(head, last).id;
        copies.push(PageCopy { head, from, to: page.id });
        sequence.replace(head, last, page);
    }
    for (append, extra) in checked.iter_mut().zip(&growth) {
        let sequence = &mut *append.sequence;
        sequence.tables.make_room(extra);
        for (head, &count) in extra.iter().enumerate() {
            for page in pages.by_ref().take(count as usize) {
                sequence.tables.push(head, page);
            }
        }
        sequence.extend(append.tokens);
    }
    Ok(Step { appends: checked, copies, pages: total })
}

impl Step<'_> {
    /// The sequences of the step in the order they were given, with their new tokens.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = (&Sequence, usize)> {
        self.appends.iter().map(|a| (&*a.sequence, a.tokens as usize))
    }

    /// Copies to make before anything is appended: partial tails that others share.
    pub fn copies(&self) -> &[PageCopy] {
        &self.copies
    }

    /// Pages that the step took from the pool.
    pub fn pages_taken(&self) -> usize {
        self.pages
    }

    /// Keeps the tokens: their K and V are in the pages.
    pub fn commit(mut self) {
        let mut dropped = Vec::new();
        let shared = self.appends.first().map(|a| Arc::clone(&a.sequence.shared));
        for append in self.appends.drain(..) {
            append.sequence.forget_replaced(&mut dropped);
        }
        if let Some(shared) = shared {
            shared.give(&dropped);
        }
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.appends.iter_mut().for_each(|append| append.sequence.take_back());
    }
}

impl Sequence {
    /// Partial last pages that others hold too: what the next append copies.
    pub(super) fn shared_tails(&self) -> usize {
        self.shared.with_pool(|pool| {
            if pool.stats().shared == 0 {
                return 0;
            }
            let shared = |&(_, page): &(usize, Page)| pool.references(page).is_ok_and(|n| n > 1);
            self.partial_tails().filter(shared).count()
        })
    }

    /// The last page of every head that has free slots in it.
    fn partial_tails(&self) -> impl Iterator<Item = (usize, Page)> {
        self.heads.iter().enumerate().filter_map(|(head, state)| {
            let free = !(state.slots as usize).is_multiple_of(self.plan.slots_per_page(head));
            free.then(|| (head, self.tables.page(head, self.tables.len(head) - 1)))
        })
    }
}
