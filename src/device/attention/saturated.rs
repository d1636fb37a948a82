//! How many values appends had to saturate, counted on the device.

use crate::{
    cuda::{
        Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{error::DeviceError, loader::Kernels},
};

/// A counter that append kernels add to: values that their page's formats cannot hold.
#[derive(Debug)]
pub(super) struct Saturated(DeviceBuffer);

impl Saturated {
    /// Nothing so far.
    pub fn new(kernels: &Kernels, stream: &Stream) -> Result<Self, DeviceError> {
        let mut count = DeviceBuffer::new(kernels.context(), size_of::<u64>())?;
        count.fill(0..size_of::<u64>(), 0, stream)?;
        Ok(Self(count))
    }

    /// Where it is on the device.
    pub fn address(&self) -> u64 {
        self.0.address()
    }

    /// The count after all that is queued, which it waits for.
    pub fn read(&self, staging: &mut Staging, stream: &Stream) -> Result<u64, DeviceError> {
        let mut count = [0u64];
        let all = 0..size_of::<u64>();
        staging.download(stream, &self.0, &[all], bytemuck::cast_slice_mut(&mut count))?;
        Ok(count[0])
    }
}
