//! Whether pages can be had.

use super::pool::StepId;

/// Whether a request for pages can be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Enough pages are free.
    Now,
    /// Not now; `missing` pages must be freed first.
    Later {
        /// Pages short.
        missing: usize,
        /// The step whose [retirement](super::BlockManager::retire) would free them: they wait behind the fence.
        /// `None`: somebody has to give pages up.
        enough_after: Option<StepId>,
    },
    /// Not even in an empty pool.
    Never {
        /// Pages needed.
        needed: usize,
        /// Pages in the pool.
        total: usize,
    },
}
