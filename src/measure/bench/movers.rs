//! The kernels beside decode: what they must read and write, over the time they take.

use half::f16;

use super::{
    arena::{Arena, upload},
    clock::{Clock, Launch},
    error::BenchError,
    plan::BenchPlan,
    report::MoverRow,
};
use crate::{
    cuda::{
        Staging,
        driver::{Argument, DeviceBuffer},
    },
    device::{
        DeviceError, Kernels,
        attention::{
            Appender, MergeItem, NewRows, PrefillHead, ScoreItem, StepAppender, StepRows, WorkItem,
            prefill_items,
        },
        eviction::{CompactHead, SlotAddresses},
        kernels::{KernelFile, Specialisation},
    },
    format::{PageFormat, PageLayout, SlotFormat},
    measure::verify::Noise,
};

/// (token, KV head) rows of an append: 8,192 tokens of eight heads.
const APPENDED: usize = 64 << 10;
/// (sequence, KV head) rows of a decode step: 256 sequences of eight heads.
const STEP_ROWS: usize = 2 << 10;
/// Bytes of the pages that are copied, read by scores, or hold the moved slots.
const MOVED_BYTES: usize = 512 << 20;
/// Tokens of a prefill chunk, and slots that it ends at.
const CHUNK: (u32, u32) = (1024, 8192);
/// Query tokens that score slots.
const WINDOW: u32 = 32;
/// Merges, and the parts of each.
const MERGED: (u32, u32) = (16 << 10, 8);
/// Of the slots of a head, one in so many is moved.
const MOVED_ONE_IN: u32 = 4;
/// Slots of a head whose slots are scored, moved or read.
pub(super) const MOVED_SLOTS: u32 = 8192;

/// What the measurements share.
pub(super) struct Bench<'a> {
    pub clock: &'a mut Clock,
    pub kernels: &'a Kernels,
    pub arena: &'a Arena,
    pub plan: &'a BenchPlan,
    format: PageFormat,
    pub specialisation: Specialisation,
    pub staging: Staging,
}

/// Bytes of the pages that the kernels work on at a time.
pub fn page_bytes(layout: &PageLayout, plan: &BenchPlan) -> usize {
    let (heads, pages) = moved_heads(layout, MOVED_SLOTS);
    let chunk = plan.kv_heads * (CHUNK.1 as usize).div_ceil(layout.slots);
    chunk.max((heads * pages) as usize).saturating_mul(layout.page_bytes)
}

/// Heads of `slots` slots that fit in about [`MOVED_BYTES`] of pages, and the pages of each.
fn moved_heads(layout: &PageLayout, slots: u32) -> (u32, u32) {
    let pages = slots.div_ceil(layout.slots as u32);
    let heads = MOVED_BYTES / (pages as usize * layout.page_bytes);
    (heads.max(1) as u32, pages)
}

/// Times each kernel on pages of one format.
pub fn measure(
    clock: &mut Clock,
    kernels: &Kernels,
    arena: &Arena,
    plan: &BenchPlan,
    format: PageFormat,
) -> Result<Vec<MoverRow>, BenchError> {
    let staging = Staging::new(clock.stream.context(), 2, 1 << 20)?;
    let specialisation =
        Specialisation { io: SlotFormat::F16, ..Specialisation::new(arena.layout, plan.group) };
    let mut bench = Bench { clock, kernels, arena, plan, format, specialisation, staging };
    let data = bench.scores()?;
    Ok(vec![
        bench.append()?,
        bench.append_step()?,
        bench.prefill()?,
        bench.merge()?,
        bench.score()?,
        bench.score_pool(&data)?,
        bench.score_step(&data)?,
        bench.price(&data)?,
        bench.select(&data)?,
        bench.compact()?,
        bench.copy()?,
        bench.gather()?,
    ])
}

impl Bench<'_> {
    pub(super) fn layout(&self) -> &PageLayout {
        &self.arena.layout
    }

    pub(super) fn row(
        &mut self,
        kernel: &'static str,
        case: String,
        bytes: usize,
        launch: &mut Launch<'_>,
    ) -> Result<MoverRow, BenchError> {
        let seconds = self.clock.median(launch)?;
        let (micros, gbps) = (seconds * 1e6, bytes as f64 / seconds / 1e9);
        let format = self.format;
        Ok(MoverRow { kernel, format, case, bytes, micros, gbps, share: 0.0, tflops: None })
    }

    pub(super) fn buffer(&self, bytes: usize) -> Result<DeviceBuffer, DeviceError> {
        Ok(DeviceBuffer::new(self.clock.stream.context(), bytes)?)
    }

    pub(super) fn list<T: bytemuck::Pod>(
        &mut self,
        values: &[T],
    ) -> Result<DeviceBuffer, DeviceError> {
        Ok(upload(values, &mut self.staging, &self.clock.stream)?)
    }

    /// Random rows of the IO format.
    fn rows(&mut self, rows: usize) -> Result<DeviceBuffer, DeviceError> {
        let values = Noise::new(5).values(rows * self.plan.head_dim);
        let values: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
        self.list(&values)
    }

    /// Heads of [`MOVED_SLOTS`] slots that a kernel works on at a time, and the pages of each.
    pub(super) fn heads(&self) -> (u32, u32) {
        moved_heads(self.layout(), MOVED_SLOTS)
    }

    fn append(&mut self) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let (slots, dim) = (self.layout().slots as u64, self.plan.head_dim);
        let rows = APPENDED.min(self.arena.count() * slots as usize);
        // Slot after slot of page after page, as a prefill appends.
        let places: Vec<u64> = (0..rows as u64).collect();
        let mut appender = Appender::new(self.kernels, &self.specialisation, rows, &stream)?;
        appender.plan(&places, &[], &mut self.staging, &stream)?;
        let (keys, values) = (self.rows(rows)?, self.rows(rows)?);
        let new = NewRows {
            keys: keys.address(),
            values: values.address(),
            key_stride: dim as u32,
            value_stride: dim as u32,
        };
        let bytes = rows * (2 * dim * size_of::<f16>() + self.layout().slot_bytes());
        let pages = self.arena.pages();
        self.row("append", format!("{rows} rows"), bytes, &mut |_, stream| {
            // SAFETY: the arena has all these slots, and both buffers all rows.
            unsafe { appender.launch(pages, &new, SlotAddresses::default(), stream) }
        })
    }

    fn append_step(&mut self) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let (heads, dim) = (self.plan.kv_heads, self.plan.head_dim);
        // Each row ends in a page of its own. Layers that share tables store and do not count: so does
        // every launch here.
        let sequences = (STEP_ROWS / heads).clamp(1, (self.arena.count() / heads).max(1));
        let rows = sequences * heads;
        let item = |i| WorkItem { pages: i, slots: 1, partial: u32::MAX, ..WorkItem::default() };
        let items: Vec<WorkItem> = (0..rows as u32).map(item).collect();
        let ends: Vec<u32> = (0..rows as u32).collect();
        let (kernels, specialisation) = (self.kernels, self.specialisation);
        let mut appender = StepAppender::new(kernels, &specialisation, rows, &stream)?;
        appender.plan(&ends, &mut self.staging, &stream)?;
        let (items, tokens) = (self.list(&items)?, self.list(&vec![1u32; sequences])?);
        let (keys, values) = (self.rows(rows)?, self.rows(rows)?);
        let new = StepRows {
            keys: keys.address(),
            values: values.address(),
            stride: (heads * dim) as u32,
            heads: heads as u32,
        };
        let bytes = rows * (2 * dim * size_of::<f16>() + self.layout().slot_bytes());
        let arena = self.arena;
        let case = format!("{rows} rows of {sequences} sequences");
        self.row("append_step", case, bytes, &mut |turn, stream| {
            let ids = arena.ids(turn, rows);
            let addresses = [arena.pages(), ids, items.address(), tokens.address(), 0];
            // SAFETY: the items are pages of the arena with a slot each, and both buffers hold all rows.
            unsafe { appender.launch(addresses, &new, SlotAddresses::default(), false, stream) }
        })
    }

    fn prefill(&mut self) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let kernel = self.kernels.get(KernelFile::Prefill, &self.specialisation, &stream)?;
        let ((tokens, slots), dim) = (CHUNK, self.plan.head_dim);
        let (kv_heads, group) = (self.plan.kv_heads, self.plan.group);
        let query_heads = kv_heads * group;
        let pages = slots.div_ceil(self.layout().slots as u32);
        let heads: Vec<PrefillHead> = (0..kv_heads as u32)
            .map(|h| PrefillHead { query: h * group as u32, pages: h * pages, slots, tokens })
            .collect();
        let items = prefill_items(&heads, group as u32, kernel.rows().unwrap_or(1));
        let list = self.list(&items)?;
        let rows = tokens as usize * query_heads;
        let queries = self.rows(rows)?;
        let (out, lse) = (self.buffer(rows * dim * size_of::<f16>())?, self.buffer(rows * 4)?);
        let addresses = [&list, &queries, &out, &lse].map(|b| Argument::U64(b.address()));
        let (pages_at, stride) = (self.arena.pages(), query_heads as u32);
        let (arena, scale) = (self.arena, 1.0 / (dim as f32).sqrt());
        let total = (kv_heads as u32 * pages) as usize;
        let kv = kv_heads * slots as usize * self.layout().slot_bytes();
        let bytes = kv + 2 * rows * dim * size_of::<f16>();
        let case = format!("{tokens} tokens to slot {slots}");
        let mut row = self.row("prefill", case, bytes, &mut |turn, stream| {
            let store = [pages_at, arena.ids(turn, total)].map(Argument::U64);
            let shape = [Argument::U32(stride), Argument::F32(scale)];
            let arguments = [&store[..], &addresses, &shape].concat();
            // SAFETY: the arguments are those of `headwise_prefill`; the buffers hold all rows.
            unsafe { kernel.launch(stream, [items.len() as u32, 1, 1], &arguments) }
        })?;
        // Each token sees one slot more than the last: K and V, two operations per multiply-add.
        let pairs: u64 = (0..u64::from(tokens)).map(|t| u64::from(slots - tokens) + t + 1).sum();
        let operations = 4.0 * pairs as f64 * (query_heads * dim) as f64;
        row.tflops = Some(operations / row.micros / 1e6);
        Ok(row)
    }

    fn merge(&mut self) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let kernel = self.kernels.get(KernelFile::Merge, &self.specialisation, &stream)?;
        let ((merges, parts), group) = (MERGED, self.plan.group as u32);
        let items: Vec<MergeItem> = (0..merges)
            .map(|i| MergeItem { query: i * group, first: i * parts, count: parts })
            .collect();
        let list = self.list(&items)?;
        let (rows, dim) = ((merges * group) as usize, self.plan.head_dim);
        let partial_rows = rows * parts as usize;
        let mut partial_out = self.buffer(partial_rows * dim * 4)?;
        let mut partial_lse = self.buffer(partial_rows * 4)?;
        // Small numbers, all alike: the merge's time does not depend on them.
        for buffer in [&mut partial_out, &mut partial_lse] {
            buffer.fill(0..buffer.bytes(), 0x3c, &stream)?;
        }
        let (out, lse) = (self.buffer(rows * dim * size_of::<f16>())?, self.buffer(rows * 4)?);
        let arguments = [&list, &partial_out, &partial_lse, &out, &lse]
            .map(|buffer| Argument::U64(buffer.address()));
        let bytes = partial_out.bytes() + partial_lse.bytes() + out.bytes() + lse.bytes();
        let case = format!("{rows} rows of {parts} parts");
        self.row("merge", case, bytes, &mut |_, stream| {
            // SAFETY: the arguments are those of `headwise_merge`; the buffers hold all rows.
            unsafe { kernel.launch(stream, [merges, group, 1], &arguments) }
        })
    }

    fn score(&mut self) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let kernel = self.kernels.get(KernelFile::Score, &self.specialisation, &stream)?;
        let (window, slots, group) = (WINDOW, MOVED_SLOTS, self.plan.group);
        let (heads, pages) = self.heads();
        let stride = heads * group as u32;
        let items: Vec<ScoreItem> = (0..heads)
            .map(|h| ScoreItem {
                query: h * group as u32,
                pages: h * pages,
                slots,
                first_slot: 0,
                before: slots - window,
                window,
                sums: h * slots,
                skip: 0,
            })
            .collect();
        let list = self.list(&items)?;
        let rows = (window * stride) as usize;
        let queries = self.rows(rows)?;
        let mut lse = self.buffer(rows * 4)?;
        lse.fill(0..rows * 4, 0x3c, &stream)?;
        let sums = self.buffer((heads * slots) as usize * group * 4)?;
        let addresses = [&list, &queries, &lse, &sums].map(|b| Argument::U64(b.address()));
        let (arena, pages_at) = (self.arena, self.arena.pages());
        let scale = 1.0 / (self.plan.head_dim as f32).sqrt();
        let k = self.layout().k;
        let keys = (heads * slots) as usize * (k.payload_stride + k.scale_stride);
        let case = format!("{heads} heads of {slots} slots, {window} queries");
        self.row("score", case, keys + sums.bytes(), &mut |turn, stream| {
            let store = [pages_at, arena.ids(turn, (heads * pages) as usize)].map(Argument::U64);
            let shape = [Argument::U32(stride), Argument::F32(scale)];
            let arguments = [&store[..], &addresses, &shape].concat();
            // SAFETY: the arguments are those of `headwise_score`; `sums` has a place for each slot
            // and query head of the group.
            unsafe { kernel.launch(stream, [heads, group as u32, 1], &arguments) }
        })
    }

    fn compact(&mut self) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let kernel = self.kernels.get(KernelFile::Compact, &self.specialisation, &stream)?;
        let slots = MOVED_SLOTS;
        let (heads, pages) = self.heads();
        let each = slots / MOVED_ONE_IN;
        // Survivors of the last quarter go where victims of the rest were.
        let ends = (0..each).map(|i| [slots - each + i, i * (slots - each) / each]);
        let moves: Vec<[u32; 2]> = (0..heads).flat_map(|_| ends.clone()).collect();
        let tables: Vec<CompactHead> = (0..heads)
            .map(|h| CompactHead {
                read_pages: h * pages,
                written_pages: h * pages,
                first_move: h * each,
            })
            .collect();
        let counts = vec![each; heads as usize];
        let (moves, tables, counts) =
            (self.list(&moves)?, self.list(&tables)?, self.list(&counts)?);
        let bytes = (heads * each) as usize * 2 * self.layout().slot_bytes();
        let addresses = [
            self.arena.pages(),
            self.arena.ids(0, 0),
            tables.address(),
            moves.address(),
            counts.address(),
            // No scores and no positions move along.
            0,
            0,
        ];
        let arguments = [&addresses.map(Argument::U64)[..], &[Argument::U32(0)]].concat();
        let blocks = each.div_ceil((kernel.threads() / 32).max(1));
        let case = format!("{} slots of {heads} heads", heads * each);
        self.row("compact", case, bytes, &mut |_, stream| {
            // SAFETY: the arguments are those of `headwise_compact`: slots of tables of the arena.
            unsafe { kernel.launch(stream, [blocks, heads, 1], &arguments) }
        })
    }

    fn copy(&mut self) -> Result<MoverRow, BenchError> {
        let stream = self.clock.stream.clone();
        let kernel = self.kernels.get(KernelFile::Copy, &self.specialisation, &stream)?;
        let page_bytes = self.layout().page_bytes;
        let count = (MOVED_BYTES / page_bytes).min(self.arena.count() / 2) as u32;
        // Pages next to each other in the list lie apart: a prime step, odd pages from even ones.
        let step = |i: u32| (u64::from(i) * 7919 % u64::from(count)) as u32;
        let pairs: Vec<[u32; 2]> = (0..count).map(|i| [2 * step(i), 2 * step(i) + 1]).collect();
        let pairs = self.list(&pairs)?;
        let pages = self.arena.pages();
        let addresses = [pages, pages, pairs.address()].map(Argument::U64);
        let arguments = [&addresses[..], &[Argument::U32(count)]].concat();
        let blocks = count.min(16 * self.kernels.multiprocessors());
        let bytes = 2 * count as usize * page_bytes;
        self.row("copy", format!("{count} pages"), bytes, &mut |_, stream| {
            // SAFETY: the arguments are those of `headwise_copy`; even pages are read, odd ones
            // written, and the arena has them all.
            unsafe { kernel.launch(stream, [blocks, 1, 1], &arguments) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel finds its page ids in the arena, however many heads there are.
    #[test]
    fn arenas_have_the_pages_of_every_kernel() {
        for kv_heads in [1, 8, 512] {
            for format in SlotFormat::ALL.iter().map(|&format| PageFormat::both(format)) {
                let plan = BenchPlan { kv_heads, ..BenchPlan::default() };
                let layout = plan.layout(format).unwrap();
                let pages = page_bytes(&layout, &plan) / layout.page_bytes;
                // A prefill reads 8,192 slots of each head.
                assert!(pages >= kv_heads * 8192usize.div_ceil(layout.slots), "{format}");
            }
        }
    }
}
