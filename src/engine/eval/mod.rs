//! Quality against the full cache, by fixed protocols.

mod continuation;
mod perplexity;

pub use continuation::{Continuation, Quality, QualitySum};
pub use perplexity::{PerplexityOptions, PerplexityResult, perplexity};
