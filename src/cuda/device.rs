//! Which devices there are.

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use serde::Serialize;

use super::{arch::Arch, driver::Driver, error::CudaError};

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Its number, from 0.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub arch: Arch,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Device memory, in bytes.
    pub memory_bytes: usize,
    /// Dynamic shared memory that one block can ask for, in bytes.
    pub shared_bytes_per_block: u32,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_bytes_per_multiprocessor: u32,
    /// Registers of a multiprocessor.
    pub registers_per_multiprocessor: u32,
    /// Threads of a multiprocessor.
    pub threads_per_multiprocessor: u32,
}

impl DeviceInfo {
    /// Asks the driver about device `ordinal`.
    ///
    /// # Errors
    /// [`CudaError::NoSuchDevice`].
    pub fn of(driver: &Driver, ordinal: usize) -> Result<Self, CudaError> {
        let get = |attribute| driver.device_attribute(ordinal, attribute);
        let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Self {
            ordinal,
            name: driver.device_name(ordinal)?,
            arch: Arch::of_device(major, minor),
            multiprocessors: get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory_bytes: driver.device_memory(ordinal)?,
            shared_bytes_per_block: get(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            shared_bytes_per_multiprocessor: get(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
            registers_per_multiprocessor: get(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR,
            )?,
            threads_per_multiprocessor: get(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
            )?,
        })
    }

    /// All devices of the system's driver; at least one.
    ///
    /// # Errors
    /// As [`Driver::open`]: the error says why there is none.
    pub fn all() -> Result<Vec<Self>, CudaError> {
        let driver = Driver::open()?;
        (0..driver.devices()?).map(|ordinal| Self::of(&driver, ordinal)).collect()
    }
}
