//! Device memory of no fixed size.

use bytemuck::Pod;

use super::{
    driver::{Context, DeviceBuffer, Stream},
    error::CudaError,
    staging::Staging,
};

/// The smallest memory, in bytes.
const SMALLEST: usize = 256;

/// Device memory that grows to what is asked of it, and up to an eighth more: memory that grows little by
/// little is not allocated anew each time, and large memory wastes little.
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
            None => DeviceBuffer::new(context, rounded(bytes))?,
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

/// Bytes to allocate for `bytes`: a multiple of the largest power of two that is at most an eighth of
/// them.
fn rounded(bytes: usize) -> usize {
    let bytes = bytes.max(SMALLEST);
    let step = 1 << (bytes / 8).ilog2();
    bytes.checked_next_multiple_of(step).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_wastes_an_eighth_at_most() {
        for bytes in [0, 1, 255, 256, 257, 4000, 1 << 20, (1 << 20) + 1, 1_181_116_006, usize::MAX]
        {
            let got = rounded(bytes);
            assert!(got >= bytes && got >= SMALLEST, "{bytes}");
            assert!(got - bytes <= SMALLEST.max(bytes / 8), "{bytes}: {got}");
        }
        // A buffer that grows byte by byte is allocated anew eight times or so until it has doubled.
        let mut sizes: Vec<usize> = (1 << 20..2 << 20).map(rounded).collect();
        sizes.dedup();
        assert!(sizes.len() <= 9, "{sizes:?}");
    }
}
