//! One object that keeps a model's K and V: planner, page store and attention tied together.
//!
//! ```text
//! let step = cache.step([(&mut sequence, tokens)])?;      pages for all, or an error and no change
//! for layer in 0..layers { step.attend(layer, q, k, v, out)?; }   append, then attend
//! step.commit();
//! cache.compress(&mut sequence, &compression)?;           whole pages leave, head by head
//! ```
//!
//! An engine with tensors of its own can use [`plan`](crate::plan) and [`evict`](crate::evict) alone.

mod compress;
mod config;
#[cfg(feature = "cuda")]
mod device;
mod error;
mod host;
mod kv_cache;
mod layouts;
mod member;
mod memory;
mod observe;
mod rows;
mod runs;
mod sequence;
mod stage;
mod step;
#[cfg(feature = "cuda")]
mod tensor;
mod watch;

pub use compress::{Compressed, Compression};
pub use config::{CacheConfig, Capacity};
#[cfg(feature = "cuda")]
pub use device::DeviceMemory;
pub use error::CacheError;
pub use host::HostMemory;
pub use kv_cache::KvCache;
pub use layouts::{FormatMap, HeadLayouts};
pub use member::{KvMember, SequenceGuard, SharedSequence};
pub use memory::{Attended, LayerWork, Memory};
pub use rows::{HostOut, HostRows};
pub use sequence::KvSequence;
pub use stage::Staged;
pub use step::{CacheRef, CacheStep, SharedStep, StepOf};
#[cfg(feature = "cuda")]
pub use tensor::TensorView;

#[cfg(test)]
mod tests;
