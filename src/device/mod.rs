//! K and V on NVIDIA devices: pages, tables, attention, scores and eviction, behind the same contracts
//! as on the host.
//!
//! | part | what it does |
//! |---|---|
//! | [`kernels`], [`Kernels`] | kernel sources and what they are specialised for; compiled, on a device |
//! | [`CudaStore`] | pages on a device behind [`PageStore`](crate::store::PageStore) |
//! | [`TableMirror`], [`StepFence`] | page tables on a device; when a step's kernels are done |
//! | [`work`] | which block of a launch reads which pages |
//! | [`attention`] | attention over the pages of a device |
//! | [`eviction`] | scores at rest, victims and moves on a device |
//! | [`CsrTables`] | page tables for stock kernels |

pub mod attention;
mod csr;
mod dirty;
mod error;
pub mod eviction;
mod fence;
mod image;
pub mod kernels;
mod loader;
mod mirror;
mod moves;
mod store;
pub mod work;

pub use attention::CudaAttention;
pub use csr::{CsrError, CsrTables, StockView};
pub use dirty::DirtyRanges;
pub use error::DeviceError;
pub use fence::StepFence;
pub use image::{Extent, MirrorError, MirrorImage};
pub use loader::{Kernels, Loaded};
pub use mirror::TableMirror;
pub use store::CudaStore;
