//! Moving slots and copying pages with kernels: one launch for any number of them.

use std::sync::Arc;

use super::{
    error::DeviceError,
    eviction::CompactHead,
    kernels::{KernelFile, Specialisation},
    loader::Kernels,
};
use crate::{
    base::{Channels, SlotMove},
    cuda::{
        Growing, Staging,
        driver::{Argument, Stream},
    },
    format::{PageFormat, PageLayout},
    store::TablePages,
};

/// Alignment of each list.
const ALIGN: usize = 16;

/// The kernels and the memory for their lists.
#[derive(Debug)]
pub struct Mover {
    kernels: Arc<Kernels>,
    lists: Growing,
}

impl Mover {
    pub fn new(kernels: Arc<Kernels>) -> Self {
        Self { kernels, lists: Growing::default() }
    }

    /// Queues moves of which no slot is an end twice: their order does not matter then.
    pub fn move_slots(
        &mut self,
        pages: u64,
        table: TablePages<'_>,
        moves: &[SlotMove],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let specialisation = Specialisation::new(*table.layout, 1);
        let kernel = self.kernels.get(KernelFile::Compact, &specialisation, stream)?;
        let head = CompactHead { read_pages: 0, written_pages: 0, first_move: 0 };
        let ends: Vec<[u32; 2]> = moves.iter().map(|m| [m.from, m.to]).collect();
        let count = moves.len() as u32;
        // Moves come first: they are read in pairs, which must be aligned to eight bytes.
        let parts: [&[u8]; 4] = [
            bytemuck::cast_slice(&ends),
            bytemuck::cast_slice(table.pages),
            bytemuck::bytes_of(&head),
            bytemuck::bytes_of(&count),
        ];
        let [moves, page_ids, heads, counts] = self.upload(parts, staging, stream)?;
        // A store has bytes; scores and positions are their owner's to move.
        let [scores, positions, stride] = [Argument::U64(0), Argument::U64(0), Argument::U32(0)];
        let [pages, page_ids, heads, moves, counts] =
            [pages, page_ids, heads, moves, counts].map(Argument::U64);
        let arguments = [pages, page_ids, heads, moves, counts, scores, positions, stride];
        let grid = [self.blocks(count, kernel.threads()), 1, 1];
        // SAFETY: the arguments are those of `headwise_compact`: one head, its pages, its moves. The
        // caller checked every slot against the table and every page against the arena.
        unsafe { kernel.launch(stream, grid, &arguments) }
    }

    /// Queues copies of whole pages of which none is written twice, or written and read.
    pub fn copy_pages(
        &mut self,
        pages: u64,
        page_bytes: usize,
        copies: &[(u32, u32)],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        // Whole pages are bytes: any format does that fits in them, and the smallest slot always does.
        let layout = PageLayout::new(PageFormat::default(), Channels::ALIGN, page_bytes)
            .map_err(|error| DeviceError::Layout(error.to_string()))?;
        let specialisation = Specialisation::new(layout, 1);
        let kernel = self.kernels.get(KernelFile::Copy, &specialisation, stream)?;
        let pairs: Vec<[u32; 2]> = copies.iter().map(|&(from, to)| [from, to]).collect();
        let [pairs] = self.upload([bytemuck::cast_slice(&pairs)], staging, stream)?;
        let count = copies.len() as u32;
        let [arena, pairs] = [pages, pairs].map(Argument::U64);
        let arguments = [arena, arena, pairs, Argument::U32(count)];
        let grid = [count.min(16 * self.kernels.multiprocessors()), 1, 1];
        // SAFETY: the arguments are those of `headwise_copy`; the caller checked every page.
        unsafe { kernel.launch(stream, grid, &arguments) }
    }

    /// Blocks for `count` warps' worth of work.
    fn blocks(&self, count: u32, threads: u32) -> u32 {
        count.div_ceil((threads / 32).max(1)).min(16 * self.kernels.multiprocessors())
    }

    /// Queues a copy of `parts`, one after another, each aligned; returns their addresses.
    fn upload<const N: usize>(
        &mut self,
        parts: [&[u8]; N],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<[u64; N], DeviceError> {
        let mut end = 0;
        let starts = parts.map(|part| {
            let start = end;
            end = (start + part.len()).next_multiple_of(ALIGN);
            start
        });
        let lists = self.lists.reserve(self.kernels.context(), end)?;
        staging.upload(stream, lists, starts.into_iter().zip(parts))?;
        let address = lists.address();
        Ok(starts.map(|start| address + start as u64))
    }
}

/// Whether no slot is an end twice: such moves may run at the same time.
pub fn independent(moves: &[SlotMove]) -> bool {
    distinct(moves.iter().flat_map(|m| [m.from, m.to]))
}

/// Whether no page is an end twice.
pub fn independent_pages(copies: &[(u32, u32)]) -> bool {
    distinct(copies.iter().flat_map(|&(from, to)| [from, to]))
}

fn distinct(ids: impl Iterator<Item = u32>) -> bool {
    let mut ids: Vec<u32> = ids.collect();
    ids.sort_unstable();
    ids.windows(2).all(|pair| pair[0] != pair[1])
}
