//! The kernels that depend on a slot format, one set per (format, instruction set).
//!
//! Kernels for K and for V are separate and are reached through pointers, so formats mix freely and a
//! new codec needs no change here.

use std::ops::Range;

use super::{
    accumulate::accumulate,
    dot::dot,
    side::{Ahead, Bundle, Side},
};
use crate::{
    base::simd::Simd,
    format::{BLOCK, Codec, CodecVisitor, SlotFormat},
};

/// Query rows that one pass over slots serves.
pub(super) const MAX_ROWS: usize = 8;

/// A row-major block of f32: `rows` rows of `width` values, `stride` apart.
pub(super) struct Matrix<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
}

/// Slots of a side, and what to bring into the cache meanwhile; see [`Side::bundles`].
#[derive(Clone)]
pub(super) struct Walk<'b, 'a, S: Simd> {
    pub side: &'b Side<'a, S>,
    pub slots: Range<usize>,
    /// Whether pages may be walked side by side; if not, slots come in their order.
    pub streams: bool,
    pub ahead: Option<(&'b Side<'a, S>, usize)>,
}

impl<'b, 'a, S: Simd> Walk<'b, 'a, S> {
    /// How much to ask for ahead.
    pub fn ahead(&self, head_dim: usize) -> Ahead {
        Ahead::new(self.ahead.map(|(side, _)| side), head_dim)
    }

    /// What to walk, after a check of what unsafe loads rest on: runs have their slots' bytes, and
    /// rows are whole vectors.
    #[inline(always)]
    pub fn bundles<C: Codec>(
        self,
        head_dim: usize,
    ) -> impl Iterator<Item = Bundle<'a>> + use<'a, 'b, C, S> {
        assert!(head_dim.is_multiple_of(S::LANES));
        self.side.bundles(self.slots, self.streams, self.ahead).inspect(move |bundle| {
            for run in bundle.runs() {
                assert!(run.payload.len() >= bundle.slots * C::payload_bytes(head_dim));
                assert!(run.scales.len() >= bundle.slots * C::scale_bytes(head_dim));
            }
        })
    }
}

type Dot<S> = fn(S, Walk<'_, '_, S>, usize, &[f32], Matrix<'_>);
type Accumulate<S> = fn(S, Walk<'_, '_, S>, usize, &[f32], usize, Matrix<'_>);
type Widen<S> = fn(S, Walk<'_, '_, S>, usize, &mut [f32]);

/// Kernels over the slots of one side.
#[derive(Clone, Copy)]
pub(super) struct Ops<S: Simd> {
    /// `scores[r][i] = q[r]·K[i]`, slots in the order of the walk: `(simd, slots, head_dim, q,
    /// scores)` for at most [`MAX_ROWS`] rows of `q`, `[rows][head_dim]`.
    pub dot: Dot<S>,
    /// `out[r] += Σ_i p[r][i]·V[i]`, `p` in the order of the walk: `(simd, slots, head_dim, p, stride of p, out)`; the rows are
    /// those of `out`, at most [`MAX_ROWS`].
    pub accumulate: Accumulate<S>,
    /// The slots as f32, `[slots][head_dim]`.
    pub widen: Widen<S>,
}

impl<S: Simd> Ops<S> {
    pub fn new(format: SlotFormat) -> Self {
        struct Pick<S>(std::marker::PhantomData<S>);
        impl<S: Simd> CodecVisitor for Pick<S> {
            type Output = Ops<S>;
            fn visit<C: Codec>(self) -> Ops<S> {
                Ops { dot: dot::<C, S>, accumulate: accumulate::<C, S>, widen: widen::<C, S> }
            }
        }
        format.visit(Pick(std::marker::PhantomData))
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
            5 => $kernel::<C, S, 5>($($arg),*),
            6 => $kernel::<C, S, 6>($($arg),*),
            7 => $kernel::<C, S, 7>($($arg),*),
            8 => $kernel::<C, S, 8>($($arg),*),
            rows => unreachable!("{rows} rows in one pass"),
        }
    };
}
pub(super) use by_rows;

/// Slots in their order.
fn widen<C: Codec, S: Simd>(simd: S, walk: Walk<'_, '_, S>, head_dim: usize, out: &mut [f32]) {
    assert_eq!(out.len(), walk.slots.len() * head_dim);
    let (bytes, scale_bytes) = (C::payload_bytes(head_dim), C::scale_bytes(head_dim));
    let mut rows = out.chunks_exact_mut(head_dim);
    let ahead = walk.ahead(head_dim);
    for bundle in (Walk { streams: false, ..walk }).bundles::<C>(head_dim) {
        let [run] = bundle.runs() else {
            unreachable!("a walk without streams has one run at a time")
        };
        let rows = rows.by_ref().take(bundle.slots);
        simd.vectorize(
            #[inline(always)]
            || {
                for (slot, row) in rows.enumerate() {
                    for channel in (0..head_dim).step_by(S::LANES) {
                        if channel.is_multiple_of(BLOCK) {
                            run.prefetch(ahead, slot, channel);
                        }
                        // SAFETY: the walk measured the slots' bytes; a row is `head_dim`.
                        unsafe {
                            let payload = run.payload.as_ptr().add(slot * bytes);
                            let scales = run.scales.as_ptr().add(slot * scale_bytes);
                            let values = C::load(simd, payload, scales, channel, head_dim);
                            simd.store(row.as_mut_ptr().add(channel), values);
                        }
                    }
                }
            },
        );
    }
}
