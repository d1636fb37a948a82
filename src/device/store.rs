//! Pages in device memory.

use std::{ops::Range, sync::Arc};

use parking_lot::Mutex;

use super::{
    error::DeviceError,
    loader::Kernels,
    moves::{Mover, independent, independent_pages},
};
use crate::{
    base::SlotMove,
    cuda::{
        CudaError, Staging,
        driver::{Context, DeviceBuffer, Stream},
    },
    format::{Overflow, PageLayout, Region},
    store::{
        PageStore, Rows, StoreError, TablePages,
        slots::{
            arena_bytes, check_page, check_rows, check_table, decode, encode, locate, ranges,
            slots_of, slots_of_both,
        },
    },
};

/// Slots of the staging ring, and their bytes.
const STAGING: (usize, usize) = (4, 4 << 20);

/// A store in one device arena.
///
/// Through [`PageStore`] it takes and gives host rows: they are encoded and decoded on the host, so
/// that only stored bytes cross the bus, and all copies go through pinned memory in the store's
/// stream. An engine whose rows are on the device appends and attends with kernels on
/// [`address`](Self::address) instead.
#[derive(Debug)]
pub struct CudaStore {
    arena: DeviceBuffer,
    stream: Arc<Stream>,
    staging: Mutex<Staging>,
    mover: Option<Mover>,
    page_bytes: usize,
    pages: usize,
}

impl CudaStore {
    /// A store of `pages` pages of `page_bytes` bytes each, whose copies run in `stream`. Its memory
    /// is zeroed.
    pub fn new(stream: Arc<Stream>, pages: usize, page_bytes: usize) -> Result<Self, StoreError> {
        let bytes = arena_bytes(pages, page_bytes)?;
        let mut arena = DeviceBuffer::new(stream.context(), bytes).map_err(device)?;
        arena.fill(0..bytes, 0, &stream).map_err(device)?;
        Self::with(arena, stream, pages, page_bytes)
    }

    /// A store in an engine's own device memory, whose bytes stay as they are.
    ///
    /// # Errors
    /// [`StoreError::BadSize`] too if the address is not aligned as pages are.
    ///
    /// # Safety
    /// As [`DeviceBuffer::from_raw`] for `pages * page_bytes` bytes at `address`.
    pub unsafe fn from_raw(
        stream: Arc<Stream>,
        address: u64,
        pages: usize,
        page_bytes: usize,
    ) -> Result<Self, StoreError> {
        let bytes = arena_bytes(pages, page_bytes)?;
        if !address.is_multiple_of(PageLayout::PAGE_ALIGN as u64) {
            return Err(StoreError::BadSize { pages, page_bytes });
        }
        // SAFETY: the caller vouches for the memory.
        let arena = unsafe { DeviceBuffer::from_raw(stream.context(), address, bytes) };
        Self::with(arena, stream, pages, page_bytes)
    }

    fn with(
        arena: DeviceBuffer,
        stream: Arc<Stream>,
        pages: usize,
        page_bytes: usize,
    ) -> Result<Self, StoreError> {
        let staging = Staging::new(stream.context(), STAGING.0, STAGING.1).map_err(device)?;
        let staging = Mutex::new(staging);
        Ok(Self { arena, stream, staging, mover: None, page_bytes, pages })
    }

    /// Lets kernels move slots and copy pages, one launch for any number of them. Without kernels each
    /// slot is four copies, which is right but slow.
    ///
    /// # Errors
    /// [`StoreError::Device`] if the kernels are of another context.
    pub fn with_kernels(mut self, kernels: Arc<Kernels>) -> Result<Self, StoreError> {
        if !kernels.context().same(self.context()) {
            return Err(device(DeviceError::OtherContext));
        }
        self.mover = Some(Mover::new(kernels));
        Ok(self)
    }

    /// The device address of page 0; page `i` is `i * page_bytes` further.
    pub fn address(&self) -> u64 {
        self.arena.address()
    }

    /// The stream of the store's copies.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// The context that the pages live in.
    pub fn context(&self) -> &Context {
        self.stream.context()
    }

    /// Copies whole pages to the host (swapping out), one after another into `to`, and waits.
    pub fn read_pages(&self, pages: &[u32], to: &mut [u8]) -> Result<(), StoreError> {
        self.check_swap(pages, to.len())?;
        let spans: Vec<Range<usize>> = pages.iter().map(|&page| self.span(page)).collect();
        self.staging.lock().download(&self.stream, &self.arena, &spans, to).map_err(device)
    }

    /// Queues copies of whole pages from the host (swapping in); `from` may be reused at once.
    pub fn write_pages(&mut self, pages: &[u32], from: &[u8]) -> Result<(), StoreError> {
        self.check_swap(pages, from.len())?;
        let starts = pages.iter().map(|&page| page as usize * self.page_bytes);
        let pieces = starts.zip(from.chunks_exact(self.page_bytes));
        self.staging.get_mut().upload(&self.stream, &mut self.arena, pieces).map_err(device)
    }

    fn check_swap(&self, pages: &[u32], got: usize) -> Result<(), StoreError> {
        pages.iter().try_for_each(|&page| check_page(page, self.pages))?;
        let expected = pages.len() * self.page_bytes;
        if got == expected {
            return Ok(());
        }
        Err(StoreError::WrongLength { what: "page bytes", got, expected })
    }

    /// Checks that the table is of this store and holds slots `range`. A layout's fields are anybody's
    /// to set, and kernels and copies trust them with addresses.
    fn check(&self, table: TablePages<'_>, range: &Range<usize>) -> Result<(), StoreError> {
        let PageLayout { format, channels, page_bytes, .. } = *table.layout;
        if page_bytes == self.page_bytes && !table.layout.is_genuine() {
            return Err(device(DeviceError::ForgedLayout { format, channels, page_bytes }));
        }
        check_table(self, table, range)
    }

    fn span(&self, page: u32) -> Range<usize> {
        let start = page as usize * self.page_bytes;
        start..start + self.page_bytes
    }

    /// Decodes consecutive slots, K, V or both.
    fn read_sides(
        &self,
        table: TablePages<'_>,
        first: usize,
        count: usize,
        mut k: Option<&mut [f32]>,
        mut v: Option<&mut [f32]>,
    ) -> Result<(), StoreError> {
        let layout = table.layout;
        self.check(table, &(first..first.saturating_add(count)))?;
        if count == 0 {
            return Ok(());
        }
        let pages = &table.pages[first / layout.slots..(first + count).div_ceil(layout.slots)];
        let mut bytes = vec![0; pages.len() * self.page_bytes];
        self.read_pages(pages, &mut bytes)?;
        let start = first / layout.slots * layout.slots;
        for i in 0..count {
            let (page, slot) = ((first + i - start) / layout.slots, (first + i) % layout.slots);
            let page = &bytes[page * self.page_bytes..][..self.page_bytes];
            let row = |dim: usize| i * dim..(i + 1) * dim;
            if let Some(k) = &mut k {
                decode(layout.format.k, layout.k, page, slot, &mut k[row(layout.channels.k)]);
            }
            if let Some(v) = &mut v {
                decode(layout.format.v, layout.v, page, slot, &mut v[row(layout.channels.v)]);
            }
        }
        Ok(())
    }
}

impl PageStore for CudaStore {
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
        let layout = *table.layout;
        check_rows(k, v, layout.channels)?;
        let count = k.count;
        self.check(table, &(first..first.saturating_add(count)))?;
        let mut scratch = vec![0; self.page_bytes];
        let (mut done, mut saturated) = (0, 0);
        while done < count {
            let (page, slot) = locate(table, first + done);
            let here = (layout.slots - slot).min(count - done);
            for i in 0..here {
                saturated += encode(&layout, &mut scratch, slot + i, (k, v), done + i, overflow)?;
            }
            // The page's other slots stay: only the new slots' part of each region is copied.
            let start = self.span(page).start;
            let parts = layout
                .stored()
                .flat_map(|region| slots_in(region, slot, here))
                .filter(|part| !part.is_empty());
            let pieces = parts.map(|part| (start + part.start, &scratch[part]));
            let staging = self.staging.get_mut();
            staging.upload(&self.stream, &mut self.arena, pieces).map_err(device)?;
            done += here;
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
        self.check(table, &(0..0))?;
        let count = slots_of_both(k.len(), v.len(), table.layout.channels)?;
        self.read_sides(table, first, count, Some(k), Some(v))
    }

    fn read_keys(
        &self,
        table: TablePages<'_>,
        first: usize,
        k: &mut [f32],
    ) -> Result<(), StoreError> {
        self.check(table, &(0..0))?;
        let count = slots_of("rows", k.len(), table.layout.channels.k)?;
        self.read_sides(table, first, count, Some(k), None)
    }

    fn move_slots(&mut self, table: TablePages<'_>, moves: &[SlotMove]) -> Result<(), StoreError> {
        self.check(table, &(0..0))?;
        for slot in moves.iter().flat_map(|m| [m.from as usize, m.to as usize]) {
            check_table(self, table, &(slot..slot + 1))?;
        }
        if let Some(mover) = &mut self.mover
            && moves.len() > 1
            && independent(moves)
        {
            let (pages, staging) = (self.arena.address(), self.staging.get_mut());
            return mover.move_slots(pages, table, moves, staging, &self.stream).map_err(device);
        }
        let layout = *table.layout;
        for m in moves {
            let (from, to) = (locate(table, m.from as usize), locate(table, m.to as usize));
            let (from_page, to_page) = (self.span(from.0).start, self.span(to.0).start);
            for region in layout.stored() {
                for (from, to) in
                    slots_in(region, from.1, 1).into_iter().zip(slots_in(region, to.1, 1))
                {
                    let (from, to, bytes) = (from_page + from.start, to_page + to.start, to.len());
                    self.arena.copy_within(from, to, bytes, &self.stream).map_err(device)?;
                }
            }
        }
        Ok(())
    }

    fn copy_pages(&mut self, copies: &[(u32, u32)]) -> Result<(), StoreError> {
        copies.iter().flat_map(|c| [c.0, c.1]).try_for_each(|page| check_page(page, self.pages))?;
        if let Some(mover) = &mut self.mover
            && copies.len() > 1
            && independent_pages(copies)
        {
            let (pages, staging) = (self.arena.address(), self.staging.get_mut());
            let bytes = self.page_bytes;
            return mover.copy_pages(pages, bytes, copies, staging, &self.stream).map_err(device);
        }
        for &(from, to) in copies {
            let (from, to) = (self.span(from).start, self.span(to).start);
            self.arena.copy_within(from, to, self.page_bytes, &self.stream).map_err(device)?;
        }
        Ok(())
    }

    fn poison(&mut self, pages: &[u32]) -> Result<(), StoreError> {
        pages.iter().try_for_each(|&page| check_page(page, self.pages))?;
        for &page in pages {
            // All ones is NaN in every format, as in the host store.
            let span = self.span(page);
            self.arena.fill(span, 0xff, &self.stream).map_err(device)?;
        }
        Ok(())
    }
}

/// The payload and the scales of `count` slots from `slot` on.
fn slots_in(region: Region, slot: usize, count: usize) -> [Range<usize>; 2] {
    let (payload, scales) = ranges(region, slot);
    [
        payload.start..payload.start + count * region.payload_stride,
        scales.start..scales.start + count * region.scale_stride,
    ]
}

/// What the device said, as the stores' trait has it.
fn device(error: impl Into<DeviceError>) -> StoreError {
    let error = error.into();
    match error {
        DeviceError::Cuda(CudaError::OutOfMemory { bytes, .. }) => {
            StoreError::OutOfMemory { bytes, reason: error.to_string() }
        }
        other => StoreError::Device(other.to_string()),
    }
}
