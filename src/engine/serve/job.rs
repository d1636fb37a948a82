//! A request on its way.

use super::request::{Completion, Finish, Request, RequestId};
use crate::{
    cache::KvSequence,
    engine::{error::EngineError, prefill, sampling::Sampler},
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
    /// Tokens that were there when the sequence started.
    pub prefill_end: usize,
    /// Pages that the sequence may hold once they are cached.
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
            prefill_end: 0,
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

    /// Starts, or starts again: all tokens so far are to be cached before one is drawn.
    pub fn start(&mut self, sequence: KvSequence) {
        self.sequence = Some(sequence);
        self.prefill_end = self.tokens.len();
        self.since_compression = 0;
    }

    /// Makes way; everything is recomputed later.
    pub fn preempt(&mut self) {
        self.sequence = None;
        self.preemptions += 1;
    }

    /// Ends; the pages go with the sequence.
    pub fn end(self, finish: Finish) -> Completion {
        let tokens = self.generated().to_vec();
        Completion { id: self.id, tokens, finish, preemptions: self.preemptions }
    }

    /// Whether the prefill is over.
    pub fn is_decoding(&self) -> bool {
        self.sequence.is_some() && self.cached() >= self.prefill_end
    }

    /// Whether the newest cached token came with the prefill.
    pub fn just_prefilled(&self) -> bool {
        self.cached() <= self.prefill_end
    }

    /// Tokens of the next step: one, or an even share of the prompt that is left.
    pub fn next_tokens(&self, chunk: usize) -> usize {
        prefill::first_chunk(self.pending(), chunk)
    }

    /// Takes a sampled token, unless it is a stop token; says why that was the last, if it was.
    pub fn accept(&mut self, token: u32) -> Option<Finish> {
        if self.request.stop.contains(&token) {
            return Some(Finish::Stop);
        }
        self.tokens.push(token);
        let full = self.generated().len() >= self.request.max_new_tokens;
        full.then_some(Finish::Length)
    }

    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.request.prompt.len()..]
    }
}
