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

use parking_lot::Mutex;

pub use compress::{Compressed, Compression};
pub use config::{CacheConfig, Capacity};
pub use error::CacheError;
pub use layouts::{FormatMap, HeadLayouts};
pub use sequence::KvSequence;
pub use step::CacheStep;

use crate::{
    attend::CpuAttention,
    base::CacheShape,
    plan::{BlockManager, PlanError, PoolStats, StepId, StepNeeds, TablePlan},
    store::{HostStore, PageStore},
};

/// A paged KV cache in host memory.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    rollback: usize,
    block_tokens: usize,
    layouts: Arc<HeadLayouts>,
    manager: BlockManager,
    store: HostStore,
    attention: CpuAttention,
    scratch: step::Scratch,
    /// Pages that became free behind a shared reference to the cache, and are to be poisoned by who next
    /// has it alone. Filled in debug builds.
    unpoisoned: Mutex<Vec<u32>>,
    saturated: u64,
}

impl KvCache {
    /// Lays out pages, takes their memory and fills it with nothing.
    pub fn new(config: &CacheConfig) -> Result<Self, CacheError> {
        let page_bytes = config.page_bytes()?;
        let layouts =
            HeadLayouts::new(&config.shape, &config.formats, page_bytes, config.rollback)?;
        let pages = config.pages(page_bytes)?;
        // The store first: it refuses what the system cannot give and touches none of what it got. The
        // planner writes to all of its bookkeeping.
        let store = HostStore::new(pages, page_bytes)?;
        Ok(Self {
            shape: config.shape.clone(),
            rollback: config.rollback,
            block_tokens: config.block_tokens,
            layouts: Arc::new(layouts),
            manager: BlockManager::new(pages).map_err(PlanError::from)?,
            store,
            attention: CpuAttention::new(),
            scratch: step::Scratch::default(),
            unpoisoned: Mutex::default(),
            saturated: 0,
        })
    }

    /// An empty sequence in the formats of the cache.
    pub fn sequence(&self) -> KvSequence {
        self.sequence_in(Arc::clone(&self.layouts))
    }

    /// An empty sequence in formats of its own; all formats share the pages.
    pub fn sequence_with(&self, formats: &FormatMap) -> Result<KvSequence, CacheError> {
        let layouts =
            HeadLayouts::new(&self.shape, formats, self.store.page_bytes(), self.rollback)?;
        Ok(self.sequence_in(Arc::new(layouts)))
    }

    fn sequence_in(&self, layouts: Arc<HeadLayouts>) -> KvSequence {
        let tables = self.manager.sequence(Arc::clone(layouts.plan()));
        KvSequence::new(tables, layouts)
    }

    /// A sequence with the same tokens that shares all pages; see [`BlockManager::fork`].
    ///
    /// # Errors
    /// Also [`PlanError::OpenGuard`], if a step of the sequence was forgotten:
    /// [`KvSequence::recover`] takes it back.
    pub fn fork(&self, sequence: &KvSequence) -> Result<KvSequence, CacheError> {
        Ok(sequence.forked(self.manager.fork(sequence.tables())?))
    }

    /// What [`step`](Self::step) would take for these members, and whether it would be granted; nothing is
    /// changed. See [`BlockManager::needs`].
    ///
    /// # Errors
    /// A sequence of another cache, one that is named twice, or one that would grow too long; one with a
    /// forgotten step ([`KvSequence::recover`]).
    ///
    /// A scheduler that makes room before it steps, and so never holds a refused step:
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use headwise::{
    ///     base::CacheShape,
    ///     cache::{CacheConfig, CacheError, CacheStep, KvCache, KvSequence},
    ///     plan::Admission,
    /// };
    ///
    /// /// One more token for each request; the youngest make way where it must be.
    /// fn decode<'a>(
    ///     cache: &'a mut KvCache,
    ///     running: &'a mut HashMap<u64, KvSequence>,
    ///     preempted: &mut Vec<u64>,
    /// ) -> Result<CacheStep<'a>, CacheError> {
    ///     loop {
    ///         let needs = cache.needs(running.values().map(|sequence| (sequence, 1)))?;
    ///         let youngest = running.keys().max().copied();
    ///         match (needs.admission, youngest) {
    ///             (Admission::Later { .. }, Some(youngest)) if running.len() > 1 => {
    ///                 running.remove(&youngest); // the next question finds its pages free
    ///                 preempted.push(youngest);
    ///             }
    ///             // Granted, or refused for good.
    ///             _ => return cache.step(running.values_mut().map(|sequence| (sequence, 1))),
    ///         }
    ///     }
    /// }
    ///
    /// let shape = CacheShape::new(1, 2, 2, 16)?;
    /// let mut cache = KvCache::new(&CacheConfig { block_tokens: 4, ..CacheConfig::new(shape, 12) })?;
    /// let (q, mut out) = (vec![0.5; 4 * 2 * 16], vec![0.0; 4 * 2 * 16]);
    /// let mut running = HashMap::new();
    /// for request in 0..3 {
    ///     let mut sequence = cache.sequence();
    ///     let mut step = cache.step([(&mut sequence, 4)])?;
    ///     step.attend(0, &q, &q, &q, &mut out)?;
    ///     step.commit()?;
    ///     running.insert(request, sequence);
    /// }
    /// let mut preempted = Vec::new();
    /// let mut step = decode(&mut cache, &mut running, &mut preempted)?;
    /// step.attend(0, &q[..32], &q[..32], &q[..32], &mut out[..32])?;
    /// step.commit()?;
    /// assert_eq!((running.len(), preempted), (1, vec![2, 1]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn needs<'a>(
        &self,
        members: impl IntoIterator<Item = (&'a KvSequence, usize)>,
    ) -> Result<StepNeeds, CacheError> {
        let members = members.into_iter().map(|(sequence, tokens)| (sequence.tables(), tokens));
        Ok(self.manager().needs(members)?)
    }

    /// Reserves pages for the new tokens of all `members`: all or nothing. What a forgotten step of a
    /// member left (`mem::forget`) is taken back first.
    pub fn step<'a>(
        &'a mut self,
        members: impl IntoIterator<Item = (&'a mut KvSequence, usize)>,
    ) -> Result<CacheStep<'a>, CacheError> {
        step::begin(self, members.into_iter().collect())
    }

    /// Forgets the newest tokens of a sequence, so that `tokens` are left.
    ///
    /// # Errors
    /// [`PlanError::PastMargin`] in a shape with windows, beyond [`CacheConfig::rollback`].
    pub fn truncate(&mut self, sequence: &mut KvSequence, tokens: usize) -> Result<(), CacheError> {
        compress::truncate(self, sequence, tokens)
    }

    /// Evicts whole pages until the sequence is within the budget. Heads of layers with a window take no
    /// part: the budget is that of all others.
    pub fn compress(
        &mut self,
        sequence: &mut KvSequence,
        compression: &Compression,
    ) -> Result<Compressed, CacheError> {
        compress::compress(self, sequence, compression)
    }

    /// Lets pages freed until now be used again: nothing on this host reads them any more. In debug
    /// builds they are poisoned with NaN.
    ///
    /// Every verb and every counter of the cache does it first, so pages of a dropped sequence are never
    /// missed; it is public for those who want the poison at once.
    pub fn settle(&mut self) {
        self.open_fence();
        let freed = std::mem::take(self.unpoisoned.get_mut());
        let poisoned = self.store.poison(&freed);
        debug_assert_eq!(poisoned, Ok(()));
    }

    fn open_fence(&self) {
        let step: StepId = self.manager.end_step();
        if cfg!(debug_assertions) {
            self.unpoisoned.lock().extend(self.manager.retire_listing(step));
        } else {
            self.manager.retire(step);
        }
    }

    /// Refuses sequences of other caches.
    pub(crate) fn check_owner(&self, sequence: &KvSequence) -> Result<(), CacheError> {
        Ok(self.manager.check_owner(sequence.tables())?)
    }

    /// The shape of the model.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Newest tokens that can be taken back in layers with a window.
    pub fn rollback(&self) -> usize {
        self.rollback
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

    /// The planner: counters, admission, forecasts, audits. What was freed until now counts as free.
    pub fn manager(&self) -> &BlockManager {
        self.open_fence();
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
        self.manager().stats()
    }

    /// Accounts for every page; `sequences` are all sequences of the cache; see
    /// [`BlockManager::audit`].
    pub fn audit<'a>(
        &self,
        sequences: impl IntoIterator<Item = &'a KvSequence>,
    ) -> Result<crate::plan::Audit, CacheError> {
        Ok(self.manager().audit(sequences.into_iter().map(KvSequence::tables))?)
    }
}

#[cfg(test)]
mod tests;
