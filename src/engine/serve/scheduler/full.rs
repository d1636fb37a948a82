//! Which refusals of the cache more free pages would undo.

use crate::{
    cache::CacheError,
    plan::{PlanError, PoolError},
};

/// Whether a step was refused for want of pages.
pub(super) fn is_full(error: &CacheError) -> bool {
    matches!(
        error,
        CacheError::Plan(
            PlanError::Pool(PoolError::OutOfPages { .. }) | PlanError::NeverFits { .. }
        )
    )
}
