//! The scheduler: who runs, who waits, who makes way.

use std::{collections::VecDeque, sync::Arc};

use serde::Serialize;

use super::{Completion, CompressionPlan, Finish, Request, RequestId, ServeOptions, job::Job};
use crate::{
    cache::{CacheError, Compression, KvCache, KvSequence},
    engine::{EngineError, LogitRows, Logits, Model, Span},
    evict::{Budget, HeadExtent},
    plan::{Admission, PlanError, PoolError},
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

/// What one step brought.
#[derive(Debug, Default)]
pub struct Progress {
    /// Tokens generated, with their requests.
    pub tokens: Vec<(RequestId, u32)>,
    /// Requests that are done.
    pub completed: Vec<Completion>,
}

/// Runs any number of requests over one cache.
#[derive(Debug)]
pub struct Scheduler<'m> {
    model: &'m Model,
    cache: KvCache,
    options: ServeOptions,
    waiting: VecDeque<Job>,
    /// In the order of their admission.
    running: Vec<Job>,
    next_id: u64,
    stats: ServeStats,
}

impl<'m> Scheduler<'m> {
    /// A scheduler of `model` over `cache`, which has the model's shape.
    pub fn new(
        model: &'m Model,
        cache: KvCache,
        options: ServeOptions,
    ) -> Result<Self, EngineError> {
        let (cache_shape, model_shape) = (cache.shape(), model.shape());
        if cache_shape != model_shape {
            return Err(EngineError::ShapeMismatch { cache: cache_shape, model: model_shape });
        }
        if options.chunk == 0 || options.max_running == 0 {
            return Err(EngineError::NoCapacity);
        }
        Ok(Self {
            model,
            cache,
            options,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            stats: ServeStats::default(),
        })
    }

    /// Queues a request. One that can never run is refused here, with the numbers.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        if request.prompt.is_empty() || request.max_new_tokens == 0 {
            return Err(EngineError::EmptyRequest);
        }
        let (vocab, context) = (self.model.config().vocab, self.model.config().context);
        if let Some(&token) = request.prompt.iter().find(|&&token| token as usize >= vocab) {
            return Err(EngineError::TokenId { token, vocab });
        }
        let needed = request.prompt.len().saturating_add(request.max_new_tokens);
        if needed > context {
            return Err(EngineError::ContextExceeded { needed, context });
        }
        let id = RequestId(self.next_id);
        let mut job = Job::new(id, request)?;
        job.prefill_target = self.prefill_target(job.tokens.len())?;
        let pages = self.peak_pages(&job);
        if let Admission::Never { needed, total } = self.cache.manager().admission(pages, 0) {
            return Err(CacheError::from(PlanError::NeverFits { needed, total }).into());
        }
        self.waiting.push_back(job);
        self.next_id += 1;
        Ok(id)
    }

    /// Whether every request is done.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// What has been done so far.
    pub fn stats(&self) -> ServeStats {
        self.stats
    }

    /// The cache.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The sequences that hold pages now.
    pub fn sequences(&self) -> impl Iterator<Item = &KvSequence> {
        self.running.iter().filter_map(|job| job.sequence.as_ref())
    }

    /// Runs until every request is done.
    pub fn run(&mut self, mut each: impl FnMut(&Progress)) -> Result<(), EngineError> {
        while !self.is_idle() {
            each(&self.step()?);
        }
        Ok(())
    }

    /// One forward pass over what runs now. An error leaves every page accounted for; the requests
    /// stay, and the step can be tried again.
    pub fn step(&mut self) -> Result<Progress, EngineError> {
        self.admit()?;
        let mut progress = Progress::default();
        if self.running.is_empty() {
            return Ok(progress);
        }
        let (members, rows) = loop {
            let members = self.members();
            match self.forward(&members) {
                Ok(rows) => break (members, rows),
                Err(EngineError::Cache(error)) if is_full(&error) => self.make_room(error)?,
                Err(error) => return Err(error),
            }
        };
        self.stats.steps += 1;
        self.stats.peak_running = self.stats.peak_running.max(self.running.len());
        self.stats.peak_pages = self.stats.peak_pages.max(self.cache.stats().held);
        for &(index, tokens) in &members {
            self.after_append(index, tokens)?;
        }
        self.draw(&members, &rows, &mut progress)?;
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

    fn forward(&mut self, members: &[(usize, usize)]) -> Result<LogitRows, EngineError> {
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
        let rows = self.model.forward(&spans, &mut step)?;
        step.commit()?;
        Ok(rows)
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
        if due {
            let budget = match job.prefill_target {
                Some(pages) if prefilled => Budget::Pages(pages),
                _ => plan.compression.budget,
            };
            let compression = Compression { budget, ..plan.compression.clone() };
            let Some(sequence) = &mut job.sequence else { return Ok(()) };
            let done = self.cache.compress(sequence, &compression)?;
            self.stats.pages_evicted += done.pages_freed;
            job.since_compression = 0;
        }
        Ok(())
    }

    /// Draws a token for every member whose last token was run.
    fn draw(
        &mut self,
        members: &[(usize, usize)],
        rows: &LogitRows,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        let mut finished = Vec::new();
        for (span, &(index, _)) in members.iter().enumerate() {
            let Some(logits) = rows.last_of(span) else { continue };
            let job = &mut self.running[index];
            let token = job.sampler.sample(logits)?;
            self.stats.generated_tokens += 1;
            let finish = job.accept(token);
            if finish != Some(Finish::Stop) {
                progress.tokens.push((job.id, token));
            }
            finished.extend(finish.map(|finish| (index, finish)));
        }
        for &(index, finish) in finished.iter().rev() {
            let job = self.running.remove(index);
            let (id, preemptions) = (job.id, job.preemptions);
            let tokens = job.generated().to_vec();
            progress.completed.push(Completion { id, tokens, finish, preemptions });
        }
        progress.completed.reverse();
        self.cache.settle();
        Ok(())
    }

    /// Starts waiting jobs, oldest first, as long as their pages fit beside the watermark.
    fn admit(&mut self) -> Result<(), EngineError> {
        while self.running.len() < self.options.max_running {
            let Some(job) = self.waiting.front() else { break };
            let reserved = if self.running.is_empty() {
                0
            } else {
                let watermark = self.options.watermark * self.cache.stats().total as f64;
                watermark as usize + self.running.iter().map(|job| self.growth(job)).sum::<usize>()
            };
            match self.cache.manager().admission(self.peak_pages(job), reserved) {
                Admission::Now => {}
                Admission::Later { .. } => break,
                Admission::Never { needed, total } => {
                    self.waiting.pop_front();
                    return Err(CacheError::from(PlanError::NeverFits { needed, total }).into());
                }
            }
            let Some(mut job) = self.waiting.pop_front() else { break };
            let mut sequence = self.cache.sequence();
            if let Some(plan) = &self.options.compression {
                sequence.observe(Arc::clone(&plan.compression.scorer));
                job.prefill_target = self.prefill_target(job.tokens.len())?;
            }
            job.start(sequence);
            self.running.push(job);
        }
        Ok(())
    }

    /// Pages that a running job's prefill will still take.
    fn growth(&self, job: &Job) -> usize {
        let held = job.sequence.as_ref().map_or(0, |s| s.tables().pages());
        if job.is_decoding() { 0 } else { self.peak_pages(job).saturating_sub(held) }
    }

    /// Pages that a prompt of `tokens` tokens may hold once it is cached and compressed.
    fn prefill_target(&self, tokens: usize) -> Result<Option<usize>, EngineError> {
        let Some(CompressionPlan { compression, .. }) = &self.options.compression else {
            return Ok(None);
        };
        let plan = self.cache.table_plan();
        let extents: Vec<HeadExtent> = (0..plan.heads())
            .map(|head| HeadExtent { slots: tokens, slots_per_page: plan.slots_per_page(head) })
            .collect();
        let Compression { policy, budget, .. } = compression;
        let target = budget.target_pages(&extents, tokens, policy).map_err(CacheError::from)?;
        let full = plan.pages_for(tokens);
        let floor = plan.pages_for(policy.floor().min(tokens));
        if target < floor {
            let (asked, possible) = (full - target, full - floor);
            let infeasible =
                crate::evict::EvictError::Infeasible { asked, possible, held: full, floor };
            return Err(CacheError::from(infeasible).into());
        }
        Ok(Some(target.min(full)))
    }

    /// The most pages that a job holds until its first token is drawn.
    fn peak_pages(&self, job: &Job) -> usize {
        let plan = self.cache.table_plan();
        let tokens = job.tokens.len();
        let full = plan.pages_for(tokens + 1);
        match (&self.options.compression, job.prefill_target) {
            (Some(compression), Some(target)) if compression.between_chunks => {
                let chunk = tokens.div_ceil(tokens.div_ceil(self.options.chunk));
                full.min(target + plan.pages_for(chunk) + plan.heads())
            }
            _ => full,
        }
    }

    /// Makes room for a step that did not fit: compresses what runs, or sends the youngest away.
    fn make_room(&mut self, full: CacheError) -> Result<(), EngineError> {
        if let Some(CompressionPlan { compression, .. }) = &self.options.compression {
            let mut freed = 0;
            for job in &mut self.running {
                let decoding = job.is_decoding();
                if let Some(sequence) = job.sequence.as_mut().filter(|_| decoding) {
                    freed += self.cache.compress(sequence, compression)?.pages_freed;
                    job.since_compression = 0;
                }
            }
            self.stats.pages_evicted += freed;
            if freed > 0 {
                return Ok(());
            }
        }
        if self.running.len() <= 1 {
            // Nobody else holds anything: the pool is too small for this one request.
            self.running.clear();
            self.cache.settle();
            return Err(full.into());
        }
        if let Some(mut job) = self.running.pop() {
            job.preempt();
            self.stats.preemptions += 1;
            self.waiting.push_front(job);
            self.cache.settle();
        }
        Ok(())
    }
}

fn is_full(error: &CacheError) -> bool {
    matches!(
        error,
        CacheError::Plan(
            PlanError::Pool(PoolError::OutOfPages { .. }) | PlanError::NeverFits { .. }
        )
    )
}
