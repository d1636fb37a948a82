//! A sequence of a [`KvCache`](super::KvCache): its tables and what is known of its slots' worth.

use std::{fmt, sync::Arc};

use super::{layouts::HeadLayouts, watch::Watch};
use crate::{
    evict::{Score, Scorer},
    plan::{PlanError, Sequence},
};

/// The cached K and V of one sequence. Dropping it returns its pages.
pub struct KvSequence {
    pub(super) tables: Sequence,
    pub(super) layouts: Arc<HeadLayouts>,
    pub(super) watch: Option<Watch>,
}

impl KvSequence {
    pub(super) fn new(tables: Sequence, layouts: Arc<HeadLayouts>) -> Self {
        Self { tables, layouts, watch: None }
    }

    /// The same sequence on shared pages.
    pub(super) fn forked(&self, tables: Sequence) -> Self {
        let watch = self.watch.clone();
        Self { tables, layouts: Arc::clone(&self.layouts), watch }
    }

    /// Collects attention for `scorer` from the next step on, if it is one that needs it. Slots that
    /// are there already start at zero; the next chunk of a prefill scores them, where the scorer asks
    /// for a window of queries. [`KvCache::compress`](super::KvCache::compress) then takes the scores
    /// for this scorer, or for one [like it](Scorer::is_like).
    pub fn observe(&mut self, scorer: Arc<dyn Scorer>) {
        // Slots of a forgotten step are not there to be scored; the other verbs say what is lost.
        let _ = self.recover();
        let needs = scorer.needs();
        if needs.attention_window.is_none() && !needs.decode_attention {
            self.watch = None;
            return;
        }
        let scores = Watch::zeroes(&self.tables);
        self.watch = Some(Watch { scorer, scores });
    }

    /// Forgets the scores collected so far and collects no more.
    pub fn stop_observing(&mut self) {
        self.watch = None;
    }

    /// Takes back what a forgotten step left (`mem::forget`), as every verb of the cache that changes the
    /// sequence does first; see [`Sequence::recover`].
    ///
    /// # Errors
    /// [`PlanError::Torn`]: what the sequence held is lost.
    pub fn recover(&mut self) -> Result<(), PlanError> {
        self.tables.recover()
    }

    /// Page tables, slots and positions.
    pub fn tables(&self) -> &Sequence {
        &self.tables
    }

    /// The formats and layouts of its pages.
    pub fn layouts(&self) -> &HeadLayouts {
        &self.layouts
    }

    /// Tokens seen.
    pub fn tokens(&self) -> usize {
        self.tables.tokens()
    }

    /// The scores at rest of a head's slots, if the sequence collects any; empty for a head with a window.
    pub fn scores(&self, head: usize) -> Option<&[Score]> {
        Some(&self.watch.as_ref()?.scores[head])
    }

    /// Bytes of bookkeeping: tables, positions and scores.
    pub fn metadata_bytes(&self) -> usize {
        let scores = self.watch.iter().flat_map(|watch| &watch.scores);
        let scores = scores.map(|s| s.capacity() * size_of::<Score>() + size_of_val(s));
        self.tables.metadata_bytes() + scores.sum::<usize>()
    }
}

impl fmt::Debug for KvSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvSequence")
            .field("tokens", &self.tokens())
            .field("pages", &self.tables.pages())
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}
