//! The scheduler: who runs, who waits, who makes way.

mod budget;
mod full;
mod room;

use std::{collections::VecDeque, sync::Arc};

use serde::Serialize;

use self::full::is_full;
use super::{
    job::Job,
    request::{Completion, Finish, Progress, Request, RequestId, ServeOptions},
};
use crate::{
    cache::{CacheError, KvCache, KvSequence},
    engine::{
        error::EngineError,
        kv::{LogitRows, Logits, Span},
        model::Model,
        runner::Runner,
        tokenizer::Tokenizer,
    },
    plan::{Admission, PlanError},
};

/// What a scheduler has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServeStats {
    /// Forward passes.
    pub steps: usize,
    /// Prompt tokens run, recomputed ones included.
    pub prefill_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Most sequences that held pages in one step.
    pub peak_running: usize,
    /// Most pages held in one step, before the evictions that follow it.
    pub peak_pages: usize,
    /// Pages freed by compression.
    pub pages_evicted: usize,
    /// Sequences that had to make way and were recomputed.
    pub preemptions: usize,
}

/// Runs any number of requests over one cache.
pub struct Scheduler<'m, R: Runner = Model> {
    model: &'m R,
    tokenizer: Option<&'m Tokenizer>,
    cache: KvCache<R::Memory>,
    options: ServeOptions,
    waiting: VecDeque<Job>,
    /// In the order of their admission.
    running: Vec<Job>,
    /// What a step brought which then failed, requests that ended: the next step reports it.
    unreported: Progress,
    next_id: u64,
    stats: ServeStats,
}

impl<'m, R: Runner> Scheduler<'m, R> {
    /// A scheduler of `model` over `cache`, which has the model's shape.
    ///
    /// # Errors
    /// A cache of another shape; those of [`ServeOptions::check`].
    pub fn new(
        model: &'m R,
        cache: KvCache<R::Memory>,
        options: ServeOptions,
    ) -> Result<Self, EngineError> {
        let (cache_shape, model_shape) = (cache.shape(), model.shape());
        if cache_shape != model_shape {
            let (cache, model) = (cache_shape.clone(), model_shape.clone());
            return Err(EngineError::ShapeMismatch { cache, model });
        }
        options.check()?;
        Ok(Self {
            model,
            tokenizer: None,
            cache,
            options,
            waiting: VecDeque::new(),
            running: Vec::new(),
            unreported: Progress::default(),
            next_id: 0,
            stats: ServeStats::default(),
        })
    }

    /// The same scheduler, which also hands out text ([`Progress::text`]) and knows stop strings:
    /// `tokenizer` is the model's.
    #[must_use]
    pub fn with_tokenizer(self, tokenizer: &'m Tokenizer) -> Self {
        Self { tokenizer: Some(tokenizer), ..self }
    }

    /// Queues a request. One that can never run is refused here, with the numbers.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        if request.prompt.is_empty() || request.max_new_tokens == 0 {
            return Err(EngineError::EmptyRequest);
        }
        if self.tokenizer.is_none() && !request.stop_strings.is_empty() {
            return Err(EngineError::NoTokenizer);
        }
        let vocab = self.model.config().vocab;
        if let Some(&token) = request.prompt.iter().find(|&&token| token as usize >= vocab) {
            return Err(EngineError::TokenId { token, vocab });
        }
        let needed = request.positions();
        self.model.config().check_context(needed)?;
        let id = RequestId(self.next_id);
        self.check_budget(needed)?;
        let mut job = Job::new(id, request)?;
        job.prefill_target = self.target_pages(job.tokens.len())?;
        let pages = self.peak_pages(&job);
        if let Admission::Never { needed, total } = self.cache.manager().admission(pages, 0) {
            return Err(CacheError::from(PlanError::NeverFits { needed, total }).into());
        }
        self.waiting.push_back(job);
        self.next_id += 1;
        Ok(id)
    }

    /// Takes a request out, whether it runs or waits, and frees its pages. `None` when there is none of
    /// that name, or none any more.
    pub fn cancel(&mut self, id: RequestId) -> Option<Completion> {
        let running = self.running.iter().position(|job| job.id == id);
        let job = match running {
            Some(index) => self.running.remove(index),
            None => {
                let waiting = self.waiting.iter().position(|job| job.id == id)?;
                self.waiting.remove(waiting)?
            }
        };
        let mut progress = Progress::default();
        job.end(Finish::Cancelled, &mut progress);
        progress.completed.pop()
    }

    /// Whether every request is done, and was reported.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.unreported.completed.is_empty()
    }

    /// What has been done so far.
    pub fn stats(&self) -> ServeStats {
        self.stats
    }

    /// The cache.
    pub fn cache(&self) -> &KvCache<R::Memory> {
        &self.cache
    }

    /// The sequences that hold pages now.
    pub fn sequences(&self) -> impl Iterator<Item = &KvSequence> {
        self.running.iter().filter_map(|job| job.sequence.as_ref())
    }

    /// Runs until every request is done, or failed; each step's [`Progress`] goes to `each`.
    ///
    /// # Errors
    /// Those of [`step`](Self::step), which can be run on from.
    pub fn run(&mut self, mut each: impl FnMut(&Progress)) -> Result<(), EngineError> {
        while !self.is_idle() {
            each(&self.step()?);
        }
        Ok(())
    }

    /// One forward pass over what runs now.
    ///
    /// What goes wrong with one request ends that request, as [`Finish::Failed`] among the completed,
    /// and the others go on.
    ///
    /// # Errors
    /// The forward pass fails, and with no request alone. Or [`EngineError::Stalled`]: a request waits
    /// for pages that sequences outside the scheduler hold. Nothing was appended: the requests stay, and
    /// the step can be tried again.
    pub fn step(&mut self) -> Result<Progress, EngineError> {
        let mut progress = std::mem::take(&mut self.unreported);
        self.admit(&mut progress);
        let (members, rows) = loop {
            if self.running.is_empty() {
                // Also one that gave way because others share its pages: alone, it may fit.
                self.admit(&mut progress);
            }
            let members = self.members();
            if members.is_empty() {
                // Whoever steps until all is done would never leave.
                return match self.waiting.front() {
                    Some(oldest) if progress.completed.is_empty() => Err(self.stalled(oldest)),
                    _ => Ok(progress),
                };
            }
            match self.forward(&members, Keep::Tokens) {
                Ok(rows) => break (members, rows),
                Err(EngineError::Cache(error)) if is_full(&error) => {
                    self.make_room(error, &mut progress);
                }
                Err(error) => {
                    if let Err(error) = self.fail_offenders(&members, error, &mut progress) {
                        self.unreported = progress;
                        return Err(error);
                    }
                }
            }
        };
        self.stats.steps += 1;
        let holding = self.running.iter().filter(|job| job.cached() > 0).count();
        self.stats.peak_running = self.stats.peak_running.max(holding);
        self.stats.peak_pages = self.stats.peak_pages.max(self.cache.stats().held);
        let mut ended = Vec::new();
        for (span, &(index, tokens)) in members.iter().enumerate() {
            let advanced = self
                .after_append(index, tokens)
                .and_then(|()| self.draw(index, rows.last_of(span), &mut progress));
            match advanced {
                Ok(finish) => ended.extend(finish.map(|finish| (index, finish))),
                Err(error) => ended.push((index, Finish::Failed(Arc::new(error)))),
            }
        }
        self.end(ended, &mut progress);
        Ok(progress)
    }

    /// Which running jobs take part in the next step, with how many tokens: all that decode, and the
    /// oldest that has prompt left.
    fn members(&self) -> Vec<(usize, usize)> {
        let mut prefilling = false;
        let jobs = self.running.iter().enumerate();
        jobs.filter(|(_, job)| job.is_decoding() || !std::mem::replace(&mut prefilling, true))
            .map(|(index, job)| (index, job.next_tokens(self.options.chunk)))
            .collect()
    }

    fn forward(
        &mut self,
        members: &[(usize, usize)],
        keep: Keep,
    ) -> Result<LogitRows, EngineError> {
        let mut spans = Vec::with_capacity(members.len());
        let mut sequences = Vec::with_capacity(members.len());
        let mut wanted = members.iter().peekable();
        for (index, job) in self.running.iter_mut().enumerate() {
            let Some(&&(_, tokens)) = wanted.peek().filter(|member| member.0 == index) else {
                continue;
            };
            wanted.next();
            let Some(sequence) = &mut job.sequence else { continue };
            let position = sequence.tokens();
            let last = position + tokens == job.tokens.len();
            let logits = if last { Logits::Last } else { Logits::None };
            let fed = &job.tokens[position..position + tokens];
            spans.push(Span { tokens: fed, position, logits });
            sequences.push((sequence, tokens));
        }
        let mut step = self.cache.step(sequences)?;
        let rows = self.model.run(&spans, &mut step)?;
        match keep {
            Keep::Tokens => step.commit()?,
            Keep::Nothing => drop(step),
        }
        Ok(rows)
    }

    /// After a pass that failed with `error`: runs each member alone, and ends those that fail there
    /// too. Passes it on when there is none. Nothing is appended.
    fn fail_offenders(
        &mut self,
        members: &[(usize, usize)],
        error: EngineError,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        let mut ended = Vec::new();
        for member in members {
            match self.forward(std::slice::from_ref(member), Keep::Nothing) {
                Ok(_) => {}
                Err(EngineError::Cache(error)) if is_full(&error) => {}
                Err(error) => ended.push((member.0, Finish::Failed(Arc::new(error)))),
            }
        }
        if ended.is_empty() {
            return Err(error);
        }
        self.end(ended, progress);
        Ok(())
    }

    /// Counts what was appended and compresses where the plan says so.
    fn after_append(&mut self, index: usize, tokens: usize) -> Result<(), EngineError> {
        let job = &mut self.running[index];
        let prefilled = job.just_prefilled();
        if prefilled {
            self.stats.prefill_tokens += tokens;
        }
        let Some(plan) = &self.options.compression else { return Ok(()) };
        let due = if prefilled {
            plan.between_chunks || job.pending() == 0
        } else {
            job.since_compression += 1;
            plan.every.is_some_and(|every| job.since_compression >= every)
        };
        if !due {
            return Ok(());
        }
        let prefill_target = job.prefill_target.filter(|_| prefilled);
        self.compress(index, prefill_target).map(drop)
    }

    /// Draws a token from the logits after a member's last token, if that was run.
    fn draw(
        &mut self,
        index: usize,
        logits: Option<&[f32]>,
        progress: &mut Progress,
    ) -> Result<Option<Finish>, EngineError> {
        let Some(logits) = logits else { return Ok(None) };
        let job = &mut self.running[index];
        let token = job.sampler.sample(logits)?;
        self.stats.generated_tokens += 1;
        let bytes = self.tokenizer.map(|tokenizer| tokenizer.token_bytes(token)).transpose()?;
        Ok(job.accept(token, bytes.unwrap_or_default(), progress))
    }

    /// Takes running jobs out, given in their order, and frees their pages.
    fn end(&mut self, ended: Vec<(usize, Finish)>, progress: &mut Progress) {
        let first = progress.completed.len();
        for (index, finish) in ended.into_iter().rev() {
            self.running.remove(index).end(finish, progress);
        }
        progress.completed[first..].reverse();
    }
}

/// What is left of a forward pass.
#[derive(Clone, Copy)]
enum Keep {
    /// The tokens that it appended.
    Tokens,
    /// Nothing: it was a trial.
    Nothing,
}

impl<R: Runner> std::fmt::Debug for Scheduler<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("waiting", &self.waiting.len())
            .field("running", &self.running.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
