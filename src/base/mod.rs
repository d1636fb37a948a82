//! What every floor shares: the shape of a cache, and the SIMD vocabulary.

mod shape;
pub mod simd;
mod slots;
pub(crate) mod sync;

pub use shape::{CacheShape, ShapeError};
pub use slots::{HeadRewrite, Positions, SlotMove, compact};
pub(crate) use slots::{apply_moves, close_gaps};
