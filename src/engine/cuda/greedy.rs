//! The most likely token, found on the device.

use super::launcher::{ArithmeticKernel, Launcher, check, size, sizes};
use crate::{
    cuda::{
        CudaError, DeviceRows, Element,
        driver::{Argument, DeviceBuffer, Stream},
    },
    device::{DeviceError, Kernels},
    engine::{kv::LogitRow, sampling::SamplingError},
};

/// Words of a row's result: a token, and the bits of its logit.
pub(super) const WORDS: usize = 2;

/// The most likely token of a row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Whose logits they were.
    pub owner: LogitRow,
    /// The token, or why there is none.
    pub token: Result<u32, SamplingError>,
}

/// The largest logit of each row, by the rules of [`argmax`](crate::engine::argmax).
#[derive(Debug)]
pub struct Greedy {
    kernel: Launcher,
}

impl Greedy {
    /// Compiles the kernel, and waits for `stream`.
    pub fn new(kernels: &Kernels, stream: &Stream) -> Result<Self, DeviceError> {
        Ok(Self { kernel: Launcher::load(kernels, ArithmeticKernel::Argmax, &[], stream)? })
    }

    /// Queues the search. `logits` is `[rows, vocab]` in f32; `best` gets two words for each row, which
    /// [`token`] reads.
    ///
    /// # Errors
    /// Rows of another type or context; a buffer that is too small.
    pub fn launch(
        &self,
        logits: DeviceRows<'_>,
        best: &mut DeviceBuffer,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        self.kernel.check_contexts(stream, [logits.context(), best.context()])?;
        check("logits", &logits, Element::F32, [logits.rows(), logits.columns()])?;
        let end = logits.rows().saturating_mul(WORDS * size_of::<u32>());
        if end > best.bytes() {
            return Err(CudaError::OutOfBounds { start: 0, end, len: best.bytes() }.into());
        }
        let [rows, vocab, stride] = sizes(&logits)?;
        let arguments = [
            Argument::U64(logits.address()),
            Argument::U32(stride),
            Argument::U64(best.address()),
            Argument::U32(vocab),
        ];
        // SAFETY: the arguments are those of `headwise_argmax`; the view and the buffer cover what it reads and
        // writes.
        unsafe { self.kernel.launch([size("rows", rows as usize)?, 1, 1], &arguments, stream) }
    }
}

/// The token of a row's two words.
///
/// # Errors
/// As [`argmax`](crate::engine::argmax) on the host.
pub fn token([token, bits]: [u32; WORDS], vocab: usize) -> Result<u32, SamplingError> {
    let value = f32::from_bits(bits);
    if token == u32::MAX {
        return Err(SamplingError::NoChoice(vocab));
    }
    if value.is_nan() || value == f32::INFINITY {
        return Err(SamplingError::Logit { token: token as usize, value });
    }
    Ok(token)
}
