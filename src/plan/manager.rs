//! The door of the planner.

use super::{
    audit::{self, Audit, AuditError},
    error::PlanError,
    member::{Member, Refused},
    open::Open,
    pool::{Page, PagePool, PoolError, PoolStats, StepId},
    rewrite::{self, Rewrite, Stay},
    sequence::Sequence,
    shared::Shared,
    sharing::Sharing,
    step::{self, Step, StepOf},
    table_plan::TablePlan,
};
use crate::base::{HeadRewrite, compact, sync::Arc};

/// Owns the pages of a cache and hands them out to sequences.
///
/// `Send + Sync`: sequences own their tables, so the one lock inside is held only while pages are
/// taken, shared or given back.
///
/// ```
/// use headwise::plan::{BlockManager, TablePlan};
///
/// // Two heads: one with 16 slots to a page, one (in a denser format) with 31.
/// let manager = BlockManager::new(100)?;
/// let mut sequence = manager.sequence(TablePlan::new([16, 31])?);
/// let step = manager.reserve([(&mut sequence, 40)])?;
/// step.commit();
/// assert_eq!(sequence.head(0).pages.len(), 3);
/// assert_eq!(sequence.head(1).pages.len(), 2);
/// # Ok::<(), headwise::plan::PlanError>(())
/// ```
#[derive(Debug)]
pub struct BlockManager {
    shared: Arc<Shared>,
}

impl BlockManager {
    /// A manager of `pages` pages.
    pub fn new(pages: usize) -> Result<Self, PoolError> {
        Ok(Self { shared: Arc::new(Shared::new(pages)?) })
    }

    /// An empty sequence.
    pub fn sequence(&self, plan: impl Into<std::sync::Arc<TablePlan>>) -> Sequence {
        Sequence::new(Arc::clone(&self.shared), plan.into())
    }

    /// A sequence with the same tokens that shares every page of `sequence`. Whoever appends first to
    /// a shared partial page gets a private copy of it ([`Step::copies`]).
    ///
    /// # Errors
    /// Also [`PlanError::OpenGuard`]: what a step or a rewrite has not committed is not to be shared.
    pub fn fork(&self, sequence: &Sequence) -> Result<Sequence, PlanError> {
        self.check_owner(sequence)?;
        sequence.check_closed()?;
        let pages: Vec<Page> = sequence.tables.all().collect();
        sequence.sharing.fork();
        self.shared.with_pool(|pool| pool.share(&pages))?;
        Ok(Sequence {
            shared: Arc::clone(&self.shared),
            plan: std::sync::Arc::clone(&sequence.plan),
            tables: sequence.tables.clone(),
            heads: sequence.heads.clone(),
            fills: sequence.fills.clone(),
            origins: sequence.origins.clone(),
            tokens: sequence.tokens,
            next_leaving: sequence.next_leaving,
            sharing: Sharing::of_fork(),
            replaced: Vec::new(),
            open: Open::Nothing,
        })
    }

    /// Grants `tokens` more tokens to every sequence, or nothing to any.
    pub fn reserve<'a>(
        &self,
        appends: impl IntoIterator<Item = (&'a mut Sequence, usize)>,
    ) -> Result<Step<'a>, PlanError> {
        Ok(self.reserve_members(appends)?)
    }

    /// As [`reserve`](Self::reserve), for sequences that the step holds in whatever way: by value, boxed, or
    /// behind locks. Such a step borrows nothing: it can be stored, sent to another thread, and held while
    /// other sequences are opened, forked and dropped.
    ///
    /// # Errors
    /// [`Refused`] gives the members back.
    ///
    /// ```
    /// use headwise::plan::{BlockManager, Sequence, StepOf, TablePlan};
    ///
    /// struct Running {
    ///     step: StepOf<Sequence>,
    /// }
    ///
    /// let manager = BlockManager::new(10)?;
    /// let sequence = manager.sequence(TablePlan::new([4])?);
    /// let running = Running { step: manager.reserve_members([(sequence, 6)]).map_err(|r| r.error)? };
    /// let other = manager.sequence(TablePlan::new([4])?);
    /// let worker = std::thread::spawn(move || running.step.commit());
    /// let [sequence] = worker.join().unwrap().try_into().unwrap();
    /// assert_eq!((sequence.tokens(), other.tokens()), (6, 0));
    /// # Ok::<(), headwise::plan::PlanError>(())
    /// ```
    pub fn reserve_members<M: Member>(
        &self,
        members: impl IntoIterator<Item = (M, usize)>,
    ) -> Result<StepOf<M>, Refused<M>> {
        let mut members: Vec<(M, usize)> = members.into_iter().collect();
        let mut ready =
            members.iter().try_for_each(|(member, _)| self.check_owner(member.tables()));
        if ready.is_ok() {
            ready = members.iter_mut().try_for_each(|(member, _)| member.tables_mut().recover());
        }
        match ready {
            Ok(()) => step::reserve(&self.shared, members),
            Err(error) => Err(Refused { error, members }),
        }
    }

    /// Prepares the compaction of some heads by these very moves, in one [pass](super::Pass), for an
    /// engine that found the moves itself (on a device, say). Every shared page that a move writes needs
    /// a free page for its copy.
    ///
    /// # Errors
    /// [`PoolError::OutOfPages`] says how many pages the copies need.
    pub fn rewrite<'a>(
        &self,
        sequence: &'a mut Sequence,
        heads: Vec<HeadRewrite>,
    ) -> Result<Rewrite<'a>, PlanError> {
        self.check_owner(sequence)?;
        sequence.recover()?;
        rewrite::begin(sequence, heads, None, Stay::First)
    }

    /// As [`rewrite`](Self::rewrite), for what the moves leave of each head, with the fewest free pages
    /// that can be: shared pages with holes leave first, what survives in them moves to pages that the
    /// sequence owns alone, and the copies of some heads go to pages that others have just let go of.
    /// Pages and moves are then those that the rewrite says, not the caller's.
    ///
    /// # Errors
    /// [`PoolError::OutOfPages`]: its `needed` is the least number of free pages that carries out the
    /// rewrite. A page that is shared and loses slots is copied unless it leaves; so while all pages are
    /// shared, it is as many as stay and lose slots.
    pub fn rewrite_sparing<'a>(
        &self,
        sequence: &'a mut Sequence,
        heads: Vec<HeadRewrite>,
    ) -> Result<Rewrite<'a>, PlanError> {
        self.check_owner(sequence)?;
        sequence.recover()?;
        rewrite::begin(sequence, heads, None, Stay::Sparing)
    }

    /// Prepares to forget the newest tokens, so that `tokens` are left. The tokens that came after a
    /// head's last eviction are its last slots, and nothing moves when they go; further back slots have
    /// no order, and that takes a compaction, a [sparing](Self::rewrite_sparing) one.
    ///
    /// # Errors
    /// [`PlanError::PastMargin`] where a head with a window has given pages back that the next query would
    /// see again.
    pub fn truncate<'a>(
        &self,
        sequence: &'a mut Sequence,
        tokens: usize,
    ) -> Result<Rewrite<'a>, PlanError> {
        self.check_owner(sequence)?;
        sequence.recover()?;
        if tokens > sequence.tokens() {
            return Err(PlanError::TruncateGrows { tokens: sequence.tokens(), to: tokens });
        }
        sequence.check_margin(tokens)?;
        let tables = sequence.heads().enumerate();
        let heads = tables.map(|(head, table)| {
            let (listed, run) = table.positions.split(table.slots);
            let (slots_after, moves) = match tokens.checked_sub(run.start) {
                // The tokens that go are the last slots.
                Some(left) => (listed.len() + left.min(run.len()), Vec::new()),
                None => compact(listed.len(), |slot| listed[slot] as usize >= tokens),
            };
            HeadRewrite { head, slots_after, moves }
        });
        let heads = heads.collect();
        rewrite::begin(sequence, heads, Some(tokens as u32), Stay::Sparing)
    }

    /// Ends the running step: pages freed until now can be taken again once it is
    /// [`retire`](Self::retire)d.
    pub fn end_step(&self) -> StepId {
        self.shared.with_pool(PagePool::end_step)
    }

    /// Says that nothing reads pages of `step` or of earlier steps any more.
    pub fn retire(&self, step: StepId) {
        self.shared.with_pool(|pool| pool.retire(step, |_| ()));
    }

    /// As [`retire`](Self::retire), and returns the pages that became free, for an engine that clears
    /// or poisons them.
    pub fn retire_listing(&self, step: StepId) -> Vec<u32> {
        let mut freed = Vec::new();
        self.shared.with_pool(|pool| pool.retire(step, |page| freed.push(page)));
        freed
    }

    /// How the pages are used now.
    pub fn stats(&self) -> PoolStats {
        self.with_pool(|pool| pool.stats())
    }

    /// Bytes of bookkeeping of the pool; sequences count their own.
    pub fn metadata_bytes(&self) -> usize {
        self.shared.with_pool(|pool| pool.metadata_bytes())
    }

    /// Accounts for every page. `sequences` are all sequences of this manager, none of them in an
    /// open step.
    ///
    /// # Errors
    /// [`AuditError::Defect`] if pages are not accounted for; the others say why the list does not allow
    /// to tell. The manager knows how many sequences are alive, so as long as no other thread makes or
    /// drops one meanwhile, it is never a defect that one is missing.
    pub fn audit<'a>(
        &self,
        sequences: impl IntoIterator<Item = &'a Sequence>,
    ) -> Result<Audit, AuditError> {
        let sequences: Vec<&Sequence> = sequences.into_iter().collect();
        // Each sequence holds the shared part once, as the manager does.
        let live = Arc::strong_count(&self.shared) - 1;
        audit::check_list(&sequences, live, |sequence| self.check_owner(sequence))?;
        let (survey, stats) = self.with_pool(|pool| (pool.survey(), pool.stats()));
        Ok(audit::audit(&survey, stats, &sequences)?)
    }

    /// Refuses sequences of other managers.
    pub(crate) fn check_owner(&self, sequence: &Sequence) -> Result<(), PlanError> {
        if Arc::ptr_eq(&self.shared, &sequence.shared) {
            return Ok(());
        }
        Err(PlanError::ForeignSequence)
    }

    pub(super) fn with_pool<R>(&self, f: impl FnOnce(&mut PagePool) -> R) -> R {
        self.shared.with_pool(f)
    }
}
