//! New rows into pages, on the device.

use std::sync::Arc;

use super::saturated::Saturated;
use crate::{
    cuda::{
        Staging,
        driver::{Argument, DeviceBuffer, Stream},
    },
    device::{
        error::DeviceError,
        eviction::SlotAddresses,
        kernels::{KernelFile, Specialisation},
        loader::{Kernels, Loaded},
    },
};

/// The slot of a row that is not stored.
pub const NO_SLOT: u64 = u64::MAX;

/// New K and V rows on the device, a row per (token, KV head). Rows start on 16 bytes in f32 and on 8 in
/// f16 and bf16: four values are read at once.
#[derive(Clone, Copy, Debug)]
pub struct NewRows {
    /// Address of the first K row, of the IO format, aligned as rows are.
    pub keys: u64,
    /// Address of the first V row, likewise.
    pub values: u64,
    /// Values from one K row to the next; a multiple of 4.
    pub key_stride: u32,
    /// Values from one V row to the next; a multiple of 4.
    pub value_stride: u32,
}

/// Encodes new rows into pages of one specialisation, up to a number of rows.
#[derive(Debug)]
pub struct Appender {
    kernel: Arc<Loaded>,
    blocks: u32,
    most_rows: usize,
    slots: DeviceBuffer,
    positions: DeviceBuffer,
    rows: u32,
    /// Whether the last plan said which positions the rows have.
    placed: bool,
    saturated: Saturated,
}

impl Appender {
    /// Compiles the kernel and allocates for `most_rows` rows.
    pub fn new(
        kernels: &Kernels,
        specialisation: &Specialisation,
        most_rows: usize,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let kernel = kernels.get(KernelFile::Append, specialisation, stream)?;
        let blocks = kernels.multiprocessors() * kernel.blocks_per_multiprocessor();
        let slots = DeviceBuffer::new(kernels.context(), most_rows * size_of::<u64>())?;
        let positions = DeviceBuffer::new(kernels.context(), most_rows * size_of::<u32>())?;
        let saturated = Saturated::new(kernels, stream)?;
        let (rows, placed) = (0, false);
        Ok(Self { kernel, blocks, most_rows, slots, positions, rows, placed, saturated })
    }

    /// Says where the rows of the next launches go: `page * page_slots + slot`, all different, or
    /// [`NO_SLOT`]. A captured graph has the number of rows fixed; pad with [`NO_SLOT`]. `positions` are
    /// the positions of the rows' tokens, for launches that write them; else it is empty.
    ///
    /// # Errors
    /// [`DeviceError::TooManyHeads`] beyond the rows allocated for; [`DeviceError::WrongLength`] for
    /// positions of other rows.
    pub fn plan(
        &mut self,
        slots: &[u64],
        positions: &[u32],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        if slots.len() > self.most_rows {
            let (heads, most) = (slots.len(), self.most_rows);
            return Err(DeviceError::TooManyHeads { heads, most });
        }
        if !positions.is_empty() && positions.len() != slots.len() {
            let (got, expected) = (positions.len(), slots.len());
            return Err(DeviceError::WrongLength { what: "positions of rows", got, expected });
        }
        staging.upload(stream, &mut self.slots, [(0, bytemuck::cast_slice(slots))])?;
        staging.upload(stream, &mut self.positions, [(0, bytemuck::cast_slice(positions))])?;
        self.rows = slots.len() as u32;
        self.placed = positions.len() == slots.len();
        Ok(())
    }

    /// Values of all launches so far that the pages' formats could not hold: too large, infinite or NaN.
    /// They were stored as [`Overflow::Saturate`](crate::format::Overflow::Saturate) says, never as
    /// something that is not finite. Waits for what is queued in `stream`, which the launches were queued
    /// in or which waits for them: ask where a step is waited for anyway.
    pub fn saturated(&self, staging: &mut Staging, stream: &Stream) -> Result<u64, DeviceError> {
        self.saturated.read(staging, stream)
    }

    /// Queues the launch. New slots get a score of zero and their position in `data`, whose addresses
    /// may be null.
    ///
    /// # Errors
    /// [`DeviceError::WrongLength`] if `data` has positions and the last plan had none.
    ///
    /// # Safety
    /// `stream` is the one it was made in, or runs behind that. The last [`plan`](Self::plan) succeeded and was
    /// queued in `stream` or before it; `pages` is an
    /// arena that has every slot it named; `rows` has as many rows, aligned as [`NewRows`] says; `data`
    /// covers the arena's slots; all until the stream is done.
    pub unsafe fn launch(
        &self,
        pages: u64,
        rows: &NewRows,
        data: SlotAddresses,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        if data.positions != 0 && !self.placed {
            let expected = self.rows as usize;
            return Err(DeviceError::WrongLength { what: "positions of rows", got: 0, expected });
        }
        let warps = (self.kernel.threads() / 32).max(1);
        let grid = [self.rows.div_ceil(warps).min(self.blocks), 1, 1];
        let arguments = [
            Argument::U64(pages),
            Argument::U64(self.slots.address()),
            Argument::U64(rows.keys),
            Argument::U64(rows.values),
            Argument::U64(self.positions.address()),
            Argument::U64(data.scores),
            Argument::U64(data.positions),
            Argument::U32(data.stride),
            Argument::U32(rows.key_stride),
            Argument::U32(rows.value_stride),
            Argument::U32(self.rows),
            Argument::U64(self.saturated.address()),
        ];
        // SAFETY: the arguments are those of `headwise_append`; the caller vouches for the memory.
        unsafe { self.kernel.launch(stream, grid, &arguments) }
    }
}
