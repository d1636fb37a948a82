//! What every floor shares: the shape of a cache, and the SIMD vocabulary.

mod shape;
pub mod simd;

pub use shape::{CacheShape, ShapeError};
