//! Sequences: owned handles on head tables.

use super::{
    error::PlanError, fill::FillOrder, open::Open, pool::Page, shared::Shared, sharing::Sharing,
    table::Tables, table_plan::TablePlan,
};
use crate::base::{Positions, sync::Arc};

/// One head's table, as a kernel reads it.
#[derive(Clone, Copy, Debug)]
pub struct HeadTable<'a> {
    /// Page ids in slot order.
    pub pages: &'a [u32],
    /// Slots in use; the last page may be partial.
    pub slots: usize,
    /// Which token each slot holds.
    pub positions: Positions<'a>,
}

impl HeadTable<'_> {
    /// The position of the token in `slot`, one of [`slots`](Self::slots).
    pub fn position(&self, slot: usize) -> usize {
        match self.positions {
            Positions::Identity => slot,
            Positions::Explicit(positions) => positions[slot] as usize,
            Positions::Appended { list, run } => match list.get(slot) {
                Some(&position) => position as usize,
                None => run as usize + slot - list.len(),
            },
        }
    }
}

/// The pages of one sequence: a table per (layer, KV head), each with a length of its own.
///
/// Dropping a sequence returns its pages through the step fence.
#[derive(Debug)]
pub struct Sequence {
    pub(super) shared: Arc<Shared>,
    /// Never written: the standard library's `Arc` also where loom watches.
    pub(super) plan: std::sync::Arc<TablePlan>,
    pub(super) tables: Tables,
    pub(super) heads: Vec<HeadState>,
    pub(super) fills: FillOrder,
    /// Where each head's last page is (see [`Sequence::origin`]); of a head without pages it is unused.
    pub(super) origins: Vec<i64>,
    pub(super) tokens: u32,
    /// Tokens at which the next page leaves a head with a window.
    pub(super) next_leaving: u32,
    pub(super) sharing: Sharing,
    /// Claims that an open step replaced by private copies. They are the sequence's until the copy is
    /// known to be made, and dropped with it if it never is.
    pub(super) replaced: Vec<Replaced>,
    /// What a guard that is not closed has done.
    pub(super) open: Open,
}

/// What evictions left of a head. Tokens that came after the last one are not counted here: every head
/// gets them all.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadState {
    /// Tokens of the sequence that the head does not hold: all others have a slot.
    pub lost: u32,
    /// Positions of the first slots; those after them hold consecutive ones up to the newest token. Empty
    /// in a head that never evicted.
    pub listed: Box<[u32]>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Replaced {
    pub head: usize,
    pub index: usize,
    pub page: Page,
}

impl Sequence {
    pub(super) fn new(shared: Arc<Shared>, plan: std::sync::Arc<TablePlan>) -> Self {
        let heads = plan.heads();
        let mut sequence = Self {
            shared,
            fills: plan.order().clone(),
            plan,
            tables: Tables::new(heads),
            heads: vec![HeadState::default(); heads],
            origins: vec![0; heads],
            tokens: 0,
            next_leaving: u32::MAX,
            sharing: Sharing::default(),
            replaced: Vec::new(),
            open: Open::Nothing,
        };
        sequence.note_windows();
        sequence
    }

    /// Tokens seen: the logical length, which evictions do not change.
    pub fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// The plan that says how many slots each head's pages have.
    pub fn plan(&self) -> &TablePlan {
        &self.plan
    }

    /// The table of `head` (see [`CacheShape::head_index`](crate::base::CacheShape::head_index)).
    pub fn head(&self, head: usize) -> HeadTable<'_> {
        let state = &self.heads[head];
        HeadTable {
            pages: self.tables.ids(head),
            slots: self.slots_of(head) as usize,
            positions: match &*state.listed {
                [] if state.lost == 0 => Positions::Identity,
                list => Positions::Appended { list, run: state.lost + list.len() as u32 },
            },
        }
    }

    /// All head tables, layer by layer.
    pub fn heads(&self) -> impl ExactSizeIterator<Item = HeadTable<'_>> {
        (0..self.heads.len()).map(|head| self.head(head))
    }

    /// Pages held over all heads; a page shared with other sequences counts in each.
    pub fn pages(&self) -> usize {
        self.tables.total()
    }

    /// Slots in use over all heads.
    pub fn slots(&self) -> usize {
        self.heads.iter().map(|head| (self.tokens - head.lost) as usize).sum()
    }

    /// Bytes of bookkeeping: tables and positions.
    pub fn metadata_bytes(&self) -> usize {
        let listed = self.heads.iter().map(|head| size_of_val(&*head.listed));
        size_of::<Self>()
            + self.tables.metadata_bytes()
            + self.heads.capacity() * size_of::<HeadState>()
            + self.origins.capacity() * size_of::<i64>()
            + self.fills.metadata_bytes()
            + listed.sum::<usize>()
    }

    /// Slots in use of a head.
    pub(super) fn slots_of(&self, head: usize) -> u32 {
        self.tokens - self.heads[head].lost
    }

    /// The tokens that there would be after `tokens` more, if so many can be counted.
    pub(super) fn check_growth(&self, tokens: usize) -> Result<u32, PlanError> {
        let count = u32::try_from(tokens).ok().and_then(|more| self.tokens.checked_add(more));
        count.ok_or(PlanError::TooLong(self.tokens().saturating_add(tokens)))
    }

    /// Pages for `tokens` more tokens, beside private copies of shared tails; saturated.
    pub(super) fn growth(&self, tokens: usize) -> usize {
        if self.fills.fits(self.tokens, tokens) {
            return 0;
        }
        self.fills.count(self.plan.classes(), self.tokens(), tokens)
    }

    /// Gives an empty sequence these heads, with pages of `pages`, which has enough.
    pub(super) fn restore_heads(
        &mut self,
        heads: &[HeadState],
        tokens: u32,
        mut pages: impl Iterator<Item = Page>,
    ) {
        self.heads = heads.to_vec();
        self.tokens = tokens;
        let counts: Vec<usize> = (0..heads.len())
            .map(|head| (self.slots_of(head) as usize).div_ceil(self.plan.slots_per_page(head)))
            .collect();
        self.tables.make_room(|| counts.iter().copied().enumerate());
        for (head, &count) in counts.iter().enumerate() {
            pages.by_ref().take(count).for_each(|page| self.tables.push(head, page));
            self.update_origin(head);
        }
        self.fills.sort(self.plan.classes(), |head| self.heads[head].lost);
        self.fills.move_to(self.plan.classes(), tokens);
        self.note_windows();
    }

    /// Counts `tokens` more tokens in every head, for a step that is open now; heads that fill take pages
    /// of `pages`, which has [`growth`](Self::growth) at least.
    pub(super) fn extend(&mut self, tokens: usize, pages: &mut impl Iterator<Item = Page>) {
        self.open = Open::Step { tokens };
        let before = self.tokens();
        self.tokens += tokens as u32;
        if self.fills.fits(before as u32, tokens) {
            return;
        }
        self.tables.make_room(|| self.fills.due(self.plan.classes(), before, tokens));
        for (head, count) in self.fills.due(self.plan.classes(), before, tokens) {
            for page in pages.by_ref().take(count) {
                self.tables.push(head, page);
            }
            self.origins[head] = self.origin(head, self.tables.len(head) - 1);
        }
        self.fills.move_to(self.plan.classes(), self.tokens);
    }

    /// Undoes [`extend`](Self::extend): the newest tokens are the last slots of every head. Pages no
    /// longer needed go to `dropped`.
    pub(super) fn retract(&mut self, tokens: usize, dropped: &mut Vec<Page>) {
        self.tokens -= tokens as u32;
        for (head, _) in self.fills.due(self.plan.classes(), self.tokens(), tokens) {
            let slots = self.slots_of(head) as usize;
            let pages = slots.div_ceil(self.plan.slots_per_page(head));
            self.tables.truncate(head, pages, dropped);
            if pages > 0 {
                self.origins[head] = self.origin(head, pages - 1);
            }
        }
        self.fills.move_to(self.plan.classes(), self.tokens);
    }

    /// Puts `page` in the place of a shared claim, which is kept until the copy is made.
    pub(super) fn replace(&mut self, head: usize, index: usize, page: Page) {
        let old = self.tables.replace(head, index, page);
        self.replaced.push(Replaced { head, index, page: old });
        self.update_origin(head);
    }

    /// Puts the replaced claims back; their private copies go to `dropped`.
    pub(super) fn restore(&mut self, dropped: &mut Vec<Page>) {
        for Replaced { head, index, page } in std::mem::take(&mut self.replaced) {
            dropped.push(self.tables.replace(head, index, page));
            self.update_origin(head);
            self.sharing.unsettle();
        }
    }

    /// Keeps what a step brought: the copies are made, the tokens are there.
    pub(super) fn settle(&mut self, dropped: &mut Vec<Page>) {
        self.forget_replaced(dropped);
        self.leave(dropped);
    }

    /// Lets go of the replaced claims, and closes the step.
    fn forget_replaced(&mut self, dropped: &mut Vec<Page>) {
        self.open = Open::Nothing;
        dropped.extend(self.replaced.drain(..).map(|r| r.page));
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let mut pages: Vec<Page> = self.tables.all().collect();
        pages.extend(self.open.take_pages());
        self.forget_replaced(&mut pages);
        self.shared.give(&pages);
    }
}
