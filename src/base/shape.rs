//! The shape of a model's KV cache.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How many layers, heads and channels a model keeps in its KV cache.
///
/// A *KV head* is one (layer, head) pair of K and V; the query heads that read it are its *query
/// group*. Query head `q` of a layer reads KV head `q / group`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct CacheShape {
    layers: usize,
    kv_heads: usize,
    query_heads: usize,
    head_dim: usize,
}

/// A shape as a file has it.
#[derive(Deserialize)]
struct Unchecked {
    layers: usize,
    kv_heads: usize,
    query_heads: usize,
    head_dim: usize,
}

impl TryFrom<Unchecked> for CacheShape {
    type Error = ShapeError;

    fn try_from(shape: Unchecked) -> Result<Self, ShapeError> {
        Self::new(shape.layers, shape.kv_heads, shape.query_heads, shape.head_dim)
    }
}

/// A shape no cache can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// One of the four numbers is zero.
    #[error("a cache shape needs at least one of each, got {0:?}")]
    Zero(CacheShape),
    /// The query heads do not divide into groups of equal size.
    #[error("{query_heads} query heads do not divide into groups over {kv_heads} KV heads")]
    Ragged {
        /// Query heads per layer.
        query_heads: usize,
        /// KV heads per layer.
        kv_heads: usize,
    },
    /// Rows that SIMD lanes and 16-byte copies cannot cut evenly.
    #[error("head_dim {0} is not a multiple of {align} in {align}..={max}", align = CacheShape::HEAD_DIM_ALIGN, max = CacheShape::MAX_HEAD_DIM)]
    HeadDim(usize),
    /// More heads than a table index holds.
    #[error("{0} KV heads over all layers are more than {max}", max = CacheShape::MAX_HEADS)]
    TooManyHeads(usize),
}

impl CacheShape {
    /// Every `head_dim` is a multiple of this: one AVX-512 register of f32, one 16-byte copy of i8.
    pub const HEAD_DIM_ALIGN: usize = 16;
    /// The largest `head_dim` the kernels keep on their stack.
    pub const MAX_HEAD_DIM: usize = 512;
    /// The most (layer, head) pairs.
    pub const MAX_HEADS: usize = 1 << 16;

    /// Checks and builds a shape: `layers` × `kv_heads` tables, `query_heads` per layer.
    pub fn new(
        layers: usize,
        kv_heads: usize,
        query_heads: usize,
        head_dim: usize,
    ) -> Result<Self, ShapeError> {
        let shape = Self { layers, kv_heads, query_heads, head_dim };
        if layers == 0 || kv_heads == 0 || query_heads == 0 || head_dim == 0 {
            return Err(ShapeError::Zero(shape));
        }
        if !query_heads.is_multiple_of(kv_heads) {
            return Err(ShapeError::Ragged { query_heads, kv_heads });
        }
        if !Self::takes_head_dim(head_dim) {
            return Err(ShapeError::HeadDim(head_dim));
        }
        match layers.checked_mul(kv_heads) {
            Some(heads) if heads <= Self::MAX_HEADS => Ok(shape),
            heads => Err(ShapeError::TooManyHeads(heads.unwrap_or(usize::MAX))),
        }
    }

    /// Whether heads may have so many channels.
    pub fn takes_head_dim(head_dim: usize) -> bool {
        (1..=Self::MAX_HEAD_DIM).contains(&head_dim)
            && head_dim.is_multiple_of(Self::HEAD_DIM_ALIGN)
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// KV heads of one layer.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Query heads of one layer.
    pub fn query_heads(&self) -> usize {
        self.query_heads
    }

    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Query heads that read one KV head.
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// KV heads over all layers: the head tables of one sequence.
    pub fn heads(&self) -> usize {
        self.layers * self.kv_heads
    }

    /// Where (layer, KV head) stands among the [`heads`](Self::heads) of a sequence.
    pub fn head_index(&self, layer: usize, kv_head: usize) -> usize {
        debug_assert!(layer < self.layers && kv_head < self.kv_heads);
        layer * self.kv_heads + kv_head
    }

    /// Values in K (or in V) for one token of one layer.
    pub fn row(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_indices() {
        let shape = CacheShape::new(30, 3, 9, 64).unwrap();
        assert_eq!(shape.group(), 3);
        assert_eq!(shape.heads(), 90);
        assert_eq!(shape.head_index(29, 2), 89);
        assert_eq!(shape.row(), 192);
    }

    #[test]
    fn refuses_what_no_cache_can_have() {
        assert!(matches!(CacheShape::new(0, 1, 1, 64), Err(ShapeError::Zero(_))));
        assert!(matches!(CacheShape::new(1, 3, 8, 64), Err(ShapeError::Ragged { .. })));
        assert!(matches!(CacheShape::new(1, 1, 1, 72), Err(ShapeError::HeadDim(72))));
        assert!(matches!(CacheShape::new(1 << 12, 32, 32, 64), Err(ShapeError::TooManyHeads(_))));
    }

    #[test]
    fn files_bring_no_other_shapes() {
        let shape = CacheShape::new(30, 3, 9, 64).unwrap();
        let text = serde_json::to_string(&shape).unwrap();
        assert_eq!(serde_json::from_str::<CacheShape>(&text).unwrap(), shape);
        for (from, to) in [("30", "0"), ("9", "8"), ("64", "72")] {
            let refused = serde_json::from_str::<CacheShape>(&text.replace(from, to));
            assert!(refused.is_err(), "{from} became {to}");
        }
    }
}
