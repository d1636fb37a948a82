//! A transformer that runs on the cache: GGUF loading, tokenizer, forward pass, sampling.
//!
//! The forward pass ([`Model`]) keeps no K and V of its own. It hands each layer's new K and V to a
//! [`KvBackend`] and takes the attention output back, so that the same weights run over the plain
//! contiguous cache ([`ContiguousKv`]) and over paged ones.

mod architecture;
mod config;
mod contiguous;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod eval;
mod gguf;
mod kv;
mod likelihood;
mod linear;
mod load;
mod model;
mod norm;
mod paged;
pub mod prefill;
mod rope;
mod runner;
mod sampling;
pub mod serve;
mod simd;
mod tokenizer;

pub use architecture::Architecture;
pub use config::{ModelConfig, RopeConfig, RopePairs, RopeScaling};
pub use contiguous::{ContiguousKv, SequenceId};
pub use error::{EngineError, ModelError, TokenizerError};
pub use gguf::GgufFile;
pub use kv::{KvBackend, LogitRow, LogitRows, Logits, Span};
pub use likelihood::{NllSum, PerplexityError, log_softmax, nll};
pub use model::Model;
pub use runner::Runner;
pub use sampling::{Sampler, SamplingError, Strategy, argmax};
pub use tokenizer::{StreamDecoder, Tokenizer};
