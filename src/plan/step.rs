//! The step plan: all sequences of one engine iteration get their pages, or none does.

use super::{
    error::PlanError, manager::Shared, needs::Growth, pool::Page, sequence::Sequence, sharing,
};
use crate::base::sync::Arc;

/// A whole-page copy that the engine makes before it writes to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The head, among all heads of its sequence.
    pub head: usize,
    /// The page that is read. It is not handed out anew before the step retires. Another sequence may
    /// hold it, though, and write to it in place: a member of the same step that is the last of its
    /// holders, or one of a later step. So copies, what the step appends and what later steps and
    /// rewrites write must run in this order, as they do in one stream.
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
    tokens: usize,
}

impl<'a> Append<'a> {
    fn new(sequence: &'a mut Sequence, tokens: usize) -> Self {
        if tokens > 0 {
            // Whoever appends has its partial pages for itself from now on.
            sequence.sharing.settle();
        }
        Self { sequence, tokens }
    }
}

pub(super) fn reserve<'a>(
    shared: &Arc<Shared>,
    appends: Vec<(&'a mut Sequence, usize)>,
) -> Result<Step<'a>, PlanError> {
    for (sequence, tokens) in &appends {
        sequence.check_growth(*tokens)?;
    }
    let members = || appends.iter().map(|(sequence, tokens)| (&**sequence, *tokens));
    let growth = Growth::of(members());
    let mut pages: Vec<Page> = Vec::new();
    let mut tails = Vec::new();
    if growth.pages > 0 || growth.shares {
        // Which shared tails need a private copy and whether the pool can pay for everything is one
        // question: another thread may fork or free in between.
        shared.with_pool(|pool| {
            if growth.shares {
                tails = sharing::copied_tails(pool, members())?;
            }
            let (needed, total) = (growth.least(), pool.stats().total);
            if needed > total {
                return Err(PlanError::NeverFits { needed, total });
            }
            Ok(pool.take(growth.pages + tails.len(), &mut pages)?)
        })?;
    }

    let mut appends: Vec<Append<'_>> =
        appends.into_iter().map(|(sequence, tokens)| Append::new(sequence, tokens)).collect();
    let total = pages.len();
    let mut pages = pages.into_iter();
    let mut copies = Vec::with_capacity(tails.len());
    for (tail, page) in tails.into_iter().zip(&mut pages) {
        let (sequence, head) = (&mut *appends[tail.member].sequence, tail.head);
        let last = sequence.tables.len(head) - 1;
        let from = sequence.tables.page(head, last).id;
        copies.push(PageCopy { head, from, to: page.id });
        sequence.replace(head, last, page);
    }
    for append in &mut appends {
        append.sequence.extend(append.tokens, &mut pages);
    }
    Ok(Step { appends, copies, pages: total })
}

impl Step<'_> {
    /// The sequences of the step in the order they were given, with their new tokens.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = (&Sequence, usize)> {
        self.appends.iter().map(|a| (&*a.sequence, a.tokens))
    }

    /// Copies to make before anything is appended: partial tails that others share. Where all who hold
    /// a page append to it in this step, one of them writes in place, and all copies of that page must
    /// have read it by then.
    pub fn copies(&self) -> &[PageCopy] {
        &self.copies
    }

    /// Pages that the step took from the pool.
    pub fn pages_taken(&self) -> usize {
        self.pages
    }

    /// Keeps the tokens: their K and V are in the pages. Pages that no query will see again
    /// [leave](Self::leaving).
    pub fn commit(mut self) {
        let mut dropped = Vec::new();
        let shared = self.appends.first().map(|a| Arc::clone(&a.sequence.shared));
        for append in self.appends.drain(..) {
            append.sequence.settle(&mut dropped);
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
