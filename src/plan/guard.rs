//! Guards that are neither committed nor dropped.
//!
//! A step or a rewrite borrows its sequence, but safe code can forget it (`mem::forget`), and the borrow
//! ends. So what a guard did is written down in the sequence itself: whoever finds it there knows that no
//! guard is left, takes it back and goes on, or refuses.

use super::{error::PlanError, open::Open, sequence::Sequence};

impl Sequence {
    /// Takes back what a step or a rewrite left that was forgotten (`mem::forget`) instead of committed
    /// or dropped; where there is none, it does nothing. Every verb that changes a sequence does this
    /// first.
    ///
    /// # Errors
    /// [`PlanError::Torn`] if the moves of the rewrite were handed out.
    pub fn recover(&mut self) -> Result<(), PlanError> {
        self.take_back();
        if matches!(self.open, Open::Torn) { Err(PlanError::Torn) } else { Ok(()) }
    }

    /// Whether no guard is open, for those who only look.
    pub(crate) fn check_closed(&self) -> Result<(), PlanError> {
        match self.open {
            Open::Nothing => Ok(()),
            Open::Moves { .. } | Open::Torn => Err(PlanError::Torn),
            Open::Step { .. } | Open::Rewrite { .. } => Err(PlanError::OpenGuard),
        }
    }

    /// What dropping a guard does.
    pub(super) fn take_back(&mut self) {
        let mut dropped = self.open.take_pages();
        match std::mem::take(&mut self.open) {
            Open::Nothing | Open::Rewrite { .. } => {}
            Open::Step { tokens } => {
                self.retract(tokens, &mut dropped);
                self.restore(&mut dropped);
                self.sharing.unsettle();
            }
            Open::Moves { .. } | Open::Torn => self.open = Open::Torn,
        }
        self.shared.give(&dropped);
    }
}
