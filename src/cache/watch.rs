//! What is known of the worth of a sequence's slots.

use std::{fmt, sync::Arc};

use crate::{
    evict::{EvictError, Score, Scorer},
    plan::{HeadTable, Sequence},
};

/// What a sequence collects for an attention-based scorer.
#[derive(Clone)]
pub struct Watch {
    pub(super) scorer: Arc<dyn Scorer>,
    /// One score for each slot of each head; none for heads with a window, which are not evicted from.
    pub(super) scores: Vec<Vec<Score>>,
}

impl Watch {
    /// Whether what was collected is what `scorer` goes by.
    pub(super) fn serves(&self, scorer: &Arc<dyn Scorer>) -> bool {
        Arc::ptr_eq(&self.scorer, scorer) || self.scorer.is_like(scorer.as_ref())
    }

    /// Gives new slots, the last ones of each head, a score of zero. Not every scorer is told of every
    /// step.
    pub(super) fn grow(&mut self, tables: &Sequence) {
        for (head, (scores, table)) in self.scores.iter_mut().zip(tables.heads()).enumerate() {
            if !tables.plan().is_windowed(head) {
                scores.resize(table.slots, Score::ZERO);
            }
        }
    }

    /// Scores of nothing for the slots that are there.
    pub(super) fn zeroes(tables: &Sequence) -> Vec<Vec<Score>> {
        let slots = |(head, table): (usize, HeadTable<'_>)| {
            if tables.plan().is_windowed(head) { 0 } else { table.slots }
        };
        tables.heads().enumerate().map(|head| vec![Score::ZERO; slots(head)]).collect()
    }

    /// Refuses scores that are not those of the tables' slots: pages must not be freed by them.
    pub(super) fn check(&self, tables: &Sequence) -> Result<(), EvictError> {
        for (head, (scores, table)) in self.scores.iter().zip(tables.heads()).enumerate() {
            let (got, expected) = (scores.len(), table.slots);
            if got != expected && !tables.plan().is_windowed(head) {
                return Err(EvictError::Length { what: "the head's scores", got, expected });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({})", self.scorer.name())
    }
}
