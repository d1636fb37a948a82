//! What every floor shares: the shape of a cache, and the SIMD vocabulary.

mod shape;

pub use shape::{CacheShape, ShapeError};
