//! What a step would take.

use super::{
    admission::Admission, error::PlanError, growth::Growth, manager::BlockManager,
    sequence::Sequence, shared::Shared, tails,
};

/// What a step would take, had it been reserved instead of asked for: [`BlockManager::needs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepNeeds {
    /// Pages for tokens that find no room in the pages their sequences have.
    pub growth: usize,
    /// Private copies of partial pages that others hold too.
    pub copies: usize,
    /// Whether the pages were there: `Now` if the step would have been granted.
    pub admission: Admission,
}

impl StepNeeds {
    /// Pages that the step would take from the pool.
    pub fn pages(&self) -> usize {
        self.growth.saturating_add(self.copies)
    }
}

impl BlockManager {
    /// What [`reserve`](Self::reserve) would take for these members, and whether it would be granted;
    /// nothing is changed. Each sequence stands once, as in a step.
    ///
    /// The answer holds until pages are taken, freed or shared, and while the members stay the same:
    /// which pages are copied depends on who else appends to them.
    ///
    /// # Errors
    /// A sequence of another manager, one that is named twice, or one that would grow too long; one with
    /// a forgotten guard ([`Sequence::recover`]).
    ///
    /// A scheduler that makes room before it reserves, and so never holds a refused step:
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use headwise::plan::{Admission, BlockManager, PlanError, Sequence, Step, TablePlan};
    ///
    /// /// One more token for each request, the oldest first; the youngest make way where it must be.
    /// fn decode<'a>(
    ///     manager: &BlockManager,
    ///     running: &'a mut HashMap<u64, Sequence>,
    ///     preempted: &mut Vec<u64>,
    /// ) -> Result<Step<'a>, PlanError> {
    ///     loop {
    ///         let needs = manager.needs(running.values().map(|sequence| (sequence, 1)))?;
    ///         let youngest = running.keys().max().copied();
    ///         match (needs.admission, youngest) {
    ///             (Admission::Later { .. }, Some(youngest)) if running.len() > 1 => {
    ///                 running.remove(&youngest); // its pages go to the fence
    ///                 preempted.push(youngest);
    ///                 let step = manager.end_step();
    ///                 manager.retire(step); // once the device is done with them
    ///             }
    ///             // Granted, or refused for good.
    ///             _ => return manager.reserve(running.values_mut().map(|sequence| (sequence, 1))),
    ///         }
    ///     }
    /// }
    ///
    /// let manager = BlockManager::new(6)?;
    /// let plan = std::sync::Arc::new(TablePlan::new([4, 4])?);
    /// let mut running = HashMap::new();
    /// for request in 0..3 {
    ///     let mut sequence = manager.sequence(plan.clone());
    ///     manager.reserve([(&mut sequence, 4)])?.commit();
    ///     running.insert(request, sequence);
    /// }
    /// let mut preempted = Vec::new();
    /// let step = decode(&manager, &mut running, &mut preempted)?;
    /// assert_eq!((step.sequences().len(), step.pages_taken()), (1, 2));
    /// step.commit();
    /// assert_eq!(preempted, [2, 1]);
    /// # Ok::<(), PlanError>(())
    /// ```
    pub fn needs<'a>(
        &self,
        members: impl IntoIterator<Item = (&'a Sequence, usize)>,
    ) -> Result<StepNeeds, PlanError> {
        let members: Vec<(&Sequence, usize)> = members.into_iter().collect();
        for &(sequence, tokens) in &members {
            self.check_owner(sequence)?;
            sequence.check_closed()?;
            sequence.check_growth(tokens)?;
        }
        let mut addresses: Vec<*const Sequence> =
            members.iter().map(|&(sequence, _)| std::ptr::from_ref(sequence)).collect();
        addresses.sort_unstable();
        if addresses.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(PlanError::ListedTwice);
        }
        let growth = Growth::of(members.iter().copied());
        self.with_pool(|pool| {
            let copies = tails::copied_tails(pool, members.iter().copied())?.len();
            let admission = growth.admission(copies, pool);
            Ok(StepNeeds { growth: growth.pages, copies, admission })
        })
    }
}

impl Sequence {
    /// Pages that a step of `tokens` more tokens of this sequence alone takes, private copies of partial
    /// pages that others hold included; saturated. What several sequences take together, which may be
    /// fewer copies, is [`BlockManager::needs`](super::BlockManager::needs). Tokens of a step that is open,
    /// or was forgotten, count as there.
    pub fn pages_needed(&self, tokens: usize) -> usize {
        let copies = copies(&self.shared, &[(self, tokens)]);
        self.growth(tokens).saturating_add(copies)
    }
}

/// Private copies that a step of `members`, all of one manager, would make.
pub(super) fn copies(shared: &Shared, members: &[(&Sequence, usize)]) -> usize {
    if !members.iter().any(|&(sequence, tokens)| tokens > 0 && sequence.sharing.tails()) {
        return 0;
    }
    // Tables hold live claims only, so the pool answers for them.
    let copied = |pool: &mut _| tails::copied_tails(pool, members.iter().copied());
    shared.with_pool(copied).map_or(0, |tails| tails.len())
}
