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
//! | [`kernels`], [`cache`], [`Kernels`] | kernel sources, compiled kernels on disk, and on a device |
//! | [`CudaStore`], [`Staging`] | pages on a device behind [`PageStore`](crate::store::PageStore) |
//! | [`TableMirror`], [`StepFence`] | page tables on a device; when a step's kernels are done |
//! | [`work`] | which block of a launch reads which pages |
//! | [`attention`] | attention over the pages of a device |
//! | [`mod@bench`] | how fast the kernels are beside a plain copy |
//! | [`verify`] | whether what a device computes is right |
//! | [`eviction`] | scores at rest, victims and moves on a device |
//! | [`report`] | what each kernel costs on an architecture |
//! | [`serving`] | what compression is worth to a server |
//! | [`CsrTables`] | page tables for stock kernels |

mod arch;
pub mod attention;
pub mod bench;
pub mod cache;
mod csr;
pub mod device;
mod dirty;
pub mod driver;
mod error;
pub mod eviction;
mod fence;
mod growing;
mod image;
pub mod kernels;
mod loader;
mod mirror;
mod moves;
pub mod nvrtc;
pub mod report;
pub mod serving;
mod staging;
mod store;
pub mod verify;
pub mod work;

pub use arch::Arch;
pub use attention::CudaAttention;
pub use csr::{CsrError, CsrTables, StockView};
pub use dirty::DirtyRanges;
pub use error::{CudaError, CudaVersion};
pub use fence::StepFence;
pub use image::{Extent, MirrorError, MirrorImage};
pub use loader::{Kernels, Loaded};
pub use mirror::TableMirror;
pub use staging::Staging;
pub use store::CudaStore;
