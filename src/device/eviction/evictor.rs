//! From scores to freed pages: prices, victims, moves.

use std::sync::Arc;

use rayon::prelude::*;

use super::{
    args::{CompactHead, PriceHead, SelectHead},
    data::SlotAddresses,
    launches,
};
use crate::{
    base::SlotMove,
    cuda::{
        Growing, Staging,
        driver::{Argument, Stream},
    },
    device::{
        error::DeviceError,
        kernels::{KernelFile, Specialisation},
        loader::{Kernels, Loaded},
    },
    evict::Score,
};

/// Moves that a warp makes in one launch, about.
const MOVES_PER_WARP: u32 = 4;

/// A head that gives up slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Losing {
    /// Index in the page ids of its first page.
    pub pages: u32,
    /// Slots in use.
    pub slots: u32,
    /// First position that may die.
    pub begin: u32,
    /// One past the last.
    pub end: u32,
    /// Slots to give up, at most those that may die.
    pub dying: u32,
}

/// Survivors behind the new end, at most.
fn most_moves(head: &SelectHead) -> u32 {
    head.dying.min(head.slots.saturating_sub(head.dying))
}

/// Where the table of a head that [`Evictor::select`] was given starts in the page ids: as its slots are
/// read, and as they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedTable {
    /// Index of the first page that slots are read from.
    pub read: u32,
    /// Index of the first page that they are written to; the same, or that of a table in which copies
    /// stand for the pages that others share.
    pub written: u32,
}

/// What the pages that heads could give up cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Costs {
    scores: Vec<u16>,
    counts: Vec<u32>,
    most: usize,
}

impl Costs {
    /// The costs of a head's pages, in the order in which it would give them up: ascending. No longer
    /// than the device was asked to list.
    pub fn head(&self, head: usize) -> impl ExactSizeIterator<Item = Score> + '_ {
        let start = head * self.most;
        let count = (self.counts[head] as usize).min(self.most);
        let codes = &self.scores[start..start + count];
        codes.iter().map(|&code| Score::from_bits(code))
    }

    /// How many heads there are.
    pub fn heads(&self) -> usize {
        self.counts.len()
    }
}

/// Prices pages, selects victims and moves survivors, for tables of one specialisation.
#[derive(Debug)]
pub struct Evictor {
    price: Arc<Loaded>,
    select: Arc<Loaded>,
    compact: Arc<Loaded>,
    blocks: u32,
    heads: Growing,
    costs: Growing,
    counts: Growing,
    moves: Growing,
    move_counts: Growing,
    compacted: Growing,
    /// What the last selection was asked for.
    last: Vec<SelectHead>,
}

impl Evictor {
    /// Compiles the kernels.
    pub fn new(
        kernels: &Kernels,
        specialisation: &Specialisation,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let get = |file| kernels.get(file, specialisation, stream);
        let compact = get(KernelFile::Compact)?;
        let [heads, costs, counts, moves, move_counts, compacted] = Default::default();
        Ok(Self {
            price: get(KernelFile::Price)?,
            select: get(KernelFile::Select)?,
            blocks: kernels.multiprocessors() * compact.blocks_per_multiprocessor(),
            compact,
            heads,
            costs,
            counts,
            moves,
            move_counts,
            compacted,
            last: Vec::new(),
        })
    }

    /// The costs of up to `most` pages of each head, waiting for them.
    ///
    /// # Safety
    /// `page_ids` is a device address that covers what `heads` name, `data` covers its pages, and
    /// nothing writes them meanwhile.
    pub unsafe fn costs(
        &mut self,
        heads: &[PriceHead],
        most: usize,
        page_ids: u64,
        data: SlotAddresses,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<Costs, DeviceError> {
        let context = staging.context().clone();
        let (mut scores, mut counts) = (vec![0u16; heads.len() * most], vec![0u32; heads.len()]);
        let arguments = [
            self.heads.upload(&context, staging, stream, heads)?,
            page_ids,
            data.scores,
            data.positions,
            self.costs.reserve(&context, size_of_val(&scores[..]))?.address(),
            self.counts.reserve(&context, size_of_val(&counts[..]))?.address(),
        ]
        .map(Argument::U64);
        let sizes = [Argument::U32(most as u32), Argument::U32(data.stride)];
        let arguments = [&arguments[..], &sizes].concat();
        // SAFETY: the arguments are those of `headwise_price`, with room for every head's costs; the
        // caller vouches for the tables.
        unsafe { self.price.launch(stream, [heads.len() as u32, 1, 1], &arguments) }?;
        self.counts.download(staging, stream, &mut counts)?;
        self.costs.download(staging, stream, &mut scores)?;
        Ok(Costs { scores, counts, most })
    }

    /// Queues the selection of each head's victims, and of the moves that close the gaps: no slot has
    /// moved yet. [`moves`](Self::moves) lists them, [`compact`](Self::compact) makes them.
    ///
    /// # Safety
    /// `page_ids` is a device address that covers what `heads` name, `data` covers their pages, each head
    /// has as many slots that may die as it gives up, until the stream is done.
    pub unsafe fn select(
        &mut self,
        heads: &[Losing],
        page_ids: u64,
        data: SlotAddresses,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let context = staging.context().clone();
        let mut moves = 0;
        self.last.clear();
        self.last.extend(heads.iter().map(|head| {
            let Losing { pages, slots, begin, end, dying } = *head;
            let head = SelectHead { pages, slots, begin, end, dying, first_move: moves };
            moves += most_moves(&head);
            head
        }));
        if heads.is_empty() {
            return Ok(());
        }
        let addresses = [
            self.heads.upload(&context, staging, stream, &self.last)?,
            page_ids,
            data.scores,
            data.positions,
            self.moves.reserve(&context, moves as usize * size_of::<[u32; 2]>())?.address(),
            self.move_counts.reserve(&context, heads.len() * size_of::<u32>())?.address(),
        ];
        let stride = Argument::U32(data.stride);
        let arguments = [&addresses.map(Argument::U64)[..], &[stride]].concat();
        // SAFETY: the arguments are those of `headwise_select`, with room for every head's moves; the
        // caller vouches for the tables.
        unsafe { self.select.launch(stream, [heads.len() as u32, 1, 1], &arguments) }
    }

    /// Queues the moves of the last [`select`](Self::select), with scores and positions: of each of its
    /// heads, from the pages of one table to those of another. Where others share pages that a move
    /// writes (**copy-on-compress**), the planner says so between the two:
    ///
    /// ```text
    /// select;  moves ──> BlockManager::rewrite, begin_moves;  its one pass: copies of page bytes, and
    /// SlotData::copy_pages;  its pages to the device;  compact;  commit
    /// ```
    ///
    /// Afterwards all that lies behind a head's `slots - dying` is dead.
    ///
    /// # Errors
    /// [`DeviceError::WrongLength`] unless there is a table for each head selected.
    ///
    /// # Safety
    /// The last [`select`](Self::select) succeeded and was queued in `stream` or before it; `arena` and
    /// `page_ids` are device addresses that cover what `tables` name, `data` covers their pages. Read
    /// and written, a table holds what it held when it was selected from, no page that is written belongs
    /// to another table, no head was named twice; all until the stream is done.
    pub unsafe fn compact(
        &mut self,
        tables: &[MovedTable],
        arena: u64,
        page_ids: u64,
        data: SlotAddresses,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        if tables.len() != self.last.len() {
            let (got, expected) = (tables.len(), self.last.len());
            return Err(DeviceError::WrongLength {
                what: "tables of selected heads",
                got,
                expected,
            });
        }
        let of_head = |(table, head): (&MovedTable, &SelectHead)| CompactHead {
            read_pages: table.read,
            written_pages: table.written,
            first_move: head.first_move,
        };
        let compacted: Vec<CompactHead> = tables.iter().zip(&self.last).map(of_head).collect();
        if compacted.is_empty() {
            return Ok(());
        }
        let context = staging.context().clone();
        let compacted_at = self.compacted.upload(&context, staging, stream, &compacted)?;
        // Held since they were selected: as large as then, they stay where they are.
        let moves_at = self.moves.reserve(&context, 0)?.address();
        let counts_at = self.move_counts.reserve(&context, 0)?.address();
        // Enough warps for the longest head; a grid over many heads is large anyway.
        let longest = self.last.iter().map(most_moves).max().unwrap_or(0);
        let warps = (self.compact.threads() / 32).max(1);
        let blocks = longest.div_ceil(warps * MOVES_PER_WARP).clamp(1, self.blocks);
        for (first, count) in launches(compacted.len() as u32) {
            let from = |base: u64, bytes: usize| base + u64::from(first) * bytes as u64;
            let addresses = [
                arena,
                page_ids,
                from(compacted_at, size_of::<CompactHead>()),
                moves_at,
                from(counts_at, size_of::<u32>()),
                data.scores,
                data.positions,
            ];
            let stride = Argument::U32(data.stride);
            let arguments = [&addresses.map(Argument::U64)[..], &[stride]].concat();
            // SAFETY: the arguments are those of `headwise_compact`; the moves are those selected.
            unsafe { self.compact.launch(stream, [blocks, count, 1], &arguments) }?;
        }
        Ok(())
    }

    /// [`select`](Self::select) and [`compact`](Self::compact) in one, for pages that no other table has.
    ///
    /// # Safety
    /// As both, and no page of a head belongs to another table.
    pub unsafe fn evict(
        &mut self,
        heads: &[Losing],
        arena: u64,
        page_ids: u64,
        data: SlotAddresses,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let in_place = |head: &Losing| MovedTable { read: head.pages, written: head.pages };
        let tables: Vec<MovedTable> = heads.iter().map(in_place).collect();
        // SAFETY: the caller vouches for the tables; they are the ones selected from.
        unsafe {
            self.select(heads, page_ids, data, staging, stream)?;
            self.compact(&tables, arena, page_ids, data, staging, stream)
        }
    }

    /// The moves of the last [`select`](Self::select) or [`evict`](Self::evict), head by head, waiting for
    /// them: what the planner needs to know where positions went.
    pub fn moves(
        &self,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<Vec<Vec<SlotMove>>, DeviceError> {
        let end = self.last.last().map_or(0, |head| head.first_move + most_moves(head));
        let mut counts = vec![0u32; self.last.len()];
        let mut moves = vec![[0u32; 2]; end as usize];
        self.move_counts.download(staging, stream, &mut counts)?;
        self.moves.download(staging, stream, &mut moves)?;
        let of_head = |(head, &count): (&SelectHead, &u32)| {
            let first = head.first_move as usize;
            let moves = &moves[first..first + count.min(most_moves(head)) as usize];
            moves.iter().map(|&[from, to]| SlotMove { from, to }).collect()
        };
        Ok(self.last.par_iter().zip(&counts).map(of_head).collect())
    }
}
