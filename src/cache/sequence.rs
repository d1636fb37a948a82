//! A sequence of a [`KvCache`](super::KvCache): its tables and what is known of its slots' worth.

use std::{fmt, sync::Arc};

use super::HeadLayouts;
use crate::{
    evict::{Score, Scorer},
    plan::Sequence,
};

/// The cached K and V of one sequence. Dropping it returns its pages.
pub struct KvSequence {
    pub(super) tables: Sequence,
    pub(super) layouts: Arc<HeadLayouts>,
    pub(super) watch: Option<Watch>,
}

/// What a sequence collects for an attention-based scorer.
pub(super) struct Watch {
    pub scorer: Arc<dyn Scorer>,
    /// One score for each slot of each head.
    pub scores: Vec<Vec<Score>>,
}

impl KvSequence {
    pub(super) fn new(tables: Sequence, layouts: Arc<HeadLayouts>) -> Self {
        Self { tables, layouts, watch: None }
    }

    /// The same sequence on shared pages.
    pub(super) fn forked(&self, tables: Sequence) -> Self {
        let watch = self
            .watch
            .as_ref()
            .map(|watch| Watch { scorer: Arc::clone(&watch.scorer), scores: watch.scores.clone() });
        Self { tables, layouts: Arc::clone(&self.layouts), watch }
    }

    /// Collects attention for `scorer` from the next step on, if it is one that needs it. Slots that
    /// are there already start at zero, and are scored by the next chunk of a prefill.
    pub fn observe(&mut self, scorer: Arc<dyn Scorer>) {
        let needs = scorer.needs();
        if needs.attention_window.is_none() && !needs.decode_attention {
            self.watch = None;
            return;
        }
        let scores = self.tables.heads().map(|table| vec![Score::ZERO; table.slots]).collect();
        self.watch = Some(Watch { scorer, scores });
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

    /// The scores at rest of a head's slots, if the sequence collects any.
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

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({})", self.scorer.name())
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
