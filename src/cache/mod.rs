//! One object that keeps a model's K and V: planner, page store and attention tied together.
//!
//! ```text
//! let step = cache.step([(&mut sequence, tokens)])?;      pages for all, or an error and no change
//! for layer in 0..layers { step.attend(layer, q, k, v, out)?; }   append, then attend
//! step.commit();
//! cache.compress(&mut sequence, &compression)?;           whole pages leave, head by head
//! ```
//!
//! An engine with tensors of its own can use [`plan`](crate::plan) and [`evict`](crate::evict) alone.

mod compress;
mod config;
mod error;
mod layouts;
mod observe;
mod sequence;
mod step;

use std::sync::Arc;

pub use compress::{Compressed, Compression};
pub use config::{CacheConfig, Capacity};
pub use error::CacheError;
pub use layouts::{FormatMap, HeadLayouts};
pub use sequence::KvSequence;
pub use step::CacheStep;

use crate::{
    attend::CpuAttention,
    base::CacheShape,
    plan::{BlockManager, PlanError, PoolStats, StepId, TablePlan},
    store::{HostStore, PageStore},
};

/// A paged KV cache in host memory.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    block_tokens: usize,
    layouts: Arc<HeadLayouts>,
    manager: BlockManager,
    store: HostStore,
    attention: CpuAttention,
    scratch: step::Scratch,
    saturated: u64,
}

impl KvCache {
    /// Lays out pages, takes their memory and fills it with nothing.
    pub fn new(config: &CacheConfig) -> Result<Self, CacheError> {
        let page_bytes = config.page_bytes()?;
        let layouts = HeadLayouts::new(config.shape, &config.formats, page_bytes)?;
        let pages = config.pages(page_bytes)?;
        // The store first: it refuses what the system cannot give and touches none of what it got. The
        // planner writes to all of its bookkeeping.
        let store = HostStore::new(pages, page_bytes)?;
        Ok(Self {
            shape: config.shape,
            block_tokens: config.block_tokens,
            layouts: Arc::new(layouts),
            manager: BlockManager::new(pages).map_err(PlanError::from)?,
            store,
            attention: CpuAttention::new(),
            scratch: step::Scratch::default(),
            saturated: 0,
        })
    }

    /// An empty sequence in the formats of the cache.
    pub fn sequence(&self) -> KvSequence {
        self.sequence_in(Arc::clone(&self.layouts))
    }

    /// An empty sequence in formats of its own; all formats share the pages.
    pub fn sequence_with(&self, formats: &FormatMap) -> Result<KvSequence, CacheError> {
        let layouts = HeadLayouts::new(self.shape, formats, self.store.page_bytes())?;
        Ok(self.sequence_in(Arc::new(layouts)))
    }

    fn sequence_in(&self, layouts: Arc<HeadLayouts>) -> KvSequence {
        let tables = self.manager.sequence(Arc::clone(layouts.plan()));
        KvSequence::new(tables, layouts)
    }

    /// A sequence with the same tokens that shares all pages; see [`BlockManager::fork`].
    pub fn fork(&self, sequence: &KvSequence) -> Result<KvSequence, CacheError> {
        Ok(sequence.forked(self.manager.fork(sequence.tables())?))
    }

    /// Reserves pages for the new tokens of all `members`: all or nothing.
    pub fn step<'a>(
        &'a mut self,
        members: impl IntoIterator<Item = (&'a mut KvSequence, usize)>,
    ) -> Result<CacheStep<'a>, CacheError> {
        step::begin(self, members.into_iter().collect())
    }

    /// Forgets the newest tokens of a sequence, so that `tokens` are left.
    pub fn truncate(&mut self, sequence: &mut KvSequence, tokens: usize) -> Result<(), CacheError> {
        compress::truncate(self, sequence, tokens)
    }

    /// Evicts whole pages until the sequence is within the budget.
    pub fn compress(
        &mut self,
        sequence: &mut KvSequence,
        compression: &Compression,
    ) -> Result<Compressed, CacheError> {
        compress::compress(self, sequence, compression)
    }

    /// Lets pages freed since the last call be used again: nothing on this host reads them any more.
    ///
    /// [`CacheStep::commit`] and [`compress`](Self::compress) do it; it is public for those who drop
    /// sequences and look at the counters before the next step. In debug builds the freed pages are
    /// poisoned with NaN.
    pub fn settle(&mut self) {
        let step: StepId = self.manager.end_step();
        if cfg!(debug_assertions) {
            let freed = self.manager.retire_listing(step);
            let poisoned = self.store.poison(&freed);
            debug_assert_eq!(poisoned, Ok(()));
        } else {
            self.manager.retire(step);
        }
    }

    /// The shape of the model.
    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Tokens of a page in f16: the unit the page size was chosen in.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Layouts of the heads' pages in the formats of the cache.
    pub fn layouts(&self) -> &HeadLayouts {
        &self.layouts
    }

    /// The slots per page of each head in the formats of the cache.
    pub fn table_plan(&self) -> &TablePlan {
        self.layouts.plan()
    }

    /// The planner: counters, admission, forecasts, audits.
    pub fn manager(&self) -> &BlockManager {
        &self.manager
    }

    /// The page bytes.
    pub fn store(&self) -> &HostStore {
        &self.store
    }

    /// Keys and values of all committed steps that their formats could not hold and that were saturated.
    pub fn saturated(&self) -> u64 {
        self.saturated
    }

    /// How the pages are used now.
    pub fn stats(&self) -> PoolStats {
        self.manager.stats()
    }

    /// Accounts for every page; `sequences` are all sequences of the cache.
    pub fn audit<'a>(
        &self,
        sequences: impl IntoIterator<Item = &'a KvSequence>,
    ) -> Result<crate::plan::Audit, CacheError> {
        Ok(self.manager.audit(sequences.into_iter().map(KvSequence::tables))?)
    }
}

#[cfg(test)]
mod tests;
