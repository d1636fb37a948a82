//! One shim for the primitives that loom replaces.
//!
//! Built with `--cfg loom`, every lock of the planner is loom's, and `tests/loom.rs` explores the
//! interleavings.

#[cfg(not(loom))]
pub(crate) use std::sync::Arc;

#[cfg(loom)]
pub(crate) use loom::sync::Arc;

/// A lock that cannot be poisoned: the planner checks everything before it changes anything, so a
/// panic elsewhere leaves consistent state behind.
#[derive(Debug)]
pub(crate) struct Mutex<T>(
    #[cfg(not(loom))] parking_lot::Mutex<T>,
    #[cfg(loom)] loom::sync::Mutex<T>,
);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        #[cfg(not(loom))]
        return Self(parking_lot::Mutex::new(value));
        #[cfg(loom)]
        return Self(loom::sync::Mutex::new(value));
    }

    /// Runs `f` with the lock held; nothing that blocks belongs in it.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(not(loom))]
        return f(&mut self.0.lock());
        #[cfg(loom)]
        return f(&mut self.0.lock().unwrap());
    }
}
