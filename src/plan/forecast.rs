//! What fits, now and in the steps to come.

use super::{admission::Admission, manager::BlockManager, needs, sequence::Sequence};
use crate::base::sync::Arc;

/// Pages that a step to come moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepForecast {
    /// Pages that it takes.
    pub takes: usize,
    /// Pages that leave heads with a window at its commit: free once the step is retired, unless others
    /// hold them too.
    pub gives: usize,
}

impl BlockManager {
    /// Whether a new sequence that needs `pages` pages may start, with `reserved` pages kept free for
    /// the growth of those that run. (A watermark of a few percent is what keeps an engine from
    /// admitting a request and preempting it on the next step. Where nothing runs there is nothing to
    /// reserve for, and what fits should start.)
    pub fn admission(&self, pages: usize, reserved: usize) -> Admission {
        self.with_pool(|pool| {
            let stats = pool.stats();
            if pages > stats.total {
                return Admission::Never { needed: pages, total: stats.total };
            }
            let needed = pages.saturating_add(reserved);
            match needed.saturating_sub(stats.free) {
                0 => Admission::Now,
                missing => Admission::Later { missing, enough_after: pool.enough_after(needed) },
            }
        })
    }

    /// Pages that each of the next `steps` steps takes and gives back if every sequence appends one token per step,
    /// private copies of partial pages that are shared now (by forks) included: the first step makes
    /// them. That is what [`needs`](Self::needs) says of that step.
    ///
    /// Heads that an eviction left page-aligned all need a page on the same later step; this is where
    /// a scheduler sees that burst coming.
    pub fn forecast<'a>(
        sequences: impl IntoIterator<Item = &'a Sequence>,
        steps: usize,
    ) -> Vec<StepForecast> {
        let sequences: Vec<&Sequence> = sequences.into_iter().collect();
        let mut forecasts = vec![StepForecast::default(); steps];
        for sequence in &sequences {
            for (step, forecast) in forecasts.iter_mut().enumerate() {
                let tokens = sequence.tokens() + step;
                forecast.takes += sequence.fills.count(sequence.plan.classes(), tokens, 1);
                forecast.gives += sequence.leaving_after(step);
            }
        }
        if let Some(now) = forecasts.first_mut() {
            let of_one_pool = sequences.chunk_by(|a, b| Arc::ptr_eq(&a.shared, &b.shared));
            for members in of_one_pool {
                let members: Vec<_> = members.iter().map(|&sequence| (sequence, 1)).collect();
                now.takes += needs::copies(&members[0].0.shared, &members);
            }
        }
        forecasts
    }
}
