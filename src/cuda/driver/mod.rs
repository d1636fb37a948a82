//! The driver: opened at run time, every call checked, every handle returned on drop.
//!
//! A [`Driver`] is the open library, a [`Context`] one device's primary context (shared with every
//! other CUDA code of the process), and [`Stream`], [`Event`], [`DeviceBuffer`], [`PinnedBuffer`],
//! [`Module`] and [`Kernel`] what lives in it.

mod calls;
mod context;
mod memory;
mod module;
mod stream;

use std::{ffi::c_int, path::Path, sync::Arc};

use cudarc::driver::sys as cuda;
use libloading::Library;

pub use context::Context;
pub use memory::{DeviceBuffer, PinnedBuffer};
pub use module::{Argument, Kernel, Launch, Module};
pub use stream::{Event, Stream};

use self::calls::Calls;
use super::error::{CudaError, CudaVersion};

/// An open and initialised driver library.
#[derive(Clone, Debug)]
pub struct Driver {
    calls: Arc<Calls>,
    version: CudaVersion,
}

impl Driver {
    /// Opens the system's driver.
    ///
    /// # Errors
    /// [`CudaError::DriverMissing`] where there is none, [`CudaError::DriverStub`],
    /// [`CudaError::DriverIncomplete`] or [`CudaError::DriverTooOld`] for one that does not do, and
    /// [`CudaError::NoDevice`] for one that sees no device.
    pub fn open() -> Result<Self, CudaError> {
        // SAFETY: opening NVIDIA's driver library runs only its own registration.
        if !unsafe { cuda::is_culib_present() } {
            return Err(CudaError::DriverMissing);
        }
        // SAFETY: as above; it was just found, which is what keeps this from panicking.
        Self::init(unsafe { cuda::culib() })
    }

    /// Opens the driver library at `path`, for systems that keep it where no loader looks.
    ///
    /// # Errors
    /// [`CudaError::DriverUnusable`] if it does not open, else as [`open`](Self::open).
    ///
    /// # Safety
    /// The file is a CUDA driver library: its functions are called with the driver's prototypes.
    pub unsafe fn open_at(path: &Path) -> Result<Self, CudaError> {
        // SAFETY: the caller vouches for the file.
        let library = unsafe { Library::new(path) }.map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let reason = source.unwrap_or_else(|| error.to_string());
            CudaError::DriverUnusable { path: path.into(), reason }
        })?;
        // The driver keeps threads of its own: it is never unloaded.
        Self::init(Box::leak(Box::new(library)))
    }

    fn init(library: &'static Library) -> Result<Self, CudaError> {
        let calls = Calls::bind(library)?;
        let mut version: c_int = 0;
        // SAFETY: the pointer is to a live integer; allowed before initialisation.
        unsafe { calls.driver_version(&mut version) }?;
        let version = version.unsigned_abs();
        let found = CudaVersion { major: version / 1000, minor: version % 1000 / 10 };
        if found < CudaVersion::OLDEST {
            return Err(CudaError::DriverTooOld { found, needed: CudaVersion::OLDEST });
        }
        // SAFETY: no requirements.
        unsafe { calls.init(0) }?;
        Ok(Self { calls: Arc::new(calls), version: found })
    }

    /// The newest CUDA version that this driver supports.
    pub fn version(&self) -> CudaVersion {
        self.version
    }

    /// How many devices there are; at least one.
    pub fn devices(&self) -> Result<usize, CudaError> {
        let mut count: c_int = 0;
        // SAFETY: the pointer is to a live integer.
        unsafe { self.calls.device_count(&mut count) }?;
        usize::try_from(count).ok().filter(|&n| n > 0).ok_or(CudaError::NoDevice)
    }

    /// The driver's handle of device `ordinal`.
    fn device(&self, ordinal: usize) -> Result<cuda::CUdevice, CudaError> {
        let devices = self.devices()?;
        let number = c_int::try_from(ordinal).ok().filter(|_| ordinal < devices);
        let number = number.ok_or(CudaError::NoSuchDevice { ordinal, devices })?;
        let mut device = 0;
        // SAFETY: the pointer is to a live handle.
        unsafe { self.calls.device_get(&mut device, number) }?;
        Ok(device)
    }

    /// The name of device `ordinal`.
    pub fn device_name(&self, ordinal: usize) -> Result<String, CudaError> {
        let device = self.device(ordinal)?;
        let mut name = [0u8; 256];
        // SAFETY: the buffer has the length given.
        unsafe { self.calls.device_name(name.as_mut_ptr().cast(), 256, device) }?;
        let len = name.iter().position(|&b| b == 0).unwrap_or(name.len());
        Ok(String::from_utf8_lossy(&name[..len]).into_owned())
    }

    /// Bytes of memory of device `ordinal`.
    pub fn device_memory(&self, ordinal: usize) -> Result<usize, CudaError> {
        let device = self.device(ordinal)?;
        let mut bytes = 0;
        // SAFETY: the pointer is to a live integer.
        unsafe { self.calls.device_memory(&mut bytes, device) }?;
        Ok(bytes)
    }

    /// A property of device `ordinal`.
    pub fn device_attribute(
        &self,
        ordinal: usize,
        attribute: cuda::CUdevice_attribute,
    ) -> Result<u32, CudaError> {
        let device = self.device(ordinal)?;
        let mut value: c_int = 0;
        // SAFETY: the pointer is to a live integer.
        unsafe { self.calls.device_attribute(&mut value, attribute, device) }?;
        Ok(value.unsigned_abs())
    }
}

#[cfg(all(test, unix))]
mod tests;
