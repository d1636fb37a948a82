//! What every floor shares: the shape of a cache, and the SIMD vocabulary.

mod layer;
mod shape;
mod shape_error;
pub mod simd;
mod slots;
pub(crate) mod sync;

pub use layer::{Channels, LayerShape, Window};
pub use shape::CacheShape;
pub use shape_error::ShapeError;
pub use slots::{HeadRewrite, Positions, SlotMove, compact};
pub(crate) use slots::{apply_moves, close_gaps};
