//! Pages full of plausible values, in no order.

use super::clock::Clock;
use crate::{
    cuda::{
        CudaError, Staging,
        driver::{DeviceBuffer, Stream},
    },
    format::PageLayout,
    measure::verify::{Noise, VerifyError},
    store::{HostStore, PageStore, Rows, TablePages},
};

/// Pages that the host encodes; the rest are copies of them.
const ENCODED: usize = 1024;
/// Data sets of one case rotate over at least so many bytes: several times the largest cache.
const ROTATED_BYTES: usize = 1 << 30;

/// One device arena, and its page ids shuffled.
pub struct Arena {
    pub layout: PageLayout,
    pages: DeviceBuffer,
    ids: DeviceBuffer,
    count: usize,
}

impl Arena {
    /// At least `bytes` bytes of pages.
    pub fn new(clock: &Clock, layout: PageLayout, bytes: usize) -> Result<Self, VerifyError> {
        let (context, stream) = (clock.stream.context(), &*clock.stream);
        let count = bytes.max(ROTATED_BYTES).div_ceil(layout.page_bytes);
        let mut staging = Staging::new(context, 2, 4 << 20)?;
        let mut pages = DeviceBuffer::new(context, count * layout.page_bytes)?;
        let encoded = encoded(&layout, ENCODED.min(count))?;
        staging.upload(stream, &mut pages, [(0, encoded.bytes())])?;
        let mut filled = encoded.bytes().len();
        while filled < pages.bytes() {
            let more = filled.min(pages.bytes() - filled);
            pages.copy_within(0, filled, more, stream)?;
            filled += more;
        }
        let mut noise = Noise::new(1);
        let mut order: Vec<u32> = (0..count as u32).collect();
        for i in (1..count).rev() {
            order.swap(i, noise.below(i + 1));
        }
        let ids = upload(&order, &mut staging, stream)?;
        stream.synchronize()?;
        Ok(Self { layout, pages, ids, count })
    }

    /// The address of page 0.
    pub fn pages(&self) -> u64 {
        self.pages.address()
    }

    /// Pages there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The address of the page ids of the `turn`th data set of `pages` pages.
    pub fn ids(&self, turn: usize, pages: usize) -> u64 {
        let sets = (self.count / pages.max(1)).max(1);
        self.ids.address() + (turn % sets * pages * size_of::<u32>()) as u64
    }
}

/// Copies a list to memory of its own.
pub fn upload<T: bytemuck::Pod>(
    values: &[T],
    staging: &mut Staging,
    stream: &Stream,
) -> Result<DeviceBuffer, CudaError> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let mut buffer = DeviceBuffer::new(stream.context(), bytes.len())?;
    staging.upload(stream, &mut buffer, [(0, bytes)])?;
    Ok(buffer)
}

/// `count` pages of random rows.
fn encoded(layout: &PageLayout, count: usize) -> Result<HostStore, VerifyError> {
    let mut store = HostStore::new(count, layout.page_bytes)?;
    let pages: Vec<u32> = (0..count as u32).collect();
    let table = TablePages { pages: &pages, layout };
    let slots = count * layout.slots;
    let dim = layout.channels.k;
    let rows = Noise::new(2).values(slots * dim);
    let (k, v) = (Rows::dense(&rows, dim), Rows::dense(&rows, dim));
    store.append(table, 0, k, v)?;
    Ok(store)
}
