//! The cache: shape, planner and memory.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use super::{
    config::CacheConfig,
    error::CacheError,
    host::HostMemory,
    layouts::{FormatMap, HeadLayouts},
    memory::Memory,
    sequence::KvSequence,
};
use crate::{
    base::CacheShape,
    plan::{BlockManager, PlanError, PoolStats, StepNeeds, TablePlan},
    store::HostStore,
};

/// A paged KV cache, in host memory unless said otherwise.
///
/// Verbs take a shared reference, and a cache may be shared by threads: each sequence is one step's or one
/// verb's at a time, which its borrow or its [handle](super::SharedSequence) sees to.
#[derive(Debug)]
pub struct KvCache<M = HostMemory> {
    shape: CacheShape,
    rollback: usize,
    block_tokens: usize,
    layouts: Arc<HeadLayouts>,
    manager: BlockManager,
    pub(super) memory: M,
    /// Held while the fence is opened and while pages are taken, so that none is poisoned that was.
    gate: Mutex<()>,
    saturated: AtomicU64,
}

impl KvCache {
    /// Lays out pages, takes their memory and fills it with nothing.
    pub fn new(config: &CacheConfig) -> Result<Self, CacheError> {
        Self::in_memory(config, HostMemory::new)
    }

    /// The page bytes. Steps wait while they are looked at, so verbs of the cache are for after that: a
    /// thread that has this and steps, compresses or, in debug builds, settles waits for itself.
    pub fn store(&self) -> impl Deref<Target = HostStore> {
        self.memory.store()
    }
}

impl<M: Memory> KvCache<M> {
    /// A cache in the memory that `allocate` makes of a number of pages and their bytes.
    pub(super) fn in_memory(
        config: &CacheConfig,
        allocate: impl FnOnce(usize, usize) -> Result<M, CacheError>,
    ) -> Result<Self, CacheError> {
        let page_bytes = config.page_bytes()?;
        let layouts =
            HeadLayouts::new(&config.shape, &config.formats, page_bytes, config.rollback)?;
        let pages = config.pages(page_bytes)?;
        // The memory first: it refuses what the system cannot give and touches none of what it got. The
        // planner writes to all of its bookkeeping.
        let memory = allocate(pages, page_bytes)?;
        Ok(Self {
            shape: config.shape.clone(),
            rollback: config.rollback,
            block_tokens: config.block_tokens,
            layouts: Arc::new(layouts),
            manager: BlockManager::new(pages).map_err(PlanError::from)?,
            memory,
            gate: Mutex::new(()),
            saturated: AtomicU64::new(0),
        })
    }

    /// An empty sequence in the formats of the cache.
    pub fn sequence(&self) -> KvSequence {
        self.sequence_in(Arc::clone(&self.layouts))
    }

    /// An empty sequence in formats of its own; all formats share the pages.
    pub fn sequence_with(&self, formats: &FormatMap) -> Result<KvSequence, CacheError> {
        let layouts =
            HeadLayouts::new(&self.shape, formats, self.memory.page_bytes(), self.rollback)?;
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
    ///     cache: &'a KvCache,
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
    /// let cache = KvCache::new(&CacheConfig { block_tokens: 4, ..CacheConfig::new(shape, 12) })?;
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
    /// let mut step = decode(&cache, &mut running, &mut preempted)?;
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

    /// Lets pages freed until now be used again, those that nothing reads any more. In debug builds they
    /// are poisoned with NaN.
    ///
    /// Every verb and every counter of the cache does it first, so pages of a dropped sequence are never
    /// missed; it is public for those who want the poison at once.
    pub fn settle(&self) -> Result<(), CacheError> {
        let _gate = self.gate.lock();
        self.open_fence()
    }

    /// After what cannot be undone: a memory that fails here keeps its pages behind the fence, and the next
    /// verb says so, before it changes anything.
    pub(super) fn settle_if_it_can(&self) {
        let _ = self.settle();
    }

    /// Opens the fence, then has `take` take pages; no other thread does either meanwhile.
    pub(super) fn settled<R>(
        &self,
        take: impl FnOnce(&BlockManager) -> R,
    ) -> Result<R, CacheError> {
        let _gate = self.gate.lock();
        self.open_fence()?;
        Ok(take(&self.manager))
    }

    /// With the gate held.
    fn open_fence(&self) -> Result<(), CacheError> {
        let Some(done) = self.memory.close(self.manager.end_step())? else { return Ok(()) };
        if cfg!(debug_assertions) {
            let freed = self.manager.retire_listing(done);
            self.memory.poison(&freed)?;
        } else {
            self.manager.retire(done);
        }
        Ok(())
    }

    /// The memory that its pages are in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Bytes of each page.
    pub fn page_bytes(&self) -> usize {
        self.memory.page_bytes()
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

    /// The planner: counters, admission, forecasts, audits. What was freed until now counts as free, once
    /// nothing reads it.
    pub fn manager(&self) -> &BlockManager {
        self.settle_if_it_can();
        &self.manager
    }

    /// Keys and values of all committed steps that their formats could not hold and that were saturated.
    /// A device counts them as they come, those of steps that were dropped too; asking waits for it.
    pub fn saturated(&self) -> Result<u64, CacheError> {
        Ok(self.saturated.load(Relaxed) + self.memory.saturated()?)
    }

    pub(super) fn count_saturated(&self, values: u64) {
        self.saturated.fetch_add(values, Relaxed);
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
