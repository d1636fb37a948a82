//! Device memory of no fixed size.

use bytemuck::Pod;

use super::{
    CudaError, Staging,
    driver::{Context, DeviceBuffer, Stream},
};

/// Device memory that grows to what is asked of it.
#[derive(Debug, Default)]
pub struct Growing(Option<DeviceBuffer>);

impl Growing {
    /// At least `bytes` bytes; what was there is lost when it grows.
    pub fn reserve(
        &mut self,
        context: &Context,
        bytes: usize,
    ) -> Result<&mut DeviceBuffer, CudaError> {
        let held = self.0.take().filter(|buffer| buffer.bytes() >= bytes);
        let buffer = match held {
            Some(buffer) => buffer,
            None => DeviceBuffer::new(context, bytes.max(256).next_power_of_two())?,
        };
        Ok(self.0.insert(buffer))
    }

    /// Queues a copy of `values` to the start; returns the address.
    pub fn upload<T: Pod>(
        &mut self,
        context: &Context,
        staging: &mut Staging,
        stream: &Stream,
        values: &[T],
    ) -> Result<u64, CudaError> {
        let bytes = bytemuck::cast_slice(values);
        let buffer = self.reserve(context, bytes.len())?;
        staging.upload(stream, buffer, [(0, bytes)])?;
        Ok(buffer.address())
    }

    /// Copies the first bytes into `values` and waits for them.
    pub fn download<T: Pod>(
        &self,
        staging: &mut Staging,
        stream: &Stream,
        values: &mut [T],
    ) -> Result<(), CudaError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        match &self.0 {
            Some(buffer) => {
                staging.download(stream, buffer, std::slice::from_ref(&(0..bytes.len())), bytes)
            }
            None => Ok(()),
        }
    }
}
