//! The device's copy of the page tables.

use super::{
    error::DeviceError,
    image::{Extent, MirrorError, MirrorImage},
};
use crate::cuda::{
    Staging,
    driver::{Context, DeviceBuffer, Stream},
};

/// Unchanged page ids that are copied along rather than starting another copy: 16 KiB, which cross the
/// bus in less time than a copy takes to start. (Heads that fill a page at once change a word each.)
const GAP: u32 = 4096;

/// Ragged page tables on the device, in one buffer of fixed size and address (captured CUDA graphs
/// stay valid), brought up to date by what changed.
#[derive(Debug)]
pub struct TableMirror {
    image: MirrorImage,
    device: DeviceBuffer,
}

impl TableMirror {
    /// A mirror of `tables` tables with room for `capacity` page ids together.
    pub fn new(context: &Context, tables: usize, capacity: u32) -> Result<Self, DeviceError> {
        let device = DeviceBuffer::new(context, capacity as usize * size_of::<u32>())?;
        Ok(Self { image: MirrorImage::new(tables, capacity), device })
    }

    /// Makes `pages` the page ids of `table`, on the device after the next [`sync`](Self::sync).
    pub fn set(&mut self, table: usize, pages: &[u32]) -> Result<(), MirrorError> {
        self.image.set(table, pages)
    }

    /// Empties a table.
    pub fn clear(&mut self, table: usize) -> Result<(), MirrorError> {
        self.image.clear(table)
    }

    /// Where a table's page ids are, in words of the buffer.
    pub fn extent(&self, table: usize) -> Result<Extent, MirrorError> {
        self.image.extent(table)
    }

    /// The device address of the page ids; it never changes.
    pub fn address(&self) -> u64 {
        self.device.address()
    }

    /// Queues copies of what changed; returns the bytes copied. Kernels that run before them in
    /// `stream` still see the old tables, later ones see the new.
    pub fn sync(&mut self, staging: &mut Staging, stream: &Stream) -> Result<usize, DeviceError> {
        let ranges = self.image.dirty().take(GAP);
        let words = self.image.words();
        let pieces = ranges.iter().map(|range| {
            let bytes = bytemuck::cast_slice(&words[range.start as usize..range.end as usize]);
            (range.start as usize * size_of::<u32>(), bytes)
        });
        let sent = staging.upload(stream, &mut self.device, pieces);
        if let Err(error) = sent {
            // What may not have arrived is sent again by the next call.
            ranges.into_iter().for_each(|range| self.image.dirty().mark(range));
            return Err(error.into());
        }
        Ok(ranges.iter().map(|range| range.len() * size_of::<u32>()).sum())
    }
}
