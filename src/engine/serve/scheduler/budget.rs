//! How many pages a request may hold, and will hold at most.

use super::Scheduler;
use crate::{
    cache::{CacheError, Compression},
    engine::{error::EngineError, runner::Runner, serve::job::Job},
    evict::{Budget, EvictError, HeadExtent},
};

impl<R: Runner> Scheduler<'_, R> {
    /// Refuses a budget that a request of `needed` tokens would come to fail by, and a ratio that no
    /// request is long enough for.
    pub(super) fn check_budget(&self, needed: usize) -> Result<(), EngineError> {
        self.target_pages(needed)?;
        let Some(plan) = &self.options.compression else { return Ok(()) };
        let (Budget::Ratio(ratio) | Budget::RatioOutsideProtected(ratio)) = plan.compression.budget
        else {
            return Ok(());
        };
        let context = self.model.config().context;
        let (asked, least) = self.asked_and_least(&plan.compression, context)?;
        if asked < least {
            let full = self.cache.table_plan().pages_for(context);
            return Err(EngineError::RatioOutOfReach { ratio, least, full, context });
        }
        Ok(())
    }

    /// Pages that a sequence of `tokens` tokens may hold once it is compressed, if it is.
    ///
    /// Sinks, window and floor are most of a short sequence, and no ratio says that they may go: it
    /// keeps them, and is held to the ratio as soon as it is long enough.
    pub(super) fn target_pages(&self, tokens: usize) -> Result<Option<usize>, EngineError> {
        let Some(plan) = &self.options.compression else { return Ok(None) };
        let Compression { policy, budget, .. } = &plan.compression;
        let (asked, least) = self.asked_and_least(&plan.compression, tokens)?;
        let full = self.cache.table_plan().pages_for(tokens);
        if asked < full {
            budget.check(policy).map_err(CacheError::from)?;
        }
        let by_ratio = matches!(budget, Budget::Ratio(_) | Budget::RatioOutsideProtected(_));
        if asked < least && !by_ratio {
            let (asked, possible) = (full - asked, full - least);
            let infeasible = EvictError::Infeasible { asked, possible, held: full, floor: least };
            return Err(CacheError::from(infeasible).into());
        }
        Ok(Some(asked.max(least).min(full)))
    }

    /// Pages that the budget asks a sequence of `tokens` tokens to keep to, and pages that its sinks,
    /// window and floor keep at least: one, where they keep nothing.
    fn asked_and_least(
        &self,
        compression: &Compression,
        tokens: usize,
    ) -> Result<(usize, usize), EngineError> {
        let plan = self.cache.table_plan();
        let Compression { policy, budget, .. } = compression;
        let extents: Vec<HeadExtent> = (0..plan.heads())
            .map(|head| HeadExtent { slots: tokens, slots_per_page: plan.slots_per_page(head) })
            .collect();
        let asked = budget.target_pages(&extents, tokens, policy).map_err(CacheError::from)?;
        Ok((asked, plan.pages_for(policy.floor().min(tokens)).max(1)))
    }

    /// Pages that a running job's prefill will still take.
    pub(super) fn growth(&self, job: &Job) -> usize {
        let held = job.sequence.as_ref().map_or(0, |s| s.tables().pages());
        if job.is_decoding() { 0 } else { self.peak_pages(job).saturating_sub(held) }
    }

    /// The most pages that a job holds until its first token is drawn.
    pub(super) fn peak_pages(&self, job: &Job) -> usize {
        let plan = self.cache.table_plan();
        let tokens = job.tokens.len();
        // The next token needs a place too, unless it is the last one.
        let full = plan.pages_for(tokens.saturating_add(1).min(job.request.positions()));
        match (&self.options.compression, job.prefill_target) {
            (Some(compression), Some(target)) if compression.between_chunks => {
                let chunk = tokens.div_ceil(tokens.div_ceil(self.options.chunk));
                full.min(target + plan.pages_for(chunk) + plan.heads())
            }
            _ => full,
        }
    }
}
