//! Who may start, and who makes way.

use std::sync::Arc;

use super::{Finish, Job, Progress, Scheduler};
use crate::{
    cache::{CacheError, Compression},
    engine::error::EngineError,
    evict::Budget,
    plan::{Admission, PlanError, PoolError},
};

impl Scheduler<'_> {
    /// Starts waiting jobs, oldest first, as long as their pages fit beside the watermark. One that has
    /// outgrown the pool since it was submitted fails.
    pub(super) fn admit(&mut self, progress: &mut Progress) {
        while self.running.len() < self.options.max_running {
            let Some(mut job) = self.waiting.pop_front() else { break };
            match self.admission(&mut job) {
                Ok(Admission::Now) => self.start(job),
                Ok(Admission::Later { .. }) => {
                    self.waiting.push_front(job);
                    break;
                }
                Ok(Admission::Never { needed, total }) => {
                    let error = CacheError::from(PlanError::NeverFits { needed, total });
                    let failed = Finish::Failed(Arc::new(error.into()));
                    progress.completed.push(job.end(failed));
                }
                Err(error) => progress.completed.push(job.end(Finish::Failed(Arc::new(error)))),
            }
        }
    }

    /// Whether a job may start now; also sets what its prefill may hold.
    fn admission(&mut self, job: &mut Job) -> Result<Admission, EngineError> {
        job.prefill_target = self.target_pages(job.tokens.len())?;
        let reserved = if self.running.is_empty() {
            0
        } else {
            // A share of the pool ([`ServeOptions::check`](super::super::ServeOptions::check)).
            let watermark = (self.options.watermark * self.cache.stats().total as f64) as usize;
            let growth = self.running.iter().map(|job| self.growth(job));
            growth.fold(watermark, usize::saturating_add)
        };
        let pages = self.peak_pages(job);
        match self.cache.manager().admission(pages, reserved) {
            // Sequences dropped outside the scheduler leave their pages behind the fence.
            Admission::Later { .. } if self.cache.stats().fenced > 0 => {
                self.cache.settle();
                Ok(self.cache.manager().admission(pages, reserved))
            }
            admission => Ok(admission),
        }
    }

    /// Why nothing runs although `oldest` waits.
    pub(super) fn stalled(&self, oldest: &Job) -> EngineError {
        let stats = self.cache.stats();
        EngineError::Stalled {
            request: oldest.id.0,
            needed: self.peak_pages(oldest),
            free: stats.free,
            total: stats.total,
            others: self.held_by_others(),
        }
    }

    /// Whether the first running job would find room if sequences outside the scheduler gave theirs, and
    /// not before: then it is worth waiting.
    fn waits_for_others(&self) -> bool {
        let total = self.cache.stats().total;
        let left = total - self.held_by_others();
        self.running.first().is_some_and(|job| (left + 1..=total).contains(&self.peak_pages(job)))
    }

    /// Pages that no sequence of the scheduler holds. Its sequences share none among themselves.
    fn held_by_others(&self) -> usize {
        let own: usize = self.sequences().map(|sequence| sequence.tables().pages()).sum();
        self.cache.stats().held.saturating_sub(own)
    }

    fn start(&mut self, mut job: Job) {
        let mut sequence = self.cache.sequence();
        if let Some(plan) = &self.options.compression {
            sequence.observe(Arc::clone(&plan.compression.scorer));
        }
        job.start(sequence);
        self.running.push(job);
    }

    /// Compresses a running job to `target` pages, or to what the budget leaves it as long as it is
    /// now; returns the pages freed.
    pub(super) fn compress(
        &mut self,
        index: usize,
        target: Option<usize>,
    ) -> Result<usize, EngineError> {
        let target = match target {
            Some(pages) => Some(pages),
            None => self.target_pages(self.running[index].cached())?,
        };
        let job = &mut self.running[index];
        let (Some(plan), Some(pages), Some(sequence)) =
            (&self.options.compression, target, &mut job.sequence)
        else {
            return Ok(0);
        };
        let compression = Compression { budget: Budget::Pages(pages), ..plan.compression.clone() };
        let freed = self.cache.compress(sequence, &compression)?.pages_freed;
        self.stats.pages_evicted += freed;
        job.since_compression = 0;
        Ok(freed)
    }

    /// Makes room for a step that did not fit: compresses what decodes, or sends the youngest away.
    pub(super) fn make_room(&mut self, full: CacheError, progress: &mut Progress) {
        let mut freed = 0;
        let mut ended = Vec::new();
        for index in 0..self.running.len() {
            if self.options.compression.is_none() || !self.running[index].is_decoding() {
                continue;
            }
            match self.compress(index, None) {
                Ok(pages) => freed += pages,
                Err(error) => ended.push((index, Finish::Failed(Arc::new(error)))),
            }
        }
        if freed > 0 || !ended.is_empty() {
            self.end(ended, progress);
            return;
        }
        if self.running.len() <= 1 && !self.waits_for_others() {
            // The pool is too small for this one request.
            let failed = Finish::Failed(Arc::new(full.into()));
            let ended = (0..self.running.len()).map(|index| (index, failed.clone())).collect();
            self.end(ended, progress);
            return;
        }
        if let Some(mut job) = self.running.pop() {
            job.preempt();
            self.stats.preemptions += 1;
            self.waiting.push_front(job);
            self.cache.settle();
        }
    }
}

pub(super) fn is_full(error: &CacheError) -> bool {
    matches!(
        error,
        CacheError::Plan(
            PlanError::Pool(PoolError::OutOfPages { .. }) | PlanError::NeverFits { .. }
        )
    )
}
