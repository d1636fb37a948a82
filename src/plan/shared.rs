//! What a manager and its sequences share.

use super::pool::{Page, PagePool, PoolError};
use crate::base::sync::Mutex;

/// What a manager and its sequences share.
#[derive(Debug)]
pub(super) struct Shared {
    pool: Mutex<PagePool>,
}

impl Shared {
    pub fn new(pages: usize) -> Result<Self, PoolError> {
        Ok(Self { pool: Mutex::new(PagePool::new(pages)?) })
    }

    pub fn with_pool<R>(&self, f: impl FnOnce(&mut PagePool) -> R) -> R {
        self.pool.with(f)
    }

    /// Returns claims that tables held. Tables hold live claims only, so the pool takes them.
    pub fn give(&self, pages: &[Page]) {
        if pages.is_empty() {
            return;
        }
        let given = self.with_pool(|pool| pool.give(pages));
        debug_assert!(given.is_ok(), "a table held a dead claim: {given:?}");
    }
}
