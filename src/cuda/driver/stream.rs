//! Queues of work, and marks in them.

use std::{
    ptr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use cudarc::driver::sys as cuda;

use super::{calls::NOT_READY, context::Context};
use crate::cuda::error::CudaError;

/// `CU_STREAM_NON_BLOCKING`: no implicit order with the legacy default stream.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`: marks without a clock are cheaper.
const DISABLE_TIMING: u32 = 2;

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A queue of device work: of this crate, or an engine's own.
#[derive(Debug)]
pub struct Stream {
    context: Context,
    handle: cuda::CUstream,
    owned: bool,
    /// Different for every value of the process: the driver gives handles out again.
    id: u64,
}

// SAFETY: stream handles may be used from any thread; the driver serialises submissions.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new queue.
    pub fn new(context: &Context) -> Result<Self, CudaError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        unsafe { context.enter()?.stream_create(&mut handle, NON_BLOCKING) }?;
        Ok(Self { context: context.clone(), handle, owned: true, id: next_id() })
    }

    /// An engine's queue, which stays the engine's. The default stream is null.
    ///
    /// # Safety
    /// `raw` is null or a `CUstream` (a `cudaStream_t` is one) of this context that outlives the
    /// value.
    pub unsafe fn from_raw(context: &Context, raw: *mut std::ffi::c_void) -> Self {
        Self { context: context.clone(), handle: raw.cast(), owned: false, id: next_id() }
    }

    /// The context that it belongs to.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The driver's handle, a `CUstream`, for libraries that queue work of their own.
    pub fn as_raw(&self) -> *mut std::ffi::c_void {
        self.handle.cast()
    }

    /// What tells it from every other stream, alive or gone.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The driver's handle.
    pub(super) fn handle(&self) -> cuda::CUstream {
        self.handle
    }

    /// Waits until all work so far is done. An error of an earlier launch shows here at the latest.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the handle is live.
        unsafe { self.context.enter()?.stream_synchronize(self.handle) }
    }

    /// Lets later work of this stream start only after `event`.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both handles are live.
        unsafe { self.context.enter()?.stream_wait(self.handle, event.handle, 0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if let Ok(calls) = self.context.enter() {
            // SAFETY: created by `new` and not used again; queued work still runs to its end.
            let _ = unsafe { calls.stream_destroy(self.handle) };
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    context: Context,
    handle: cuda::CUevent,
}

// SAFETY: event handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A mark without a clock.
    pub fn new(context: &Context) -> Result<Self, CudaError> {
        Self::with(context, DISABLE_TIMING)
    }

    /// A mark with a clock.
    pub fn timed(context: &Context) -> Result<Self, CudaError> {
        Self::with(context, 0)
    }

    fn with(context: &Context, flags: u32) -> Result<Self, CudaError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        unsafe { context.enter()?.event_create(&mut handle, flags) }?;
        Ok(Self { context: context.clone(), handle })
    }

    /// Puts the mark behind the work that `stream` has now, moving it if it was recorded before.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both handles are live.
        unsafe { self.context.enter()?.event_record(self.handle, stream.handle()) }
    }

    /// Whether all work before the mark is done.
    pub fn done(&self) -> Result<bool, CudaError> {
        // SAFETY: the handle is live.
        match unsafe { self.context.enter()?.event_query(self.handle) } {
            Ok(()) => Ok(true),
            Err(CudaError::Driver { code: NOT_READY, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until all work before the mark is done.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the handle is live.
        unsafe { self.context.enter()?.event_synchronize(self.handle) }
    }

    /// The device time from `start` to this mark; both [timed](Self::timed) and done.
    pub fn since(&self, start: &Event) -> Result<Duration, CudaError> {
        let mut milliseconds = 0f32;
        // SAFETY: both handles and the pointer are live.
        unsafe {
            self.context.enter()?.event_elapsed(&mut milliseconds, start.handle, self.handle)
        }?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(calls) = self.context.enter() {
            // SAFETY: created by `with` and not used again.
            let _ = unsafe { calls.event_destroy(self.handle) };
        }
    }
}
