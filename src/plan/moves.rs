//! What a rewrite does to the slots of each head.

use super::{
    entry::TableEntry, error::PlanError, pool::Page, sequence::Sequence, spare, step::PageCopy,
    table::Tables,
};
use crate::base::{HeadRewrite, SlotMove, apply_moves};

/// One head of a rewrite.
#[derive(Debug)]
pub(super) struct HeadWork {
    pub head: usize,
    pub slots_before: usize,
    pub slots_after: usize,
    pub slots_per_page: usize,
    pub moves: Vec<SlotMove>,
    /// Where in the old table the pages of the new one stand; empty where the order stays.
    order: Vec<u32>,
    /// Whether others hold each page of the new order; empty where nobody does.
    shared: Vec<bool>,
    /// The pages in their new order, copies among them, where they differ from the table's.
    laid: Option<Laid>,
}

/// The pages of a head in their new order.
#[derive(Debug)]
struct Laid {
    ids: Vec<u32>,
    /// The claims of the new table.
    stay: Vec<Page>,
    /// Those that leave: pages cut off, and pages whose copies stay.
    leave: Vec<Page>,
}

impl HeadWork {
    /// `shared` says for each page of the head whether others hold it; empty: no page is shared.
    pub fn new(
        sequence: &Sequence,
        rewrite: HeadRewrite,
        mut shared: Vec<bool>,
        sparing: bool,
    ) -> Self {
        let HeadRewrite { head, slots_after, mut moves } = rewrite;
        let slots_before = sequence.head(head).slots;
        let slots_per_page = sequence.plan.slots_per_page(head);
        let mut order = Vec::new();
        if sparing && !shared.is_empty() {
            let pages =
                spare::Pages { slots_per_page, kept: slots_after, moves: &moves, shared: &shared };
            if let Some(better) = pages.sparing() {
                (order, moves) = (better.pages, better.moves);
                shared = order.iter().map(|&page| shared[page as usize]).collect();
            }
        }
        Self { head, slots_before, slots_after, slots_per_page, moves, order, shared, laid: None }
    }

    /// Pages of the new order that moves write to and that others share.
    pub fn copied(&self) -> Vec<usize> {
        let mut written = Vec::new();
        for m in &self.moves {
            let page = m.to as usize / self.slots_per_page;
            if self.shared.get(page) == Some(&true) && written.last() != Some(&page) {
                written.push(page);
            }
        }
        written
    }

    /// Pages of the new table.
    pub fn pages_after(&self) -> usize {
        self.slots_after.div_ceil(self.slots_per_page)
    }

    /// Pages that leave the table and that nobody else holds.
    pub fn freed<'a>(&'a self, sequence: &'a Sequence) -> impl Iterator<Item = Page> {
        let private = |&page: &usize| self.shared.get(page) != Some(&true);
        let leaving = self.pages_after()..sequence.tables.len(self.head);
        leaving.filter(private).map(|page| self.claim(sequence, page))
    }

    /// Replaces the pages `copied` of the new order by `targets`.
    pub fn lay(
        &mut self,
        sequence: &Sequence,
        copied: &[usize],
        targets: &mut impl Iterator<Item = Page>,
        copies: &mut Vec<PageCopy>,
    ) {
        if copied.is_empty() && self.order.is_empty() {
            return;
        }
        let pages = sequence.tables.len(self.head);
        let mut stay: Vec<Page> = (0..pages).map(|page| self.claim(sequence, page)).collect();
        let mut leave = Vec::new();
        for (&page, to) in copied.iter().zip(targets) {
            let from = std::mem::replace(&mut stay[page], to);
            copies.push(PageCopy { head: self.head, from: from.id, to: to.id });
            leave.push(from);
        }
        let ids = stay.iter().map(|page| page.id).collect();
        leave.extend(stay.drain(self.pages_after()..));
        self.laid = Some(Laid { ids, stay, leave });
    }

    /// Page ids that slots before and after are numbered in.
    pub fn ids<'a>(&'a self, sequence: &'a Sequence) -> &'a [u32] {
        match &self.laid {
            Some(laid) => &laid.ids,
            None => sequence.tables.ids(self.head),
        }
    }

    /// Makes the new table that of `tables`; claims that leave it go to `dropped`.
    pub fn publish(&self, tables: &mut Tables, dropped: &mut Vec<Page>) {
        match &self.laid {
            None => tables.truncate(self.head, self.pages_after(), dropped),
            Some(laid) => {
                for (index, &page) in laid.stay.iter().enumerate() {
                    tables.replace(self.head, index, page);
                }
                tables.truncate(self.head, self.pages_after(), &mut Vec::new());
                dropped.extend_from_slice(&laid.leave);
            }
        }
    }

    /// The entries of the new table that name another page than the old one's.
    pub fn entries<'a>(&'a self, sequence: &'a Sequence) -> impl Iterator<Item = TableEntry> {
        let (head, old) = (self.head, sequence.tables.ids(self.head));
        let new = self.ids(sequence)[..self.pages_after()].iter().enumerate();
        new.filter(|&(index, &page)| page != old[index]).map(move |(index, &page)| TableEntry {
            head,
            index,
            page,
        })
    }

    /// Whether a slot is not where it was.
    pub fn reorders(&self) -> bool {
        !self.moves.is_empty() || !self.order.is_empty()
    }

    /// Does to `values`, one for each slot, what the rewrite does to the slots.
    pub fn apply_to<T: Copy>(&self, values: &mut Vec<T>) {
        if self.order.is_empty() {
            apply_moves(values, &self.moves, self.slots_after);
            return;
        }
        let mut moves = self.moves.iter().peekable();
        let carried = (0..self.slots_after as u32).map(|slot| {
            let from = moves.next_if(|m| m.to == slot).map_or(slot, |m| m.from) as usize;
            let page = self.order[from / self.slots_per_page] as usize;
            values[page * self.slots_per_page + from % self.slots_per_page]
        });
        *values = carried.collect();
    }

    /// The claim at `page` of the new order, before copies.
    fn claim(&self, sequence: &Sequence, page: usize) -> Page {
        let page = self.order.get(page).map_or(page, |&page| page as usize);
        sequence.tables.page(self.head, page)
    }
}

/// The copies and moves of a [`Moving`](super::Moving) rewrite that may run together.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    pub(super) sequence: &'a Sequence,
    pub(super) copies: &'a [PageCopy],
    pub(super) heads: &'a [HeadWork],
}

impl<'a> Pass<'a> {
    /// Copies to make before the moves: pages that would be written and that others share.
    pub fn copies(&self) -> &'a [PageCopy] {
        self.copies
    }

    /// What happens to each head of the pass.
    pub fn heads(&self) -> impl ExactSizeIterator<Item = HeadMoves<'a>> + use<'a> {
        let sequence = self.sequence;
        self.heads.iter().map(move |work| HeadMoves { work, sequence })
    }
}

/// The moves of one head.
#[derive(Clone, Copy, Debug)]
pub struct HeadMoves<'a> {
    work: &'a HeadWork,
    sequence: &'a Sequence,
}

impl<'a> HeadMoves<'a> {
    /// The head, among all heads of the sequence.
    pub fn head(&self) -> usize {
        self.work.head
    }

    /// The pages that [`moves`](Self::moves) number slots in: those that stay and those that leave,
    /// where shared pages are written their copies.
    pub fn pages(&self) -> &'a [u32] {
        self.work.ids(self.sequence)
    }

    /// Slots in use afterwards.
    pub fn slots_after(&self) -> usize {
        self.work.slots_after
    }

    /// Survivors into holes, ascending in both; no slot is read and written.
    pub fn moves(&self) -> &'a [SlotMove] {
        &self.work.moves
    }

    /// Does to `values`, one for each slot of the head, what the rewrite does to the slots.
    ///
    /// # Errors
    /// [`PlanError::WrongValues`]: another number of values; they are unchanged.
    pub fn apply_to<T: Copy>(&self, values: &mut Vec<T>) -> Result<(), PlanError> {
        let (head, got, expected) = (self.work.head, values.len(), self.work.slots_before);
        if got != expected {
            return Err(PlanError::WrongValues { head, got, expected });
        }
        self.work.apply_to(values);
        Ok(())
    }
}
