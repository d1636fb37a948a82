//! The kernels that depend on a slot format, one set per (format, instruction set).
//!
//! Kernels for K and for V are separate and are reached through pointers, so formats mix freely and a
//! new codec needs no change here.

use std::ops::Range;

use super::{
    accumulate::accumulate,
    dot::dot,
    side::{Ahead, Bundles, Side},
};
use crate::{
    base::simd::Simd,
    format::{BLOCK, Codec, CodecVisitor, SlotFormat},
};

/// Query rows that one pass over slots serves.
pub(super) const MAX_ROWS: usize = 4;

/// A row-major block of f32: `rows` rows of `width` values, `stride` apart.
pub(super) struct Matrix<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
}

/// Slots of a side, and what to bring into the cache meanwhile; see [`Bundles`].
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

    /// What to walk, after a check of what unsafe loads rest on: slots are those of codec `C`, and
    /// rows are whole vectors.
    pub fn bundles<C: Codec>(&self, head_dim: usize) -> Bundles<'b, 'a, S> {
        assert!(head_dim.is_multiple_of(S::LANES));
        assert_eq!(
            self.side.strides(),
            (C::payload_bytes(head_dim), C::scale_bytes(head_dim)),
            "slots of another format"
        );
        Bundles::new(self.side, self.slots.clone(), self.streams, self.ahead)
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
    let mut bundles = Walk { streams: false, ..walk }.bundles::<C>(head_dim);
    simd.vectorize(
        #[inline(always)]
        || {
            while let Some(bundle) = bundles.next() {
                for step in 0..bundle.steps {
                    for (run, row) in bundle.runs().iter().zip(rows.by_ref()) {
                        let slot = step * bundle.pitch;
                        for channel in (0..head_dim).step_by(S::LANES) {
                            if channel.is_multiple_of(BLOCK) {
                                ahead.prefetch([run.ahead], slot, channel);
                            }
                            // SAFETY: a slot of the bundle; a row is `head_dim`.
                            unsafe {
                                let payload = run.payload.add(slot * bytes);
                                let scales = run.scales.add(slot * scale_bytes);
                                let values = C::load(simd, payload, scales, channel, head_dim);
                                simd.store(row.as_mut_ptr().add(channel), values);
                            }
                        }
                    }
                }
            }
        },
    );
}
