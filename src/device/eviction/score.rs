//! Scores at rest: from the sums of a prompt, and step by step.

use std::sync::Arc;

use super::{
    args::{PoolHead, StepHead},
    data::SlotAddresses,
    launches,
};
use crate::{
    cuda::{
        Staging,
        driver::{Argument, DeviceBuffer, Stream},
    },
    device::{
        error::DeviceError,
        kernels::{KernelFile, Specialisation},
        loader::{Kernels, Loaded},
    },
};

/// Slots that a thread scores in one launch, about: enough to cover the cost of starting it.
const SLOTS_PER_THREAD: usize = 2;

/// Blocks along x for heads of `slots` slots on average, of which a long one keeps its share.
fn blocks(slots: usize, heads: usize, threads: u32) -> u32 {
    let mean = slots.div_ceil(heads.max(1));
    mean.div_ceil(SLOTS_PER_THREAD * threads as usize).clamp(1, 64) as u32
}

/// Adds Σ p² of each decode step to the scores at rest, for the heads of one layer. The heads stay on
/// the device, where `headwise_append_step` counts their new slots.
#[derive(Debug)]
pub struct StepScorer {
    kernel: Arc<Loaded>,
    heads: DeviceBuffer,
    count: u32,
    blocks: u32,
}

/// What [`StepScorer::launch`] reads beside scores.
#[derive(Clone, Copy, Debug)]
pub struct StepTensors {
    /// Page ids, u32.
    pub page_ids: u64,
    /// Tokens that each sequence has seen, the step's included, u32.
    pub tokens: u64,
    /// `[slots, group]`, as a decode kernel with logits writes them.
    pub logits: u64,
    /// Log-sum-exps of the rows.
    pub lse: u64,
}

impl StepScorer {
    /// Compiles the kernel and allocates for `most_heads` heads.
    pub fn new(
        kernels: &Kernels,
        specialisation: &Specialisation,
        most_heads: usize,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let kernel = kernels.get(KernelFile::ScoreStep, specialisation, stream)?;
        let heads = DeviceBuffer::new(kernels.context(), most_heads * size_of::<StepHead>())?;
        Ok(Self { kernel, heads, count: 0, blocks: 0 })
    }

    /// The heads on the device, for [`StepAppender`](crate::device::attention::StepAppender) to count.
    pub fn heads(&self) -> u64 {
        self.heads.address()
    }

    /// Queues a copy of the heads of the next launches.
    ///
    /// # Errors
    /// [`DeviceError::TooManyHeads`] beyond those allocated for.
    pub fn plan(
        &mut self,
        heads: &[StepHead],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let most = self.heads.bytes() / size_of::<StepHead>();
        if heads.len() > most {
            return Err(DeviceError::TooManyHeads { heads: heads.len(), most });
        }
        staging.upload(stream, &mut self.heads, [(0, bytemuck::cast_slice(heads))])?;
        self.count = heads.len() as u32;
        let slots = heads.iter().map(|head| head.slots as usize).sum();
        self.blocks = blocks(slots, heads.len(), self.kernel.threads());
        Ok(())
    }

    /// Queues the launch. The step counts `weight` times: 1, or the number of steps of which one is
    /// scored.
    ///
    /// # Safety
    /// The last [`plan`](Self::plan) succeeded and was queued in `stream` or before it, its heads say
    /// what is in `tensors`, whose addresses and those of `data` cover what they name, until the stream
    /// is done.
    pub unsafe fn launch(
        &self,
        tensors: &StepTensors,
        data: SlotAddresses,
        weight: f32,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        for (first, count) in launches(self.count) {
            let heads = self.heads.address() + first as u64 * size_of::<StepHead>() as u64;
            let StepTensors { page_ids, tokens, logits, lse } = *tensors;
            let [heads, page_ids, tokens, logits, lse, scores] =
                [heads, page_ids, tokens, logits, lse, data.scores].map(Argument::U64);
            let (stride, weight) = (Argument::U32(data.stride), Argument::F32(weight));
            let arguments = [heads, page_ids, tokens, logits, lse, scores, stride, weight];
            // SAFETY: the arguments are those of `headwise_score_step`; the caller vouches for them.
            unsafe { self.kernel.launch(stream, [self.blocks, count, 1], &arguments) }?;
        }
        Ok(())
    }
}

/// Queues the scores at rest of a prompt: the sums of `headwise_score`, pooled over seven neighbouring
/// positions. `heads` is copied to `buffer` first.
///
/// # Errors
/// [`CudaError::OutOfBounds`](crate::cuda::CudaError::OutOfBounds) if `buffer` is too small for the heads.
///
/// # Safety
/// `page_ids`, `sums` and `order` (or null: slots are in the order of positions) are device addresses
/// that cover what the heads name, and so does `data`, until the stream is done; `buffer` is not
/// written meanwhile.
#[allow(clippy::too_many_arguments, reason = "one launch, and what it reads")]
pub unsafe fn pool_scores(
    kernels: &Kernels,
    specialisation: &Specialisation,
    heads: &[PoolHead],
    [page_ids, sums, order]: [u64; 3],
    data: SlotAddresses,
    buffer: &mut DeviceBuffer,
    staging: &mut Staging,
    stream: &Stream,
) -> Result<(), DeviceError> {
    let kernel = kernels.get(KernelFile::ScorePool, specialisation, stream)?;
    staging.upload(stream, buffer, [(0, bytemuck::cast_slice(heads))])?;
    let slots = heads.iter().map(|head| head.slots as usize).sum();
    let blocks = blocks(slots, heads.len(), kernel.threads());
    for (first, count) in launches(heads.len() as u32) {
        let at = buffer.address() + first as u64 * size_of::<PoolHead>() as u64;
        let [at, page_ids, sums, order, scores] =
            [at, page_ids, sums, order, data.scores].map(Argument::U64);
        let arguments = [at, page_ids, sums, order, scores, Argument::U32(data.stride)];
        // SAFETY: the arguments are those of `headwise_score_pool`; the caller vouches for them.
        unsafe { kernel.launch(stream, [blocks, count, 1], &arguments) }?;
    }
    Ok(())
}
