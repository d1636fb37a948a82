//! NVIDIA's driver and run-time compiler: what headwise asks of them, with typed errors. Nothing here
//! knows a page or a head.
//!
//! Nothing is linked: the driver, the compiler (NVRTC) and cuBLAS are opened when they are first needed,
//! so the crate builds, and says what is missing, on machines that have none of them.
//!
//! | part | what it does |
//! |---|---|
//! | [`driver`] | the driver's functions; contexts, memory, streams, events, modules |
//! | [`DeviceInfo`], [`Arch`] | which devices there are, and what they are |
//! | [`nvrtc`] | finds NVRTC, compiles CUDA C++ to PTX and cubin, reads ptxas' resource report |
//! | [`KernelCache`] | compiled kernels on disk |
//! | [`Staging`], [`Growing`] | pinned memory between host and device; device memory of no fixed size |
//! | [`cublas`] | products of matrices |
//! | [`DeviceRows`], [`Element`] | rows of numbers on a device, as checked views |

mod arch;
pub mod cublas;
mod device;
pub mod driver;
mod error;
mod growing;
mod kernel_cache;
pub mod nvrtc;
mod rows;
mod staging;

pub use arch::{Arch, ArchError};
pub use device::DeviceInfo;
pub use error::{CudaError, CudaVersion};
pub use growing::Growing;
pub use kernel_cache::{KernelCache, Origin};
pub use rows::{DeviceRows, DeviceRowsMut, DeviceWords, Element};
pub use staging::Staging;
