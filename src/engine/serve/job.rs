//! A request on its way.

use super::{
    request::{Completion, Finish, Progress, Request, RequestId},
    text::TextStream,
};
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
    /// The text of what was generated. It stays when the sequence goes: nothing is handed out twice.
    text: TextStream,
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
        let text = TextStream::new(request.stop_strings.clone());
        Ok(Self {
            id,
            request,
            sampler,
            tokens,
            text,
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

    /// Ends, and says so in `progress`; the pages go with the sequence.
    pub fn end(mut self, finish: Finish, progress: &mut Progress) {
        progress.hand_out(self.id, self.text.finish());
        // The last character, unfinished, may have been one.
        let finish = match (finish, self.text.stopped_by()) {
            (Finish::Stop | Finish::Length, Some(stop)) => Finish::StopString(stop.to_owned()),
            (finish, _) => finish,
        };
        progress.completed.push(Completion {
            id: self.id,
            tokens: self.generated().to_vec(),
            text: self.text.given().to_owned(),
            finish,
            preemptions: self.preemptions,
        });
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

    /// Takes a sampled token, which adds `bytes` to the text, unless it is a stop token, and says so in
    /// `progress`; says why that was the last, if it was.
    pub fn accept(&mut self, token: u32, bytes: &[u8], progress: &mut Progress) -> Option<Finish> {
        if self.request.stop.contains(&token) {
            return Some(Finish::Stop);
        }
        self.tokens.push(token);
        progress.tokens.push((self.id, token));
        progress.hand_out(self.id, self.text.push(bytes));
        if let Some(stop) = self.text.stopped_by() {
            return Some(Finish::StopString(stop.to_owned()));
        }
        let full = self.generated().len() >= self.request.max_new_tokens;
        full.then_some(Finish::Length)
    }

    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.request.prompt.len()..]
    }
}
