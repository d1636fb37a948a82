//! The step plan: all sequences of one engine iteration get their pages, or none does.

use super::{
    error::PlanError,
    growth::Growth,
    member::{Member, Refused},
    pool::Page,
    sequence::Sequence,
    shared::Shared,
    tails::{self, SharedTail},
};

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
pub struct StepOf<M: Member> {
    appends: Vec<Append<M>>,
    copies: Vec<PageCopy>,
    pages: usize,
}

/// A step of sequences that are borrowed for as long as it lasts.
pub type Step<'a> = StepOf<&'a mut Sequence>;

/// One sequence's part of a step.
#[derive(Debug)]
struct Append<M> {
    member: M,
    tokens: usize,
}

impl<M: Member> Append<M> {
    fn new((mut member, tokens): (M, usize)) -> Self {
        if tokens > 0 {
            // Whoever appends has its partial pages for itself from now on.
            member.tables_mut().sharing.settle();
        }
        Self { member, tokens }
    }
}

pub(super) fn reserve<M: Member>(
    shared: &Shared,
    members: Vec<(M, usize)>,
) -> Result<StepOf<M>, Refused<M>> {
    let granted = grant(shared, &members);
    let (pages, tails) = match granted {
        Ok(granted) => granted,
        Err(error) => return Err(Refused { error, members }),
    };
    let mut appends: Vec<Append<M>> = members.into_iter().map(Append::new).collect();
    let total = pages.len();
    let mut pages = pages.into_iter();
    let mut copies = Vec::with_capacity(tails.len());
    for (tail, page) in tails.into_iter().zip(&mut pages) {
        let (sequence, head) = (appends[tail.member].member.tables_mut(), tail.head);
        let last = sequence.tables.len(head) - 1;
        let from = sequence.tables.page(head, last).id;
        copies.push(PageCopy { head, from, to: page.id });
        sequence.replace(head, last, page);
    }
    for append in &mut appends {
        append.member.tables_mut().extend(append.tokens, &mut pages);
    }
    Ok(StepOf { appends, copies, pages: total })
}

/// The pages of a step, and the shared tails that some of them replace.
fn grant<M: Member>(
    shared: &Shared,
    members: &[(M, usize)],
) -> Result<(Vec<Page>, Vec<SharedTail>), PlanError> {
    let members = || members.iter().map(|(member, tokens)| (member.tables(), *tokens));
    for (sequence, tokens) in members() {
        sequence.check_growth(tokens)?;
    }
    let growth = Growth::of(members());
    let mut pages: Vec<Page> = Vec::new();
    let mut tails = Vec::new();
    if growth.pages > 0 || growth.shares {
        // Which shared tails need a private copy and whether the pool can pay for everything is one
        // question: another thread may fork or free in between.
        shared.with_pool(|pool| {
            if growth.shares {
                tails = tails::copied_tails(pool, members())?;
            }
            let (needed, total) = (growth.least(), pool.stats().total);
            if needed > total {
                return Err(PlanError::NeverFits { needed, total });
            }
            Ok(pool.take(growth.pages + tails.len(), &mut pages)?)
        })?;
    }
    Ok((pages, tails))
}

impl<M: Member> StepOf<M> {
    /// The sequences of the step in the order they were given, with their new tokens.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = (&Sequence, usize)> {
        self.appends.iter().map(|a| (a.member.tables(), a.tokens))
    }

    /// The members of the step in the order they were given, with their new tokens.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&M, usize)> {
        self.appends.iter().map(|a| (&a.member, a.tokens))
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
    /// [leave](Self::leaving). Returns the members in the order they were given.
    pub fn commit(mut self) -> Vec<M> {
        let mut dropped = Vec::new();
        let appends = std::mem::take(&mut self.appends);
        let mut members: Vec<M> = appends.into_iter().map(|append| append.member).collect();
        for member in &mut members {
            member.tables_mut().settle(&mut dropped);
        }
        if let Some(member) = members.first() {
            member.tables().shared.give(&dropped);
        }
        members
    }

    /// Takes the tokens back, as a drop does, and returns the members in the order they were given.
    pub fn roll_back(mut self) -> Vec<M> {
        let appends = std::mem::take(&mut self.appends);
        let mut members: Vec<M> = appends.into_iter().map(|append| append.member).collect();
        members.iter_mut().for_each(|member| member.tables_mut().take_back());
        members
    }
}

impl<M: Member> Drop for StepOf<M> {
    fn drop(&mut self) {
        self.appends.iter_mut().for_each(|append| append.member.tables_mut().take_back());
    }
}
