//! Pages and attention on NVIDIA devices.
//!
//! Nothing here is linked: the driver and the run-time compiler (NVRTC) are opened when they are
//! first needed, so the crate builds, and says what is missing, on machines that have neither.
//!
//! | part | what it does |
//! |---|---|
//! | [`driver`] | the driver's functions; contexts, memory, streams, events, modules with typed errors |
//! | [`device`] | which devices there are |
//! | [`nvrtc`] | finds NVRTC, compiles CUDA C++ to PTX and cubin, reads ptxas' resource report |

mod arch;
mod csr;
pub mod device;
mod dirty;
pub mod driver;
mod error;
mod image;
pub mod nvrtc;
pub mod work;

pub use arch::Arch;
pub use csr::{CsrError, CsrTables, StockView};
pub use dirty::DirtyRanges;
pub use error::{CudaError, CudaVersion};
pub use image::{Extent, MirrorError, MirrorImage};
