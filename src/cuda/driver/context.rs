//! One device's primary context.

use std::{ptr, sync::Arc};

use cudarc::driver::sys as cuda;

use super::{Calls, Driver};
use crate::cuda::{
    arch::Arch,
    device::DeviceInfo,
    error::{CudaError, CudaVersion},
};

/// The primary context of a device, retained. Cheap to clone; released with its last clone and the
/// last handle made in it.
#[derive(Clone, Debug)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    driver: Driver,
    device: cuda::CUdevice,
    handle: cuda::CUcontext,
    info: DeviceInfo,
}

// SAFETY: the driver's functions may be called from any thread with any context handle.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing here changes after it is made.
unsafe impl Sync for Inner {}

impl Context {
    /// Retains the primary context of device `ordinal`.
    ///
    /// # Errors
    /// [`CudaError::NoSuchDevice`]; [`CudaError::DeviceTooOld`] for one that the kernels cannot run
    /// on.
    pub fn new(driver: &Driver, ordinal: usize) -> Result<Self, CudaError> {
        let device = driver.device(ordinal)?;
        let info = DeviceInfo::of(driver, ordinal)?;
        if info.arch < Arch::OLDEST {
            let (name, arch) = (info.name, info.arch);
            return Err(CudaError::DeviceTooOld { name, arch, needed: Arch::OLDEST });
        }
        let mut handle = ptr::null_mut();
        // SAFETY: the device is the driver's; the pointer is to a live handle.
        unsafe { driver.calls.context_retain(&mut handle, device) }?;
        Ok(Self { inner: Arc::new(Inner { driver: driver.clone(), device, handle, info }) })
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// The newest CUDA version that the driver supports.
    pub fn driver_version(&self) -> CudaVersion {
        self.inner.driver.version
    }

    /// Makes the context current on this thread, and gives the functions to call in it.
    pub(super) fn enter(&self) -> Result<&Calls, CudaError> {
        let calls = &*self.inner.driver.calls;
        // SAFETY: the handle is retained for as long as `self` lives.
        unsafe { calls.context_set(self.inner.handle) }?;
        Ok(calls)
    }

    /// Makes the context current on this thread, for libraries that work in the current one.
    pub fn make_current(&self) -> Result<(), CudaError> {
        self.enter().map(drop)
    }

    /// Whether both are the same context: a device has one primary context, however often it is
    /// retained.
    pub fn same(&self, other: &Context) -> bool {
        let key = |context: &Context| (context.inner.handle, context.inner.device);
        Arc::ptr_eq(&self.inner, &other.inner) || key(self) == key(other)
    }

    /// Free and total device memory, in bytes.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are to live integers.
        unsafe { self.enter()?.memory_info(&mut free, &mut total) }?;
        Ok((free, total))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: retained once by `new`. A failure cannot be reported from a drop, and means that
        // the process is tearing the driver down already.
        let _ = unsafe { self.driver.calls.context_release(self.device) };
    }
}
