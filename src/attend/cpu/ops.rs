//! The kernels that depend on a slot format, one set per (format, instruction set).
//!
//! Kernels for K and for V are separate and are reached through pointers, so formats mix freely and a
//! new codec needs no change here.

use super::{
    accumulate::accumulate,
    dot::dot,
    walk::{Matrix, Walk},
};
use crate::{
    base::simd::Simd,
    format::{BLOCK, Codec, CodecVisitor, SlotFormat},
};

type Dot<S> = fn(S, Walk<'_, '_>, usize, &[f32], Matrix<'_>);
type Accumulate<S> = fn(S, Walk<'_, '_>, usize, &[f32], usize, Matrix<'_>);
type Widen<S> = fn(S, Walk<'_, '_>, usize, &mut [f32]);

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

/// Slots in their order.
fn widen<C: Codec, S: Simd>(simd: S, walk: Walk<'_, '_>, head_dim: usize, out: &mut [f32]) {
    assert_eq!(out.len(), walk.slots.len() * head_dim);
    let (bytes, scale_bytes) = walk.side.strides();
    let mut rows = out.chunks_exact_mut(head_dim);
    let ahead = walk.ahead(head_dim);
    let mut bundles = Walk { streams: false, ..walk }.bundles::<C, S>(head_dim);
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
