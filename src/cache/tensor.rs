//! Rows that engines have in device memory.

use crate::{cuda::driver::Context, format::SlotFormat};

use super::error::CacheError;

/// Rows of Q, K, V or an output in device memory: a view of an engine's tensor, a row for each token.
///
/// Made once from a raw pointer, it is all that the cache's verbs need to know, and none of them is unsafe.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    context: &'a Context,
    address: u64,
    format: SlotFormat,
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a> TensorView<'a> {
    /// A view of `rows` rows of `width` values of `format` (f32, f16 or bf16), `stride` values from one row
    /// to the next, the first one at device address `address`.
    ///
    /// # Errors
    /// [`CacheError::BadTensor`]: another format, rows that overlap, values that are not aligned to eight bytes
    /// (sixteen in f32), from row to row too: kernels read four values at once.
    ///
    /// # Safety
    /// The rows are memory of `context`. Whatever verb is given the view reads them (of an output: writes
    /// them) in the cache's stream; until the stream is done with that, they stay and nothing else writes
    /// (of an output: uses) them.
    pub unsafe fn new(
        context: &'a Context,
        address: u64,
        format: SlotFormat,
        [rows, width]: [usize; 2],
        stride: usize,
    ) -> Result<Self, CacheError> {
        let bad = |problem| Err(CacheError::BadTensor { problem });
        let bytes = match format {
            SlotFormat::F32 => 4,
            SlotFormat::F16 | SlotFormat::Bf16 => 2,
            _ => return bad("its type is none of f32, f16 and bf16"),
        };
        if rows > 1 && stride < width {
            return bad("its rows overlap");
        }
        if !address.is_multiple_of(4 * bytes) || (rows > 1 && !stride.is_multiple_of(4)) {
            return bad("its rows do not start on four values");
        }
        Ok(Self { context, address, format, rows, width, stride })
    }

    /// The context that the memory is of.
    pub(super) fn context(&self) -> &Context {
        self.context
    }

    /// Address of the first row.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Type of the values.
    pub fn format(&self) -> SlotFormat {
        self.format
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Values from one row to the next.
    pub fn stride(&self) -> usize {
        // One row has no next one.
        if self.rows > 1 { self.stride } else { self.width }
    }

    /// The same view of some of its rows.
    pub(super) fn part(&self, rows: std::ops::Range<usize>) -> Self {
        let bytes = if self.format == SlotFormat::F32 { 4 } else { 2 };
        let address = self.address + (rows.start * self.stride * bytes) as u64;
        Self { address, rows: rows.len(), ..*self }
    }
}
