//! A decode step's rows into pages, from what the device knows.

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

/// New K and V rows of one decode step: head `h` of sequence `s` is at `s * stride + h * head_dim`. Rows
/// start on 16 bytes in f32 and on 8 in f16 and bf16: four values are read at once.
#[derive(Clone, Copy, Debug)]
pub struct StepRows {
    /// Address of the K row of sequence 0, head 0, of the IO format, aligned as rows are.
    pub keys: u64,
    /// Address of its V row, likewise.
    pub values: u64,
    /// Values from one sequence to the next; a multiple of 4.
    pub stride: u32,
    /// KV heads of a sequence.
    pub heads: u32,
}

/// Encodes the rows of decode steps where the items of a [`Decoder`](super::Decoder) end, and counts
/// them there and in the heads of a [`StepScorer`](crate::device::eviction::StepScorer): the host plans
/// once for several steps, whose pages the tables have already.
#[derive(Debug)]
pub struct StepAppender {
    kernel: Arc<Loaded>,
    blocks: u32,
    growing: DeviceBuffer,
    rows: u32,
    saturated: Saturated,
}

impl StepAppender {
    /// Compiles the kernel and allocates for `most_rows` rows.
    pub fn new(
        kernels: &Kernels,
        specialisation: &Specialisation,
        most_rows: usize,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let kernel = kernels.get(KernelFile::AppendStep, specialisation, stream)?;
        let blocks = kernels.multiprocessors() * kernel.blocks_per_multiprocessor();
        let growing = DeviceBuffer::new(kernels.context(), most_rows * size_of::<u32>())?;
        Ok(Self { kernel, blocks, growing, rows: 0, saturated: Saturated::new(kernels, stream)? })
    }

    /// Says which item each row ends in: [`DecodePlan::ends`](super::DecodePlan::ends) of a plan whose
    /// heads are in the order of the rows.
    ///
    /// # Errors
    /// [`DeviceError::TooManyHeads`] beyond the rows allocated for.
    pub fn plan(
        &mut self,
        ends: &[u32],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let most = self.growing.bytes() / size_of::<u32>();
        if ends.len() > most {
            return Err(DeviceError::TooManyHeads { heads: ends.len(), most });
        }
        staging.upload(stream, &mut self.growing, [(0, bytemuck::cast_slice(ends))])?;
        self.rows = ends.len() as u32;
        Ok(())
    }

    /// Values of all launches so far that the pages' formats could not hold: too large, infinite or NaN.
    /// They were stored as [`Overflow::Saturate`](crate::format::Overflow::Saturate) says, never as
    /// something that is not finite. Waits for what is queued in `stream`, which the launches were queued
    /// in or which waits for them: ask where a step is waited for anyway.
    pub fn saturated(&self, staging: &mut Staging, stream: &Stream) -> Result<u64, DeviceError> {
        self.saturated.read(staging, stream)
    }

    /// Queues the launch. `[arena, page_ids, items, tokens, score_heads]` are device addresses;
    /// `tokens` counts the step's own, `score_heads` may be null, and so may the addresses of `data`.
    /// With `advance` off the items count the new slots already: another layer, with the same tables,
    /// was first.
    ///
    /// # Safety
    /// `stream` is the one it was made in, or runs behind that. The last [`plan`](Self::plan) succeeded and was
    /// queued in `stream` or before it; the addresses
    /// cover what the items and rows name, the tables have a page for the new slot of each row, until
    /// the stream is done.
    pub unsafe fn launch(
        &self,
        [arena, page_ids, items, tokens, score_heads]: [u64; 5],
        rows: &StepRows,
        data: SlotAddresses,
        advance: bool,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let warps = (self.kernel.threads() / 32).max(1);
        let grid = [self.rows.div_ceil(warps).min(self.blocks), 1, 1];
        let arguments = [
            Argument::U64(arena),
            Argument::U64(page_ids),
            Argument::U64(items),
            Argument::U64(self.growing.address()),
            Argument::U64(tokens),
            Argument::U64(rows.keys),
            Argument::U64(rows.values),
            Argument::U64(score_heads),
            Argument::U64(data.scores),
            Argument::U64(data.positions),
            Argument::U32(data.stride),
            Argument::U32(rows.stride),
            Argument::U32(rows.heads),
            Argument::U32(self.rows),
            Argument::U32(advance.into()),
            Argument::U64(self.saturated.address()),
        ];
        // SAFETY: the arguments are those of `headwise_append_step`; the caller vouches for the memory.
        unsafe { self.kernel.launch(stream, grid, &arguments) }
    }
}
