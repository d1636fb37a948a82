//! What compression is worth to a server: decode steps of a Llama-shaped model in fixed KV memory.
//!
//! The products run through cuBLAS, everything of the cache through this crate: planner, tables,
//! appends, attention, scores, eviction. `headwise bench-serving` is the command.
//!
//! ```text
//! plan (16 steps)      planner reserves, tables mirrored, work divided, once per layer
//! step × 16            nothing but launches: the device counts tokens, slots and scores itself
//! evict (every 64)     prices on the device, budget on the host, victims and moves on the device
//! ```

mod cache;
mod curve;
mod error;
mod evict;
mod glue;
mod model;
mod phases;
mod prompt;
mod report;
mod shape;

pub use cache::{Cache, CacheSetup, Memory, Tables};
pub use curve::{CurveConfig, curve};
pub use error::ServingError;
pub use evict::Evicted;
pub use glue::Glue;
pub use model::{Model, Weights};
pub use phases::{Phase, Phases};
pub use prompt::{Prompt, PromptHead, Random};
pub use report::{HostTime, PAPER_H100, PAPER_L4, Run, ServingReport};
pub use shape::ModelShape;
