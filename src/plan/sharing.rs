//! Who may share pages with whom.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether others may hold pages of a sequence, so that one that was never forked need not ask.
///
/// A fork has its source by a shared reference, hence the atomics; whoever appends or evicts has the
/// sequence to itself, and so sees every fork that was made of it. That orders all accesses (they are the
/// standard library's also where loom watches).
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// A fork was made of the sequence, or it is one. Once set, it stays.
    forked: AtomicBool,
    /// A partial last page may be shared. A granted step makes all of them private.
    tails: AtomicBool,
}

impl Sharing {
    /// Of a fork.
    pub fn of_fork() -> Self {
        Self { forked: true.into(), tails: true.into() }
    }

    /// A fork is being made.
    pub fn fork(&self) {
        self.forked.store(true, Relaxed);
        self.tails.store(true, Relaxed);
    }

    /// Whether any page may be shared.
    pub fn any(&self) -> bool {
        self.forked.load(Relaxed)
    }

    /// Whether a partial last page may be shared.
    pub fn tails(&self) -> bool {
        self.tails.load(Relaxed)
    }

    /// Says that all partial last pages are private until the next fork.
    pub fn settle(&mut self) {
        *self.tails.get_mut() = false;
    }

    /// Other pages, full or replaced ones, became the last: they may be shared if any page may.
    pub fn unsettle(&mut self) {
        *self.tails.get_mut() |= *self.forked.get_mut();
    }
}
