//! Pages in host memory.

use std::ops::Range;

use super::{
    PageStore, Rows, StoreError, TablePages,
    arena::Arena,
    slots::{
        arena_bytes, check_moves, check_page, check_rows, check_table, decode, encode, locate,
        slots_from, slots_of, slots_of_both,
    },
};
use crate::{
    base::SlotMove,
    format::{Overflow, Region, SlotFormat},
};

/// A store in one aligned host arena.
#[derive(Debug)]
pub struct HostStore {
    arena: Arena,
    page_bytes: usize,
    pages: usize,
}

impl HostStore {
    /// A store of `pages` pages of `page_bytes` bytes each.
    pub fn new(pages: usize, page_bytes: usize) -> Result<Self, StoreError> {
        Ok(Self { arena: Arena::new(arena_bytes(pages, page_bytes)?)?, page_bytes, pages })
    }

    /// All pages one after another: page `i` is at byte `i * page_bytes`.
    pub fn bytes(&self) -> &[u8] {
        self.arena.bytes()
    }

    /// The bytes of one page.
    pub fn page(&self, page: u32) -> Result<&[u8], StoreError> {
        check_page(page, self.pages)?;
        Ok(&self.arena.bytes()[self.span(page)])
    }

    /// Overwrites a page, with what [`page`](Self::page) returned before, say: nothing is encoded.
    pub fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), StoreError> {
        check_page(page, self.pages)?;
        let (got, expected) = (bytes.len(), self.page_bytes);
        if got != expected {
            return Err(StoreError::WrongLength { what: "bytes", got, expected });
        }
        self.page_mut(page).copy_from_slice(bytes);
        Ok(())
    }

    fn span(&self, page: u32) -> Range<usize> {
        let start = page as usize * self.page_bytes;
        start..start + self.page_bytes
    }

    fn page_mut(&mut self, page: u32) -> &mut [u8] {
        let span = self.span(page);
        &mut self.arena.bytes_mut()[span]
    }

    /// Decodes one side (K or V) of consecutive slots.
    fn read_side(
        &self,
        table: TablePages<'_>,
        first: usize,
        (format, region, channels): (SlotFormat, Region, usize),
        rows: &mut [f32],
    ) -> Result<(), StoreError> {
        let count = slots_of("rows", rows.len(), channels)?;
        check_table(self, table, &slots_from(table, first, count)?)?;
        for (i, row) in rows.chunks_exact_mut(channels).enumerate() {
            let (page, slot) = locate(table, first + i);
            let bytes = &self.arena.bytes()[self.span(page)];
            decode(format, region, bytes, slot, row);
        }
        Ok(())
    }
}

impl PageStore for HostStore {
    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn append_with(
        &mut self,
        table: TablePages<'_>,
        first: usize,
        k: Rows<'_>,
        v: Rows<'_>,
        overflow: Overflow,
    ) -> Result<usize, StoreError> {
        check_rows(k, v, table.layout.channels)?;
        check_table(self, table, &slots_from(table, first, k.count)?)?;
        let mut saturated = 0;
        for i in 0..k.count {
            let (page, slot) = locate(table, first + i);
            saturated += encode(table.layout, self.page_mut(page), slot, (k, v), i, overflow)?;
        }
        Ok(saturated)
    }

    fn read(
        &self,
        table: TablePages<'_>,
        first: usize,
        k: &mut [f32],
        v: &mut [f32],
    ) -> Result<(), StoreError> {
        let layout = table.layout;
        slots_of_both(k.len(), v.len(), layout.channels)?;
        self.read_side(table, first, (layout.format.k, layout.k, layout.channels.k), k)?;
        self.read_side(table, first, (layout.format.v, layout.v, layout.channels.v), v)
    }

    fn read_keys(
        &self,
        table: TablePages<'_>,
        first: usize,
        k: &mut [f32],
    ) -> Result<(), StoreError> {
        let layout = table.layout;
        self.read_side(table, first, (layout.format.k, layout.k, layout.channels.k), k)
    }

    fn move_slots(&mut self, table: TablePages<'_>, moves: &[SlotMove]) -> Result<(), StoreError> {
        check_moves(self, table, moves)?;
        let layout = *table.layout;
        for m in moves {
            let (from, to) = (locate(table, m.from as usize), locate(table, m.to as usize));
            let (from_page, to_page) = (self.span(from.0).start, self.span(to.0).start);
            let bytes = self.arena.bytes_mut();
            for region in layout.stored() {
                for (start, stride) in
                    [(region.payload, region.payload_stride), (region.scales, region.scale_stride)]
                {
                    let from = from_page + start + from.1 * stride;
                    let to = to_page + start + to.1 * stride;
                    bytes.copy_within(from..from + stride, to);
                }
            }
        }
        Ok(())
    }

    fn copy_pages(&mut self, copies: &[(u32, u32)]) -> Result<(), StoreError> {
        copies.iter().flat_map(|c| [c.0, c.1]).try_for_each(|page| check_page(page, self.pages))?;
        for &(from, to) in copies {
            let (from, to) = (self.span(from), self.span(to).start);
            self.arena.bytes_mut().copy_within(from, to);
        }
        Ok(())
    }

    fn poison(&mut self, pages: &[u32]) -> Result<(), StoreError> {
        pages.iter().try_for_each(|&page| check_page(page, self.pages))?;
        // All ones is NaN in every floating-point format and in every format's scales, so the bytes
        // need not know which format the page had.
        pages.iter().for_each(|&page| self.page_mut(page).fill(0xff));
        Ok(())
    }
}
