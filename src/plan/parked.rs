//! Sequences without pages: what is left of one whose bytes are kept elsewhere.

use super::{
    error::PlanError,
    manager::BlockManager,
    sequence::{HeadState, Sequence},
    table_plan::TablePlan,
};

/// The tables of a sequence without their pages: how long each head is and which tokens it holds. With
/// the bytes of its pages ([`pages`](Self::pages), in this order) it can be brought back.
#[derive(Clone, Debug)]
pub struct Parked {
    plan: std::sync::Arc<TablePlan>,
    heads: Vec<HeadState>,
    tokens: u32,
}

impl Parked {
    /// Tokens seen.
    pub fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// Pages over all heads.
    pub fn pages(&self) -> usize {
        (0..self.heads.len()).map(|head| self.pages_of(head)).sum()
    }

    fn pages_of(&self, head: usize) -> usize {
        let slots = (self.tokens - self.heads[head].lost) as usize;
        slots.div_ceil(self.plan.slots_per_page(head))
    }
}

impl Sequence {
    /// What is left of the sequence without its pages. Their bytes are to be copied head by head, in the
    /// order of the tables.
    ///
    /// # Errors
    /// [`PlanError::OpenGuard`] and [`PlanError::Torn`].
    pub fn park(&self) -> Result<Parked, PlanError> {
        self.check_closed()?;
        let (plan, heads) = (std::sync::Arc::clone(&self.plan), self.heads.clone());
        Ok(Parked { plan, heads, tokens: self.tokens })
    }
}

impl BlockManager {
    /// A sequence as it was when it was parked, in pages of its own, of this manager or another. Their
    /// bytes are then to be copied in, head by head, in the order of the tables.
    ///
    /// # Errors
    /// [`PoolError::OutOfPages`](super::PoolError::OutOfPages) says how many pages are needed.
    pub fn unpark(&self, parked: &Parked) -> Result<Sequence, PlanError> {
        let mut sequence = self.sequence(std::sync::Arc::clone(&parked.plan));
        let mut pages = Vec::new();
        self.with_pool(|pool| pool.take(parked.pages(), &mut pages))?;
        sequence.restore_heads(&parked.heads, parked.tokens, pages.into_iter());
        Ok(sequence)
    }
}
