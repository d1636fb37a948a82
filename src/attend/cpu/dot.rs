//! Scores: queries against the keys of a walk.

use super::{
    side::{Ahead, Bundle, QUAD},
    walk::{Matrix, Walk, by_rows},
};
use crate::{
    base::simd::Simd,
    format::{BLOCK, Codec},
};

/// The body once for each index, which is a constant in it.
macro_rules! unrolled {
    ($i:ident in $($index:literal),+ => $body:block) => {
        $({
            const INDEX: usize = $index;
            let $i = INDEX;
            $body
        })+
    };
}

/// See [`Ops::dot`](super::ops::Ops).
pub(super) fn dot<C: Codec, S: Simd>(
    simd: S,
    walk: Walk<'_, '_>,
    head_dim: usize,
    q: &[f32],
    scores: Matrix<'_>,
) {
    let rows = q.len() / head_dim;
    by_rows!(rows, dot_rows(simd, walk, head_dim, q, scores));
}

fn dot_rows<C: Codec, S: Simd, const R: usize>(
    simd: S,
    walk: Walk<'_, '_>,
    head_dim: usize,
    q: &[f32],
    scores: Matrix<'_>,
) {
    assert_eq!(q.len(), R * head_dim);
    assert!(scores.values.len() >= (R - 1) * scores.stride + walk.slots.len());
    simd.vectorize(
        #[inline(always)]
        || {
            // SAFETY: measured above.
            unsafe { dot_walk::<C, S, R>(simd, walk, head_dim, q, scores) }
        },
    );
}

/// # Safety
/// `q` has R rows, `scores` R rows of as many values as the walk has slots.
#[inline(always)]
unsafe fn dot_walk<C: Codec, S: Simd, const R: usize>(
    simd: S,
    walk: Walk<'_, '_>,
    head_dim: usize,
    q: &[f32],
    scores: Matrix<'_>,
) {
    let kernel = Kernel { head_dim, ahead: walk.ahead(head_dim), strides: walk.side.strides(), q };
    let (mut out, stride) = (scores.values.as_mut_ptr(), scores.stride);
    let mut bundles = walk.bundles::<C, S>(head_dim);
    while let Some(bundle) = bundles.next() {
        let (slots, mut done) = (bundle.slots(), 0);
        // SAFETY: the quads are those of the bundle; as many scores are written as it has slots.
        unsafe {
            while done + 4 * QUAD <= slots {
                let mut folded = [[simd.splat(0.0); R]; 4];
                // Not a loop: it would index registers.
                unrolled!(i in 0, 1, 2, 3 => {
                    folded[i] = kernel.quad::<C, S, R>(simd, bundle, done / QUAD + i);
                });
                write(simd, folded, out, stride, 4 * QUAD);
                (out, done) = (out.add(4 * QUAD), done + 4 * QUAD);
            }
            while done < slots {
                let mut folded = [[simd.splat(0.0); R]; 4];
                folded[0] = kernel.quad::<C, S, R>(simd, bundle, done / QUAD);
                let count = QUAD.min(slots - done);
                write(simd, folded, out, stride, count);
                (out, done) = (out.add(count), done + count);
            }
        }
    }
}

/// Writes the first `count` scores of four quads, half added up.
///
/// # Safety
/// `out` is valid for `count <= 16` values in each of R rows `stride` apart.
#[inline(always)]
unsafe fn write<S: Simd, const R: usize>(
    simd: S,
    [a, b, c, d]: [[S::V; R]; 4],
    out: *mut f32,
    stride: usize,
    count: usize,
) {
    for r in 0..R {
        let sums = simd.finish_sums([a[r], b[r], c[r], d[r]]);
        // SAFETY: the caller's rows.
        unsafe {
            let out = out.add(r * stride);
            if count == 16 {
                out.cast::<[[f32; 4]; 4]>().write_unaligned(sums);
            } else {
                out.copy_from_nonoverlapping(sums.as_ptr().cast(), count);
            }
        }
    }
}

/// What all quads have in common.
struct Kernel<'a> {
    head_dim: usize,
    ahead: Ahead,
    /// Payload and scale bytes from one slot to the next.
    strides: (usize, usize),
    /// `[R][head_dim]`
    q: &'a [f32],
}

/// Slots: where each one's payload and scales start.
#[derive(Clone, Copy)]
struct Slots<const N: usize> {
    payload: [*const u8; N],
    scales: [*const u8; N],
}

impl Kernel<'_> {
    /// `q[r]·K[n]` of four slots, half added up.
    ///
    /// # Safety
    /// The bundle is of codec `C` and has the quad; `q` has R rows of `head_dim`, a multiple of LANES.
    #[inline(always)]
    unsafe fn quad<C: Codec, S: Simd, const R: usize>(
        &self,
        simd: S,
        bundle: &Bundle,
        index: usize,
    ) -> [S::V; R] {
        let (runs, slot) = bundle.quad(index);
        let (bytes, scale_bytes) = self.strides;
        let ahead = [runs[0].ahead, runs[1].ahead, runs[2].ahead, runs[3].ahead];
        // SAFETY: the caller's slots and rows.
        unsafe {
            let payload = |n: usize| runs[n].payload.add(slot * bytes);
            let scales = |n: usize| runs[n].scales.add(slot * scale_bytes);
            // As many accumulators as fit in the registers.
            let acc = if S::LANES == 16 || R <= 2 {
                let slots = Slots {
                    payload: [payload(0), payload(1), payload(2), payload(3)],
                    scales: [scales(0), scales(1), scales(2), scales(3)],
                };
                self.block::<C, S, R, 4, 4>(simd, slots, (ahead, slot))
            } else {
                let first =
                    Slots { payload: [payload(0), payload(1)], scales: [scales(0), scales(1)] };
                let second =
                    Slots { payload: [payload(2), payload(3)], scales: [scales(2), scales(3)] };
                let first = self.block::<C, S, R, 2, 4>(simd, first, (ahead, slot));
                let second = self.block::<C, S, R, 2, 0>(simd, second, ([], slot));
                let mut acc = [[simd.splat(0.0); 4]; R];
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = [first[r][0], first[r][1], second[r][0], second[r][1]];
                }
                acc
            };
            // Not `map`: its closure would be compiled without the instruction set.
            let mut folded = [simd.splat(0.0); R];
            for (folded, four) in folded.iter_mut().zip(acc) {
                *folded = simd.pin(simd.fold_sums(four));
            }
            folded
        }
    }

    /// `[r][n] = q[r]·K[n]`, lanes not yet added up. Along the way asks for the slots `ahead`.
    ///
    /// # Safety
    /// Slots are of codec `C`, `q` has R rows of `head_dim`, a multiple of LANES.
    #[inline(always)]
    unsafe fn block<C: Codec, S: Simd, const R: usize, const N: usize, const A: usize>(
        &self,
        simd: S,
        slots: Slots<N>,
        (ahead, slot): ([*const u8; A], usize),
    ) -> [[S::V; N]; R] {
        let mut acc = [[simd.splat(0.0); N]; R];
        // SAFETY: whole blocks within `head_dim`, then vectors within it; the rest is the caller's.
        unsafe {
            for block in 0..self.head_dim.div_ceil(BLOCK) {
                let first = block * BLOCK;
                let mut shared = [C::shared(simd, slots.scales[0], first, self.head_dim); N];
                for (shared, scales) in shared.iter_mut().zip(slots.scales).skip(1) {
                    *shared = C::shared(simd, scales, first, self.head_dim);
                }
                self.ahead.prefetch(ahead, slot, first);
                if first + BLOCK <= self.head_dim {
                    for i in 0..BLOCK / S::LANES {
                        let channel = first + i * S::LANES;
                        self.step::<C, S, R, N>(simd, slots, shared, channel, &mut acc);
                    }
                } else {
                    for channel in (first..self.head_dim).step_by(S::LANES) {
                        self.step::<C, S, R, N>(simd, slots, shared, channel, &mut acc);
                    }
                }
            }
        }
        acc
    }

    /// Adds the products of one vector of channels.
    ///
    /// # Safety
    /// As [`block`](Self::block); `shared` is of the channel's block, `channel + LANES <= head_dim`.
    #[inline(always)]
    unsafe fn step<C: Codec, S: Simd, const R: usize, const N: usize>(
        &self,
        simd: S,
        slots: Slots<N>,
        shared: [C::Shared<S>; N],
        channel: usize,
        acc: &mut [[S::V; N]; R],
    ) {
        // SAFETY: the caller's slots, rows and channels.
        unsafe {
            let mut k = [simd.splat(0.0); N];
            for (n, k) in k.iter_mut().enumerate() {
                *k = C::load_block(simd, slots.payload[n], channel, shared[n]);
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let q = simd.load(self.q.as_ptr().add(r * self.head_dim + channel));
                for (acc, k) in acc.iter_mut().zip(k) {
                    *acc = simd.mul_add(q, k, *acc);
                }
            }
        }
    }
}
