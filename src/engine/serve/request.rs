//! What is asked of the scheduler, and what comes back.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::stop::StopStrings;
use crate::{
    cache::{CacheError, Compression},
    engine::{error::EngineError, sampling::Strategy},
};

/// How the scheduler works.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Most prompt tokens in one step, at least one.
    pub chunk: usize,
    /// Most sequences that run at once, at least one.
    pub max_running: usize,
    /// Share of the pool, from 0 to 1, that admission keeps free for the growth of running sequences. A
    /// few percent are what keeps an engine from admitting a request and preempting it on the next step.
    pub watermark: f64,
    /// How sequences are compressed, if at all.
    pub compression: Option<CompressionPlan>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { chunk: 256, max_running: 64, watermark: 0.02, compression: None }
    }
}

impl ServeOptions {
    /// Refuses numbers outside their range, as a scheduler does that is made with them.
    ///
    /// # Errors
    /// [`EngineError::OutOfRange`], and those of the compression's budget.
    pub fn check(&self) -> Result<(), EngineError> {
        EngineError::unless(self.chunk > 0, "chunk", self.chunk, "at least one token")?;
        EngineError::unless(
            self.max_running > 0,
            "max_running",
            self.max_running,
            "at least one sequence",
        )?;
        let share = (0.0..=1.0).contains(&self.watermark);
        EngineError::unless(share, "watermark", self.watermark, "a share from 0 to 1")?;
        let Some(plan) = &self.compression else { return Ok(()) };
        EngineError::unless(plan.every != Some(0), "every", 0, "at least one token")?;
        let Compression { budget, policy, .. } = &plan.compression;
        // No head and no token: only what the budget itself says is looked at.
        budget.target_pages(&[], 0, policy).map_err(CacheError::from)?;
        Ok(())
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
    /// Evict every this many decoded tokens, at least one.
    pub every: Option<usize>,
}

/// Text to go on from.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate, at least one. The last one is not run, so that a prompt and its answer
    /// may be one token longer than the model's context.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub strategy: Strategy,
    /// Seed of the draws.
    pub seed: u64,
    /// Token ids that end the generation, such as the tokenizer's end of text.
    pub stop: Vec<u32>,
    /// Texts that end the generation, wherever tokens begin and end. They need a scheduler with a
    /// [tokenizer](super::Scheduler::with_tokenizer).
    pub stop_strings: StopStrings,
}

impl Request {
    /// Positions that the request comes to need at most: nothing is read after its last token.
    pub fn positions(&self) -> usize {
        self.prompt.len().saturating_add(self.max_new_tokens.saturating_sub(1))
    }
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
    /// This stop string came.
    StopString(String),
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
    /// The tokens generated until then, without the stop token, and with the one that made a stop string
    /// complete.
    pub tokens: Vec<u32>,
    /// Their text, up to the stop string if one came ([`TextStream`](super::TextStream)); empty where the
    /// scheduler has no tokenizer. Control tokens are written out.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// How often it was preempted and recomputed.
    pub preemptions: usize,
}

/// What one step brought.
#[derive(Debug, Default)]
pub struct Progress {
    /// Tokens generated, with their requests.
    pub tokens: Vec<(RequestId, u32)>,
    /// Text to hand out, with its request: whole characters, and never any of a stop string. A request's
    /// pieces make the text of its [`Completion`]; one that is [cancelled](super::Scheduler::cancel) has
    /// the last of it there only.
    pub text: Vec<(RequestId, String)>,
    /// Requests that are done, or failed.
    pub completed: Vec<Completion>,
}

impl Progress {
    /// Adds text of a request, if there is any.
    pub(super) fn hand_out(&mut self, id: RequestId, text: &str) {
        if !text.is_empty() {
            self.text.push((id, text.to_owned()));
        }
    }
}
