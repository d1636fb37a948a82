//! Both sides of a head table, with the kernels that read them.

use super::{ops::Ops, side::Side, walk::Walk};
use crate::{attend::batch::Head, base::simd::Simd};

/// Both sides of a head table.
pub(super) struct Sides<'a, S: Simd> {
    pub k: Readable<'a, S>,
    pub v: Readable<'a, S>,
}

/// K or V of a head table, and the kernels of its format.
pub(super) struct Readable<'a, S: Simd> {
    pub side: Side<'a>,
    pub ops: Ops<S>,
    /// Channels of a slot.
    pub dim: usize,
}

impl<'a, S: Simd> Sides<'a, S> {
    /// Of a table whose pages lie one after another in `bytes`.
    pub fn new(bytes: &'a [u8], head: &Head<'a>) -> Self {
        let layout = head.layout;
        let of = |region, format, dim| {
            let side = Side::new(bytes, head, region);
            Readable { side, ops: Ops::new(format), dim }
        };
        Self {
            k: of(layout.k, layout.format.k, layout.channels.k),
            v: of(layout.v, layout.format.v, layout.channels.v),
        }
    }
}

impl<'a, S: Simd> Readable<'a, S> {
    /// Slots in their order, the next ones asked for meanwhile as far ahead as `ahead` says.
    pub fn walk(&self, slots: std::ops::Range<usize>, ahead: Option<usize>) -> Walk<'_, 'a> {
        let ahead = ahead.map(|distance| (&self.side, distance));
        Walk { side: &self.side, slots, streams: false, ahead }
    }

    /// Slots in the order that streams best.
    pub fn stream(&self, slots: std::ops::Range<usize>, ahead: Option<usize>) -> Walk<'_, 'a> {
        Walk { streams: true, ..self.walk(slots, ahead) }
    }
}
