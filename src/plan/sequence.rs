//! Sequences: owned handles on head tables.

use super::{Page, PlanError, guard::Open, manager::Shared, table::Tables};
use crate::base::{Positions, sync::Arc};

/// How many slots a page of each head holds: what the planner must know of page formats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePlan {
    slots_per_page: Box<[u32]>,
}

impl TablePlan {
    /// A plan from the slots per page of each (layer, KV head), layer by layer.
    pub fn new(slots_per_page: impl IntoIterator<Item = usize>) -> Result<Self, PlanError> {
        let slots: Vec<usize> = slots_per_page.into_iter().collect();
        let sizes = 1..=1usize << 16;
        let heads = slots.len();
        if !sizes.contains(&heads) {
            return Err(PlanError::BadTablePlan { heads });
        }
        if let Some(head) = slots.iter().position(|slots| !sizes.contains(slots)) {
            return Err(PlanError::BadPageSlots { head, slots: slots[head] });
        }
        Ok(Self { slots_per_page: slots.into_iter().map(|s| s as u32).collect() })
    }

    /// Head tables of a sequence.
    pub fn heads(&self) -> usize {
        self.slots_per_page.len()
    }

    /// Slots of a page of `head`.
    pub fn slots_per_page(&self, head: usize) -> usize {
        self.slots_per_page[head] as usize
    }

    /// Pages of a sequence of `tokens` tokens that never evicted, saturated.
    pub fn pages_for(&self, tokens: usize) -> usize {
        let pages = self.slots_per_page.iter().map(|&slots| tokens.div_ceil(slots as usize));
        pages.fold(0, usize::saturating_add)
    }
}

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
    pub(super) tokens: u32,
    /// Claims that an open step replaced by private copies. They are the sequence's until the copy is
    /// known to be made, and dropped with it if it never is.
    pub(super) replaced: Vec<Replaced>,
    /// What a guard that is not closed has done.
    pub(super) open: Open,
}

#[derive(Clone, Debug, Default)]
pub(super) struct HeadState {
    pub slots: u32,
    /// `None`: slot `i` holds token `i`, and `slots == tokens`.
    pub positions: Option<Vec<u32>>,
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
        Self {
            shared,
            plan,
            tables: Tables::new(heads),
            heads: vec![HeadState::default(); heads],
            tokens: 0,
            replaced: Vec::new(),
            open: Open::Nothing,
        }
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
            slots: state.slots as usize,
            positions: match &state.positions {
                None => Positions::Identity,
                Some(positions) => Positions::Explicit(positions),
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
        self.heads.iter().map(|h| h.slots as usize).sum()
    }

    /// Pages that `tokens` more tokens need, beside private copies of shared tails; saturated.
    pub fn pages_needed(&self, tokens: usize) -> usize {
        let pages = (0..self.heads.len()).map(|head| self.head_needs(head, tokens));
        pages.fold(0, usize::saturating_add)
    }

    /// Bytes of bookkeeping: tables and positions.
    pub fn metadata_bytes(&self) -> usize {
        let positions = self.heads.iter().filter_map(|h| h.positions.as_ref());
        size_of::<Self>()
            + self.tables.metadata_bytes()
            + self.heads.capacity() * size_of::<HeadState>()
            + positions.map(|p| p.capacity() * size_of::<u32>()).sum::<usize>()
    }

    pub(super) fn head_needs(&self, head: usize, tokens: usize) -> usize {
        let slots = (self.heads[head].slots as usize).saturating_add(tokens);
        slots.div_ceil(self.plan.slots_per_page(head)).saturating_sub(self.tables.len(head))
    }

    /// Counts `tokens` more tokens in every head, for a step that is open now; the pages are there.
    pub(super) fn extend(&mut self, tokens: u32) {
        self.open = Open::Step { tokens };
        let positions = self.tokens..self.tokens + tokens;
        for head in &mut self.heads {
            head.slots += tokens;
            if let Some(known) = &mut head.positions {
                known.extend(positions.clone());
            }
        }
        self.tokens += tokens;
    }

    /// Undoes [`extend`](Self::extend): the newest tokens are the last slots of every head. Pages no
    /// longer needed go to `dropped`.
    pub(super) fn retract(&mut self, tokens: u32, dropped: &mut Vec<Page>) {
        self.tokens -= tokens;
        for (index, head) in self.heads.iter_mut().enumerate() {
            head.slots -= tokens;
            if let Some(positions) = &mut head.positions {
                positions.truncate(head.slots as usize);
            }
            let pages = (head.slots as usize).div_ceil(self.plan.slots_per_page(index));
            self.tables.truncate(index, pages, dropped);
        }
    }

    /// Puts `page` in the place of a shared claim, which is kept until the copy is made.
    pub(super) fn replace(&mut self, head: usize, index: usize, page: Page) {
        let old = self.tables.replace(head, index, page);
        self.replaced.push(Replaced { head, index, page: old });
    }

    /// Puts the replaced claims back; their private copies go to `dropped`.
    pub(super) fn restore(&mut self, dropped: &mut Vec<Page>) {
        for Replaced { head, index, page } in self.replaced.drain(..) {
            dropped.push(self.tables.replace(head, index, page));
        }
    }

    /// Lets go of the replaced claims: the copies are made, and the step is closed.
    pub(super) fn forget_replaced(&mut self, dropped: &mut Vec<Page>) {
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
