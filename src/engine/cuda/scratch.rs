//! Buffers of one step, reused by every layer and every step.

use bytemuck::Pod;

use crate::cuda::{
    CudaError, DeviceRowsMut, DeviceWords, Element, Growing, Staging,
    driver::{Context, DeviceBuffer, Stream},
};

/// Memory for rows of any count: it grows to the largest step there was.
#[derive(Debug, Default)]
pub(super) struct Scratch(Growing);

impl Scratch {
    /// Rows of that shape; what they hold is undefined.
    pub fn rows(
        &mut self,
        context: &Context,
        element: Element,
        [rows, columns]: [usize; 2],
    ) -> Result<DeviceRowsMut<'_>, CudaError> {
        let numbers = rows.saturating_mul(columns);
        let bytes = numbers.saturating_mul(element.bytes());
        DeviceRowsMut::of(self.0.reserve(context, bytes)?, element, [rows, columns])
    }

    /// At least that many bytes.
    pub fn bytes(
        &mut self,
        context: &Context,
        bytes: usize,
    ) -> Result<&mut DeviceBuffer, CudaError> {
        self.0.reserve(context, bytes)
    }

    /// Words, as soon as the stream is there.
    pub fn words(
        &mut self,
        words: &[u32],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<DeviceWords<'_>, CudaError> {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let buffer = self.0.reserve(stream.context(), bytes.len())?;
        staging.upload(stream, buffer, [(0, bytes)])?;
        DeviceWords::of(buffer, words.len())
    }

    /// Copies the first values to the host and waits for them.
    pub fn download<T: Pod>(
        &self,
        values: &mut [T],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.0.download(staging, stream, values)
    }
}
