//! Continuous batching over one paged cache.
//!
//! Each step prefills one chunk of the oldest sequence that still has prompt left, and decodes one
//! token of every other running sequence, in one forward pass. Compression runs between prefill
//! chunks, after the prefill, every few tokens while decoding, and when an append would otherwise
//! preempt. A sequence that must make way is recomputed later; a request that cannot go on ends alone.

mod job;
mod request;
mod scheduler;
mod stop;
mod text;

pub use request::{
    Completion, CompressionPlan, Finish, Progress, Request, RequestId, ServeOptions,
};
pub use scheduler::{Scheduler, ServeStats};
pub use stop::{StopStringError, StopStrings};
pub use text::TextStream;
