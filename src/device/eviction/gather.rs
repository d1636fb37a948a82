//! Slots of head tables as contiguous rows.

use std::sync::Arc;

use super::{args::GatherTable, launches};
use crate::{
    cuda::{
        Growing, Staging,
        driver::{Argument, Stream},
    },
    device::{
        error::DeviceError,
        kernels::{KernelFile, Specialisation},
        loader::{Kernels, Loaded},
    },
};

/// Decodes the slots of tables into rows of the IO format.
#[derive(Debug)]
pub struct Gatherer {
    kernel: Arc<Loaded>,
    tables: Growing,
    blocks: u32,
}

impl Gatherer {
    /// Compiles the kernel.
    pub fn new(
        kernels: &Kernels,
        specialisation: &Specialisation,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let kernel = kernels.get(KernelFile::Gather, specialisation, stream)?;
        let blocks = kernels.multiprocessors() * kernel.blocks_per_multiprocessor();
        Ok(Self { kernel, tables: Growing::default(), blocks })
    }

    /// Queues the launch. `rows` are the addresses of `[rows, head_dim]` of K and of V; null leaves one
    /// out.
    ///
    /// # Safety
    /// `arena`, `page_ids` and `rows` are device addresses that cover what `tables` name, until the
    /// stream is done.
    pub unsafe fn launch(
        &mut self,
        tables: &[GatherTable],
        [arena, page_ids]: [u64; 2],
        rows: [u64; 2],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let context = staging.context().clone();
        let at = self.tables.upload(&context, staging, stream, tables)?;
        let warps = (self.kernel.threads() / 32).max(1);
        let longest = tables.iter().map(|table| table.slots).max().unwrap_or(0);
        let blocks = longest.div_ceil(warps).clamp(1, self.blocks);
        for (first, count) in launches(tables.len() as u32) {
            let at = at + u64::from(first) * size_of::<GatherTable>() as u64;
            let arguments = [arena, page_ids, at, rows[0], rows[1]].map(Argument::U64);
            // SAFETY: the arguments are those of `headwise_gather`; the caller vouches for them.
            unsafe { self.kernel.launch(stream, [blocks, count, 1], &arguments) }?;
        }
        Ok(())
    }
}
