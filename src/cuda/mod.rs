//! Pages and attention on NVIDIA devices.
//!
//! Nothing here is linked: the driver and the run-time compiler (NVRTC) are opened when they are
//! first needed, so the crate builds, and says what is missing, on machines that have neither.
//!
//! | part | what it does |
//! |---|---|
//! | [`nvrtc`] | finds NVRTC, compiles CUDA C++ to PTX and cubin, reads ptxas' resource report |

mod arch;
mod error;
pub mod nvrtc;

pub use arch::Arch;
pub use error::CudaError;
