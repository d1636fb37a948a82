//! What is asked of the scheduler, and what comes back.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::{
    cache::Compression,
    engine::{EngineError, Strategy},
};

/// How the scheduler works.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Most prompt tokens in one step.
    pub chunk: usize,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Share of the pool that admission keeps free for the growth of running sequences. A few percent
    /// are what keeps an engine from admitting a request and preempting it on the next step.
    pub watermark: f64,
    /// How sequences are compressed, if at all.
    pub compression: Option<CompressionPlan>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { chunk: 256, max_running: 64, watermark: 0.02, compression: None }
    }
}

/// When to compress, and how.
#[derive(Clone, Debug)]
pub struct CompressionPlan {
    /// Scorer, policy and budget. The budget of a prefill is that of the whole prompt. A sequence too
    /// short for a ratio keeps its sinks, window and floor; a ratio that no sequence within the model's
    /// context is long enough for is refused.
    pub compression: Compression,
    /// Evict after each prefill chunk rather than only after the last: the uncompressed prompt never
    /// has to fit, but early tokens are judged by early queries.
    pub between_chunks: bool,
    /// Evict every this many decoded tokens.
    pub every: Option<usize>,
}

/// Text to go on from.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate, at least one.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub strategy: Strategy,
    /// Seed of the draws.
    pub seed: u64,
    /// Token ids that end the generation, such as the tokenizer's end of text.
    pub stop: Vec<u32>,
}

/// Names a request in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RequestId(pub u64);

/// Why a generation ended.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// A stop token came.
    Stop,
    /// All tokens asked for are there.
    Length,
    /// It was [cancelled](super::Scheduler::cancel).
    Cancelled,
    /// It could not go on.
    Failed(#[serde(serialize_with = "in_words")] Arc<EngineError>),
}

fn in_words<S: Serializer>(error: &EngineError, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(error)
}

/// A request that is done, or failed.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Which one.
    pub id: RequestId,
    /// The tokens generated until then, without the stop token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// How often it was preempted and recomputed.
    pub preemptions: usize,
}
