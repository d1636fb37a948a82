//! What a device's store holds is what the host's holds.

use std::sync::Arc;

use super::{VerifyError, formats, noise::Noise, same_bytes};
use crate::{
    base::SlotMove,
    cuda::driver::{Context, Stream},
    device::{CudaStore, Kernels},
    format::PageLayout,
    store::{HostStore, PageStore, Rows, StoreError, TablePages},
};

const PAGES: usize = 24;
const PAGE_BYTES: usize = 4096;

/// A device store and a host store that are told the same hold the same bytes in every format: append,
/// moves, page copies, poison, reads, swapping. With `kernels`, these move slots and copy pages.
pub fn store_agrees_with_the_host(
    context: &Context,
    kernels: Option<&Arc<Kernels>>,
    seed: u64,
) -> Result<(), VerifyError> {
    let mut noise = Noise::new(seed);
    let stream = Arc::new(Stream::new(context)?);
    let mut device = CudaStore::new(stream, PAGES, PAGE_BYTES)?;
    if let Some(kernels) = kernels {
        device = device.with_kernels(Arc::clone(kernels))?;
    }
    let mut host = HostStore::new(PAGES, PAGE_BYTES)?;
    let all: Vec<u32> = (0..PAGES as u32).collect();
    for format in formats() {
        let dim = 16 * (1 + noise.below(5));
        let layout = PageLayout::new(format, dim, PAGE_BYTES)?;
        // Five pages in an order of their own.
        let first = noise.below(PAGES);
        let pages: Vec<u32> = (0..5).map(|i| ((first + 7 * i) % PAGES) as u32).collect();
        let table = TablePages { pages: &pages, layout: &layout };
        let count = 1 + noise.below(4 * layout.slots);
        let first = noise.below(5 * layout.slots - count);
        let (k, v) = (noise.values(count * dim), noise.values(count * dim));
        let (k, v) = (Rows::dense(&k, dim), Rows::dense(&v, dim));
        // Moves that depend on their order, then survivors into holes as an eviction makes them.
        let mut any = |count: usize| (first + noise.below(count)) as u32;
        let chain: Vec<SlotMove> =
            (0..5).map(|_| SlotMove { from: any(count), to: any(count) }).collect();
        let slots = (first + count) as u32;
        let holes = (0..count as u32 / 3).map(|i| SlotMove { from: slots - 1 - i, to: 2 * i / 3 });
        let holes: Vec<SlotMove> = holes.collect();
        let copies = [(pages[0], pages[1]), (pages[2], pages[3])];
        let poison = noise.below(3) == 0;
        let stores: [&mut dyn PageStore; 2] = [&mut device, &mut host];
        for store in stores {
            store.append(table, first, k, v)?;
            store.move_slots(table, &chain)?;
            store.move_slots(table, &holes)?;
            store.copy_pages(&copies)?;
            if poison {
                store.poison(&pages[4..])?;
            }
        }
        let mut bytes = vec![0; PAGES * PAGE_BYTES];
        device.read_pages(&all, &mut bytes)?;
        same_bytes("operations on pages", (format, dim), &bytes, host.bytes())?;
        let ours = rows(&device, table, first, count)?;
        let theirs = rows(&host, table, first, count)?;
        let [ours, theirs] = [&ours, &theirs].map(|rows| bytemuck::cast_slice::<f32, u8>(rows));
        same_bytes("reading rows", (format, dim), ours, theirs)?;
    }
    // Swapped out and in again elsewhere.
    let mut swapped = vec![0; 3 * PAGE_BYTES];
    device.read_pages(&[3, 9, 1], &mut swapped)?;
    device.write_pages(&[20, 0, 11], &swapped)?;
    let mut again = vec![0; 3 * PAGE_BYTES];
    device.read_pages(&[20, 0, 11], &mut again)?;
    same_bytes("swapping pages", (Default::default(), 0), &again, &swapped)
}

/// Keys, values, and keys again, as the two ways to read give them.
fn rows(
    store: &dyn PageStore,
    table: TablePages<'_>,
    first: usize,
    count: usize,
) -> Result<Vec<f32>, StoreError> {
    let values = count * table.layout.channels.k;
    let mut rows = vec![0f32; 3 * values];
    let (both, keys) = rows.split_at_mut(2 * values);
    let (k, v) = both.split_at_mut(values);
    store.read(table, first, k, v)?;
    store.read_keys(table, first, keys)?;
    Ok(rows)
}
