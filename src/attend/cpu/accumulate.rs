//! Outputs: weighted values of a walk.

use super::{
    side::{Ahead, Bundle},
    walk::{Matrix, Walk, by_rows},
};
use crate::{
    base::simd::Simd,
    format::{BLOCK, Codec},
};

/// See [`Ops::accumulate`](super::ops::Ops).
pub(super) fn accumulate<C: Codec, S: Simd>(
    simd: S,
    walk: Walk<'_, '_>,
    head_dim: usize,
    p: &[f32],
    p_stride: usize,
    out: Matrix<'_>,
) {
    let rows = out.values.len() / out.stride;
    by_rows!(rows, accumulate_rows(simd, walk, head_dim, p, p_stride, out));
}

fn accumulate_rows<C: Codec, S: Simd, const R: usize>(
    simd: S,
    walk: Walk<'_, '_>,
    head_dim: usize,
    p: &[f32],
    p_stride: usize,
    out: Matrix<'_>,
) {
    assert!(p.len() >= (R - 1) * p_stride + walk.slots.len());
    assert!(out.stride >= head_dim && out.values.len() >= R * out.stride);
    assert!(head_dim.is_multiple_of(S::LANES));
    let strides = walk.side.strides();
    let out_ptr = out.values.as_mut_ptr();
    let rows = Rows { p: p.as_ptr(), p_stride, out: out_ptr, stride: out.stride, strides };
    simd.vectorize(
        #[inline(always)]
        || {
            let ahead = walk.ahead(head_dim);
            let mut rows = rows;
            let mut bundles = walk.bundles::<C, S>(head_dim);
            while let Some(bundle) = bundles.next() {
                let mut channel = 0;
                // SAFETY: `rows` was measured above, and has as many weights as the walk has slots;
                // the channels of each tile are within `head_dim`.
                unsafe {
                    // Wide tiles amortise the broadcast of p; R * T accumulators stay in registers.
                    if S::LANES == 16 || R <= 2 {
                        // Counted in tiles, so that the place in a block is a constant in them.
                        for index in 0..head_dim / (4 * S::LANES) {
                            channel = index * (4 * S::LANES);
                            tile::<C, S, R, 4>(simd, bundle, ahead, &rows, head_dim, channel);
                        }
                        channel = head_dim / (4 * S::LANES) * (4 * S::LANES);
                    }
                    while channel + 2 * S::LANES <= head_dim {
                        tile::<C, S, R, 2>(simd, bundle, ahead, &rows, head_dim, channel);
                        channel += 2 * S::LANES;
                    }
                    while channel < head_dim {
                        tile::<C, S, R, 1>(simd, bundle, ahead, &rows, head_dim, channel);
                        channel += S::LANES;
                    }
                    rows.p = rows.p.add(bundle.slots());
                }
            }
        },
    );
}

/// Weights and outputs of the query rows.
struct Rows {
    p: *const f32,
    /// From the weights of one row to those of the next.
    p_stride: usize,
    out: *mut f32,
    /// From the output of one row to that of the next.
    stride: usize,
    /// Payload and scale bytes from one slot to the next.
    strides: (usize, usize),
}

/// Channels `channel .. channel + T * LANES` of all rows; the accumulators stay in registers for the
/// whole bundle.
///
/// # Safety
/// Slots of the bundle are of codec `C`. `rows` has R rows, with a weight for each slot of the bundle
/// and `head_dim` outputs; `channel` is a multiple of `T * LANES`, which divides a block, and
/// `channel + T * LANES <= head_dim`.
#[inline(always)]
unsafe fn tile<C: Codec, S: Simd, const R: usize, const T: usize>(
    simd: S,
    bundle: &Bundle,
    ahead: Ahead,
    rows: &Rows,
    head_dim: usize,
    channel: usize,
) {
    let (bytes, scale_bytes) = rows.strides;
    // SAFETY: the caller's rows and slots; the weights advance by one for each slot.
    unsafe {
        let out = rows.out.add(channel);
        let mut acc = [[simd.splat(0.0); T]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = simd.load(out.add(r * rows.stride + t * S::LANES));
            }
        }
        let mut p = rows.p;
        let ahead = channel.is_multiple_of(BLOCK).then(|| ahead.of_tile(bundle, channel));
        for step in 0..bundle.steps {
            let slot = step * bundle.pitch;
            for run in bundle.runs() {
                if let Some(ahead) = ahead {
                    ahead.prefetch([run.ahead], step);
                }
                let payload = run.payload.add(slot * bytes);
                let scales = run.scales.add(slot * scale_bytes);
                let shared = C::shared(simd, scales, channel, head_dim);
                let mut v = [simd.splat(0.0); T];
                for (t, v) in v.iter_mut().enumerate() {
                    *v = C::load_block(simd, payload, channel + t * S::LANES, shared);
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let p = simd.splat(*p.add(r * rows.p_stride));
                    for (acc, v) in acc.iter_mut().zip(v) {
                        *acc = simd.mul_add(p, v, *acc);
                    }
                }
                p = p.add(1);
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (t, acc) in acc.into_iter().enumerate() {
                simd.store(out.add(r * rows.stride + t * S::LANES), acc);
            }
        }
    }
}
