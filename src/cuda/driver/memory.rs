//! Device memory and pinned host memory.

use std::{ops::Range, ptr, slice};

use cudarc::driver::sys::CUdeviceptr;

use super::{calls::OUT_OF_MEMORY, context::Context, stream::Stream};
use crate::cuda::error::CudaError;

/// Bytes on the device: allocated here, or an engine's own.
#[derive(Debug)]
pub struct DeviceBuffer {
    context: Context,
    address: CUdeviceptr,
    bytes: usize,
    owned: bool,
}

impl DeviceBuffer {
    /// Allocates `bytes` bytes (at least one), 256-byte aligned, not initialised.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] says how much is free.
    pub fn new(context: &Context, bytes: usize) -> Result<Self, CudaError> {
        let mut address = 0;
        // SAFETY: the pointer is to a live handle.
        unsafe { context.enter()?.memory_alloc(&mut address, bytes.max(1)) }
            .map_err(|error| out_of_memory(context, error, "device", bytes))?;
        Ok(Self { context: context.clone(), address, bytes, owned: true })
    }

    /// An engine's memory, which stays the engine's.
    ///
    /// # Safety
    /// `address` is the start of `bytes` bytes of device memory of this context that stay allocated
    /// for the value's life, and that nothing else writes while work of this crate uses them.
    pub unsafe fn from_raw(context: &Context, address: u64, bytes: usize) -> Self {
        Self { context: context.clone(), address, bytes, owned: false }
    }

    /// The device address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The context that it belongs to.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Queues a copy of `from[source]` to byte `at`.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] if either range is outside its buffer.
    ///
    /// # Safety
    /// Until the stream has done the copy, nothing writes `from[source]` or frees either buffer.
    pub unsafe fn upload(
        &mut self,
        at: usize,
        from: &PinnedBuffer,
        source: Range<usize>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let bytes = from.as_slice().get(source.clone()).ok_or(CudaError::OutOfBounds {
            start: source.start,
            end: source.end,
            len: from.bytes,
        })?;
        let to = self.at(at, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let calls = self.context.enter()?;
        // SAFETY: both ranges were checked; the caller keeps them alive and unchanged.
        unsafe { calls.copy_to_device(to, bytes.as_ptr().cast(), bytes.len(), stream.handle()) }
    }

    /// Queues a copy of `source` to byte `at` of `to`.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] if either range is outside its buffer.
    ///
    /// # Safety
    /// Until the stream has done the copy, nothing uses that part of `to` or frees either buffer.
    pub unsafe fn download(
        &self,
        source: Range<usize>,
        to: &mut PinnedBuffer,
        at: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let from = self.at(source.start, source.len())?;
        let len = to.bytes;
        let end = at.saturating_add(source.len());
        let target = to.as_mut_slice().get_mut(at..end);
        let target = target.ok_or(CudaError::OutOfBounds { start: at, end, len })?;
        if target.is_empty() {
            return Ok(());
        }
        let calls = self.context.enter()?;
        // SAFETY: both ranges were checked; the caller leaves them alone until it is done.
        unsafe {
            calls.copy_to_host(target.as_mut_ptr().cast(), from, target.len(), stream.handle())
        }
    }

    /// Queues a copy within the buffer; the ranges do not overlap.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] if either range is outside the buffer.
    pub fn copy_within(
        &mut self,
        from: usize,
        to: usize,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (from, to) = (self.at(from, bytes)?, self.at(to, bytes)?);
        if bytes == 0 || from == to {
            return Ok(());
        }
        // SAFETY: both ranges were checked.
        unsafe { self.context.enter()?.copy_on_device(to, from, bytes, stream.handle()) }
    }

    /// Queues filling `range` with `byte`.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] if the range is outside the buffer.
    pub fn fill(
        &mut self,
        range: Range<usize>,
        byte: u8,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let to = self.at(range.start, range.len())?;
        if range.is_empty() {
            return Ok(());
        }
        // SAFETY: the range was checked.
        unsafe { self.context.enter()?.fill(to, byte, range.len(), stream.handle()) }
    }

    /// The address of byte `start`, if `len` bytes from there are inside.
    fn at(&self, start: usize, len: usize) -> Result<CUdeviceptr, CudaError> {
        let end = start.saturating_add(len);
        if end > self.bytes {
            return Err(CudaError::OutOfBounds { start, end, len: self.bytes });
        }
        Ok(self.address + start as u64)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if let Ok(calls) = self.context.enter() {
            // SAFETY: allocated by `new` and not used again; the driver waits for work that uses it.
            let _ = unsafe { calls.memory_free(self.address) };
        }
    }
}

/// Page-locked host memory: copies from and to it run beside the CPU's work.
#[derive(Debug)]
pub struct PinnedBuffer {
    context: Context,
    memory: ptr::NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for PinnedBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates `bytes` zeroed bytes.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] if the system does not lock that much.
    pub fn new(context: &Context, bytes: usize) -> Result<Self, CudaError> {
        let mut memory = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        unsafe { context.enter()?.host_alloc(&mut memory, bytes.max(1), 0) }
            .map_err(|error| out_of_memory(context, error, "pinned host", bytes))?;
        let refused = || out_of_memory(context, CudaError::NoDevice, "pinned host", bytes);
        let memory = ptr::NonNull::new(memory.cast::<u8>()).ok_or_else(refused)?;
        // SAFETY: the allocation holds at least one byte and `bytes` bytes. Zeroed, it may be read.
        unsafe { memory.as_ptr().write_bytes(0, bytes.max(1)) };
        Ok(Self { context: context.clone(), memory, bytes })
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the allocation holds `bytes` initialised bytes.
        unsafe { slice::from_raw_parts(self.memory.as_ptr(), self.bytes) }
    }

    /// All bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the allocation holds `bytes` initialised bytes, borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if let Ok(calls) = self.context.enter() {
            // SAFETY: allocated by `new` and not used again.
            let _ = unsafe { calls.host_free(self.memory.as_ptr().cast()) };
        }
    }
}

fn out_of_memory(
    context: &Context,
    error: CudaError,
    memory: &'static str,
    bytes: usize,
) -> CudaError {
    match error {
        CudaError::Driver { code: OUT_OF_MEMORY, .. } => {
            let free = context.memory().map_or(0, |(free, _)| free);
            CudaError::OutOfMemory { bytes, memory, free }
        }
        other => other,
    }
}
