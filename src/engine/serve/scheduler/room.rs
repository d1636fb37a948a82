//! Who may start, and who makes way.

use std::sync::Arc;

use super::{Scheduler, full::is_full};
use crate::{
    cache::{CacheError, Compression},
    engine::{
        error::EngineError,
        runner::Runner,
        serve::{
            job::Job,
            request::{Finish, Progress},
        },
    },
    evict::Budget,
    plan::{Admission, PlanError, PoolError},
};

impl<R: Runner> Scheduler<'_, R> {
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
                    job.end(failed, progress);
                }
                Err(error) => job.end(Finish::Failed(Arc::new(error)), progress),
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
        Ok(self.cache.manager().admission(self.peak_pages(job), reserved))
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
    /// now; returns the pages freed. None are where sequences outside the scheduler share its pages and
    /// nothing is free to copy them to: the next compression makes up for it.
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
        let freed = match self.cache.compress(sequence, &compression) {
            Ok(compressed) => compressed.pages_freed,
            Err(error) if is_full(&error) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        self.stats.pages_evicted += freed;
        job.since_compression = 0;
        Ok(freed)
    }

    /// Makes room for a step that did not fit: compresses what is larger than it need be, or sends the
    /// youngest away.
    pub(super) fn make_room(&mut self, full: CacheError, progress: &mut Progress) {
        let mut freed = 0;
        let mut ended = Vec::new();
        for index in 0..self.running.len() {
            match self.compress_early(index) {
                Ok(pages) => freed += pages,
                Err(error) => ended.push((index, Finish::Failed(Arc::new(error)))),
            }
        }
        if freed > 0 || !ended.is_empty() {
            self.end(ended, progress);
            return;
        }
        let alone = self.running.len() == 1;
        let others_are_enough = self.fits_without_others(&full);
        let Some(mut job) = self.running.pop() else { return };
        let shared = self.give_way(&mut job);
        if alone && !shared && !others_are_enough {
            // The pool is too small for this one request.
            job.end(Finish::Failed(Arc::new(full.into())), progress);
            return;
        }
        job.preempt();
        self.stats.preemptions += 1;
        self.waiting.push_front(job);
    }

    /// Compresses a running job before it is due. One that prefills holds more than its target only
    /// where a compression between chunks found no room for copies.
    fn compress_early(&mut self, index: usize) -> Result<usize, EngineError> {
        let Some(plan) = &self.options.compression else { return Ok(0) };
        let job = &self.running[index];
        if job.is_decoding() {
            self.compress(index, None)
        } else if plan.between_chunks && job.cached() > 0 {
            let target = job.prefill_target;
            self.compress(index, target)
        } else {
            Ok(0)
        }
    }

    /// Whether a step that was refused as `full` would be granted if sequences outside the scheduler
    /// gave up their pages.
    fn fits_without_others(&self, full: &CacheError) -> bool {
        match full {
            CacheError::Plan(PlanError::Pool(PoolError::OutOfPages { needed, free, .. })) => {
                *needed <= free.saturating_add(self.held_by_others())
            }
            _ => false,
        }
    }

    /// Drops a job's sequence; returns whether sequences outside the scheduler shared some of its pages,
    /// which then did not become free. It shares none when it starts again, and so needs no copies.
    fn give_way(&mut self, job: &mut Job) -> bool {
        let held = job.sequence.as_ref().map_or(0, |sequence| sequence.tables().pages());
        let before = self.cache.stats().held;
        job.sequence = None;
        before - self.cache.stats().held < held
    }
}
