//! A request on its way.

use super::{Finish, Request, RequestId};
use crate::{
    cache::KvSequence,
    engine::{EngineError, Sampler, prefill},
};

/// A request with its state. Without a sequence it waits: for the first time, or because it was
/// preempted.
#[derive(Debug)]
pub(super) struct Job {
    pub id: RequestId,
    pub request: Request,
    pub sampler: Sampler,
    /// The prompt and what was generated.
    pub tokens: Vec<u32>,
    pub sequence: Option<KvSequence>,
    /// Pages that the sequence may hold once its prompt is cached.
    pub prefill_target: Option<usize>,
    pub since_compression: usize,
    pub preemptions: usize,
}

impl Job {
    pub fn new(id: RequestId, request: Request) -> Result<Self, EngineError> {
        let sampler = Sampler::new(request.strategy, request.seed)?;
        let tokens = request.prompt.clone();
        Ok(Self {
            id,
            request,
            sampler,
            tokens,
            sequence: None,
            prefill_target: None,
            since_compression: 0,
            preemptions: 0,
        })
    }

    /// Tokens that the model has not seen yet.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.cached()
    }

    /// Tokens that the model has seen.
    pub fn cached(&self) -> usize {
        self.sequence.as_ref().map_or(0, KvSequence::tokens)
    }

    /// Whether one token is all that is left before the next is drawn.
    pub fn is_decoding(&self) -> bool {
        self.pending() == 1 && self.cached() > 0
    }

    /// Tokens of the next step: one, or an even share of the prompt that is left.
    pub fn next_tokens(&self, chunk: usize) -> usize {
        prefill::chunks(self.pending(), chunk).front().map_or(0, |first| first.len())
    }

    /// Takes a sampled token; says whether that was the last.
    pub fn accept(&mut self, token: u32) -> Option<Finish> {
        if self.request.stop.contains(&token) {
            return Some(Finish::Stop);
        }
        self.tokens.push(token);
        let generated = self.tokens.len() - self.request.prompt.len();
        (generated >= self.request.max_new_tokens).then_some(Finish::Length)
    }

    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.request.prompt.len()..]
    }
}
