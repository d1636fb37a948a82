//! The kernels of eviction that work on scores at rest, and the one that reads slots back.

use half::f16;

use super::{
    error::BenchError,
    movers::{Bench, MOVED_SLOTS},
    report::MoverRow,
};
use crate::{
    cuda::{Staging, driver::Argument},
    device::{
        eviction::{
            GatherTable, Gatherer, PoolHead, PriceHead, SelectHead, SlotData, StepHead, StepScorer,
            StepTensors,
        },
        kernels::KernelFile,
    },
    measure::verify::Noise,
};

/// Slots of a head.
const SLOTS: u32 = MOVED_SLOTS;
/// Pages of a head that are priced.
const PRICED: u32 = 32;
/// Of the slots of a head, one in so many dies.
const DYING_ONE_IN: u32 = 4;

impl Bench<'_> {
    /// Random scores of all pages of the arena.
    pub(super) fn scores(&mut self) -> Result<SlotData, BenchError> {
        let (count, slots) = (self.arena.count(), self.layout().slots);
        let mut data = SlotData::new(self.clock.stream.context(), count, slots)?;
        let mut noise = Noise::new(11);
        let scores: Vec<u16> = (0..count * slots).map(|_| noise.below(0xffff) as u16).collect();
        let stream = self.clock.stream.clone();
        data.upload(&scores, &[], &mut self.staging, &stream)?;
        Ok(data)
    }

    /// Sums of a prompt to scores at rest.
    pub(super) fn score_pool(&mut self, data: &SlotData) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let (heads, pages) = self.heads();
        let kernel = self.kernels.get(KernelFile::ScorePool, &self.specialisation, &stream)?;
        let tables: Vec<PoolHead> = (0..heads)
            .map(|h| PoolHead { pages: h * pages, slots: SLOTS, sums: h * SLOTS })
            .collect();
        let tables = self.list(&tables)?;
        let slots = (heads * SLOTS) as usize;
        let mut sums = self.buffer(slots * self.plan.group * size_of::<f32>())?;
        sums.fill(0..sums.bytes(), 0x3c, &stream)?;
        let at = data.addresses();
        let addresses = [tables.address(), self.arena.ids(0, 0), sums.address(), 0, at.scores];
        let arguments = [&addresses.map(Argument::U64)[..], &[Argument::U32(at.stride)]].concat();
        let blocks = SLOTS.div_ceil(2 * kernel.threads());
        let bytes = sums.bytes() + slots * size_of::<u16>();
        let case = format!("{heads} heads of {SLOTS} slots");
        self.row("score_pool", case, bytes, &mut |_, stream| {
            // SAFETY: the arguments are those of `headwise_score_pool`; slots in order of positions.
            unsafe { kernel.launch(stream, [blocks, heads, 1], &arguments) }
        })
    }

    /// What one decode step adds.
    pub(super) fn score_step(&mut self, data: &SlotData) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let (heads, pages) = self.heads();
        let group = self.plan.group;
        let tables: Vec<StepHead> = (0..heads)
            .map(|h| StepHead {
                pages: h * pages,
                slots: SLOTS,
                logits: h * SLOTS,
                row: h * group as u32,
                head: h,
                sequence: 0,
            })
            .collect();
        let (kernels, specialisation) = (self.kernels, self.specialisation);
        let mut scorer = StepScorer::new(kernels, &specialisation, tables.len(), &stream)?;
        scorer.plan(&tables, &mut self.staging, &stream)?;
        let slots = (heads * SLOTS) as usize;
        let mut logits = self.buffer(slots * group * size_of::<f32>())?;
        let mut lse = self.buffer(heads as usize * group * size_of::<f32>())?;
        for buffer in [&mut logits, &mut lse] {
            buffer.fill(0..buffer.bytes(), 0x3c, &stream)?;
        }
        let tokens = self.list(&[SLOTS])?;
        let tensors = StepTensors {
            page_ids: self.arena.ids(0, 0),
            tokens: tokens.address(),
            logits: logits.address(),
            lse: lse.address(),
        };
        let bytes = logits.bytes() + 2 * slots * size_of::<u16>();
        let case = format!("{heads} heads of {SLOTS} slots");
        self.row("score_step", case, bytes, &mut |_, stream| {
            // SAFETY: the heads are those planned, and every buffer holds all their slots and rows.
            unsafe { scorer.launch(&tensors, data.addresses(), 1.0, stream) }
        })
    }

    /// What pages cost.
    pub(super) fn price(&mut self, data: &SlotData) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let (heads, pages) = self.heads();
        let kernel = self.kernels.get(KernelFile::Price, &self.specialisation, &stream)?;
        let head =
            |h| PriceHead { pages: h * pages, slots: SLOTS, begin: 0, end: SLOTS, most: u32::MAX };
        let tables: Vec<PriceHead> = (0..heads).map(head).collect();
        let tables = self.list(&tables)?;
        let costs = self.buffer((heads * PRICED) as usize * size_of::<u16>())?;
        let counts = self.buffer(heads as usize * size_of::<u32>())?;
        let at = data.addresses();
        let (ids, costs_at) = (self.arena.ids(0, 0), costs.address());
        let addresses = [tables.address(), ids, at.scores, 0, costs_at, counts.address()];
        let sizes = [PRICED, at.stride].map(Argument::U32);
        let arguments = [&addresses.map(Argument::U64)[..], &sizes].concat();
        // What it must read: each score once.
        let bytes = (heads * SLOTS) as usize * size_of::<u16>() + costs.bytes();
        let case = format!("{PRICED} pages of {heads} heads of {SLOTS} slots");
        self.row("price", case, bytes, &mut |_, stream| {
            // SAFETY: the arguments are those of `headwise_price`: slot i holds position i, and each head
            // has room for its costs.
            unsafe { kernel.launch(stream, [heads, 1, 1], &arguments) }
        })
    }

    /// Which slots die, and the moves.
    pub(super) fn select(&mut self, data: &SlotData) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let (heads, pages) = self.heads();
        let kernel = self.kernels.get(KernelFile::Select, &self.specialisation, &stream)?;
        let dying = SLOTS / DYING_ONE_IN;
        let tables: Vec<SelectHead> = (0..heads)
            .map(|h| SelectHead {
                pages: h * pages,
                slots: SLOTS,
                begin: 0,
                end: SLOTS,
                dying,
                first_move: h * dying,
            })
            .collect();
        let tables = self.list(&tables)?;
        let moves = self.buffer((heads * dying) as usize * size_of::<[u32; 2]>())?;
        let counts = self.buffer(heads as usize * size_of::<u32>())?;
        let at = data.addresses();
        let (ids, moves_at) = (self.arena.ids(0, 0), moves.address());
        let addresses = [tables.address(), ids, at.scores, 0, moves_at, counts.address()];
        let arguments = [&addresses.map(Argument::U64)[..], &[Argument::U32(at.stride)]].concat();
        // What it must read: each score once; what it writes depends on where the victims are.
        let bytes = (heads * SLOTS) as usize * size_of::<u16>();
        let case = format!("{dying} of {SLOTS} slots of {heads} heads");
        self.row("select", case, bytes, &mut |_, stream| {
            // SAFETY: the arguments are those of `headwise_select`: slot i holds position i, and each
            // head has room for as many moves as slots that die.
            unsafe { kernel.launch(stream, [heads, 1, 1], &arguments) }
        })
    }

    /// Slots as rows.
    pub(super) fn gather(&mut self) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let (heads, pages) = self.heads();
        let mut gatherer = Gatherer::new(self.kernels, &self.specialisation, &stream)?;
        let tables: Vec<GatherTable> = (0..heads)
            .map(|h| GatherTable { pages: h * pages, slots: SLOTS, row: h * SLOTS })
            .collect();
        let slots = (heads * SLOTS) as usize;
        let row = self.plan.head_dim * size_of::<f16>();
        let (keys, values) = (self.buffer(slots * row)?, self.buffer(slots * row)?);
        let rows = [keys.address(), values.address()];
        let (arena, total) = (self.arena, (heads * pages) as usize);
        let mut staging = Staging::new(stream.context(), 4, 1 << 16)?;
        let bytes = slots * (self.layout().slot_bytes() + 2 * row);
        let case = format!("{heads} heads of {SLOTS} slots");
        self.row("gather", case, bytes, &mut |turn, stream| {
            let store = [arena.pages(), arena.ids(turn, total)];
            // SAFETY: the tables are pages of the arena; both buffers have a row for each slot.
            unsafe { gatherer.launch(&tables, store, rows, &mut staging, stream) }
        })
    }
}
