//! Attention on a device.
//!
//! [`Decoder`], [`Appender`], [`Prefiller`] and [`WindowScorer`] work on device addresses, in an engine's
//! own stream; the first two in buffers of fixed size and address, so that their launches can be captured
//! in CUDA graphs. [`CudaAttention`] is the contract of [`Attention`](crate::attend::Attention) on top,
//! with queries and results in host memory.

mod append;
mod append_step;
mod args;
mod decode;
mod host;
mod parts;
mod prefill;
mod saturated;
mod scoring;
mod window;

#[cfg(test)]
pub(in crate::device) use self::args::fields;
pub use append::{Appender, NO_SLOT, NewRows};
pub use append_step::{StepAppender, StepRows};
pub use args::{ItemPlace, MergeItem, PrefillItem, ScoreItem, WorkItem};
pub use decode::{DecodeHead, DecodePlan, Decoder, Tensors};
pub use host::{CudaAttention, DeviceTensors};
pub use prefill::{PrefillHead, Prefiller, prefill_items};
pub use scoring::{Scoring, SinkLogits};
pub use window::{WindowHead, WindowScorer, window_items};
