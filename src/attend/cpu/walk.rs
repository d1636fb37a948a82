//! What kernels walk, and the blocks of values that they read and write.

use std::ops::Range;

use super::side::{Ahead, Bundles, Side};
use crate::{base::simd::Simd, format::Codec};

/// Query rows that one pass over slots serves.
pub(super) const MAX_ROWS: usize = 4;

/// A row-major block of f32: `rows` rows of `width` values, `stride` apart.
pub(super) struct Matrix<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
}

/// Slots of a side, and what to bring into the cache meanwhile; see [`Bundles`].
#[derive(Clone)]
pub(super) struct Walk<'b, 'a> {
    pub side: &'b Side<'a>,
    pub slots: Range<usize>,
    /// Whether pages may be walked side by side; if not, slots come in their order.
    pub streams: bool,
    pub ahead: Option<(&'b Side<'a>, usize)>,
}

impl<'b, 'a> Walk<'b, 'a> {
    /// How much to ask for ahead.
    pub fn ahead(&self, head_dim: usize) -> Ahead {
        Ahead::new(self.ahead.map(|(side, _)| side), head_dim)
    }

    /// What to walk, after a check of what unsafe loads rest on: slots are as large as those of codec
    /// `C` (or larger, where V is a part of K), and rows are whole vectors.
    pub fn bundles<C: Codec, S: Simd>(&self, head_dim: usize) -> Bundles<'b, 'a> {
        assert!(head_dim.is_multiple_of(S::LANES));
        let (payload, scales) = self.side.strides();
        let whole = payload >= C::payload_bytes(head_dim) && scales >= C::scale_bytes(head_dim);
        assert!(whole, "slots of another format");
        Bundles::new(self.side, self.slots.clone(), self.streams, self.ahead)
    }
}

/// Calls `$kernel::<C, S, ROWS>` for the number of rows at hand.
macro_rules! by_rows {
    ($rows:expr, $kernel:ident($($arg:expr),*)) => {
        match $rows {
            1 => $kernel::<C, S, 1>($($arg),*),
            2 => $kernel::<C, S, 2>($($arg),*),
            3 => $kernel::<C, S, 3>($($arg),*),
            4 => $kernel::<C, S, 4>($($arg),*),
            rows => unreachable!("{rows} rows in one pass"),
        }
    };
}
pub(super) use by_rows;
