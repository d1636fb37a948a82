//! The kernels that depend on a slot format, one set per (format, instruction set).
//!
//! Kernels for K and for V are separate and are reached through pointers, so formats mix freely and a
//! new codec needs no change here.

use std::ops::Range;

use super::side::{Run, Side};
use crate::{
    base::simd::Simd,
    format::{Codec, CodecVisitor, SlotFormat},
};

/// Query rows that one pass over slots serves.
pub(super) const MAX_ROWS: usize = 8;

/// A row-major block of f32: `rows` rows of `width` values, `stride` apart.
pub(super) struct Matrix<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
}

/// Slots of a side, and what to bring into the cache meanwhile; see [`Side::runs`].
pub(super) struct Walk<'b, 'a, S: Simd> {
    pub side: &'b Side<'a, S>,
    pub slots: Range<usize>,
    pub ahead: Option<(&'b Side<'a, S>, usize)>,
}

impl<'b, 'a, S: Simd> Walk<'b, 'a, S> {
    fn runs(self) -> impl Iterator<Item = Run<'a>> + use<'a, 'b, S> {
        self.side.runs(self.slots, self.ahead)
    }
}

type Dot<S> = fn(S, Walk<'_, '_, S>, usize, &[f32], Matrix<'_>);
type Accumulate<S> = fn(S, Walk<'_, '_, S>, usize, &[f32], usize, Matrix<'_>);
type Widen<S> = fn(S, Walk<'_, '_, S>, usize, &mut [f32]);

/// Kernels over the slots of one side.
#[derive(Clone, Copy)]
pub(super) struct Ops<S: Simd> {
    /// `scores[r][i] = q[r]·K[i]`: `(simd, slots, head_dim, q, scores)` for at most [`MAX_ROWS`]
    /// rows of `q`, `[rows][head_dim]`.
    pub dot: Dot<S>,
    /// `out[r] += Σ_i p[r][i]·V[i]`: `(simd, slots, head_dim, p, stride of p, out)`; the rows are
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

/// What the unsafe loads below rest on: a run has its slots' bytes, and rows are whole vectors.
fn check_run<C: Codec, S: Simd>(run: &Run<'_>, head_dim: usize) {
    assert!(head_dim.is_multiple_of(S::LANES));
    assert!(run.payload.len() >= run.slots * C::payload_bytes(head_dim));
    assert!(run.scales.len() >= run.slots * C::scale_bytes(head_dim));
}

fn dot<C: Codec, S: Simd>(
    simd: S,
    walk: Walk<'_, '_, S>,
    head_dim: usize,
    q: &[f32],
    scores: Matrix<'_>,
) {
    let rows = q.len() / head_dim;
    by_rows!(rows, dot_rows(simd, walk, head_dim, q, scores));
}

fn dot_rows<C: Codec, S: Simd, const R: usize>(
    simd: S,
    walk: Walk<'_, '_, S>,
    head_dim: usize,
    q: &[f32],
    scores: Matrix<'_>,
) {
    assert_eq!(q.len(), R * head_dim);
    assert!(scores.values.len() >= (R - 1) * scores.stride + walk.slots.len());
    let mut done = 0;
    for run in walk.runs() {
        check_run::<C, S>(&run, head_dim);
        let out = &mut scores.values[done..];
        simd.vectorize(
            #[inline(always)]
            || {
                // As many slots at a time as accumulators fit in registers: a load of q serves them
                // all, and four sums share one reduction.
                match (S::LANES, R) {
                    (16, 1..=5) | (_, 1 | 2) => {
                        dot_run::<C, S, R, 4>(simd, &run, head_dim, q, out, scores.stride)
                    }
                    (16, _) | (_, 3 | 4) => {
                        dot_run::<C, S, R, 2>(simd, &run, head_dim, q, out, scores.stride)
                    }
                    _ => dot_run::<C, S, R, 1>(simd, &run, head_dim, q, out, scores.stride),
                }
            },
        );
        done += run.slots;
    }
}

#[inline(always)]
fn dot_run<C: Codec, S: Simd, const R: usize, const N: usize>(
    simd: S,
    run: &Run<'_>,
    head_dim: usize,
    q: &[f32],
    out: &mut [f32],
    stride: usize,
) {
    let mut slot = 0;
    while slot + N <= run.slots {
        for n in 0..N {
            run.prefetch(slot + n);
        }
        // SAFETY: slots `slot..slot + N` are of the run, whose bytes `check_run` measured, and `q`
        // has R rows.
        let sums = unsafe { dot_block::<C, S, R, N>(simd, run, slot, head_dim, q) };
        for r in 0..R {
            out[r * stride + slot..][..N].copy_from_slice(&sums[r]);
        }
        slot += N;
    }
    while slot < run.slots {
        run.prefetch(slot);
        // SAFETY: as above, for one slot.
        let sums = unsafe { dot_block::<C, S, R, 1>(simd, run, slot, head_dim, q) };
        for r in 0..R {
            out[r * stride + slot] = sums[r][0];
        }
        slot += 1;
    }
}

/// `sums[r][n] = q[r]·K[slot + n]`.
///
/// # Safety
/// The run has slots `slot..slot + N` of codec `C`, `q` has R rows of `head_dim`, a multiple of LANES.
#[inline(always)]
unsafe fn dot_block<C: Codec, S: Simd, const R: usize, const N: usize>(
    simd: S,
    run: &Run<'_>,
    slot: usize,
    head_dim: usize,
    q: &[f32],
) -> [[f32; N]; R] {
    let (stride, scale_stride) = (C::payload_bytes(head_dim), C::scale_bytes(head_dim));
    let mut acc = [[simd.splat(0.0); N]; R];
    let mut channel = 0;
    while channel < head_dim {
        let mut k = [simd.splat(0.0); N];
        for (n, k) in k.iter_mut().enumerate() {
            // SAFETY: the caller's slots, and `channel + LANES <= head_dim`.
            *k = unsafe {
                let payload = run.payload.as_ptr().add((slot + n) * stride);
                let scales = run.scales.as_ptr().add((slot + n) * scale_stride);
                C::load(simd, payload, scales, channel)
            };
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's rows.
            let q = unsafe { simd.load(q.as_ptr().add(r * head_dim + channel)) };
            for (acc, k) in acc.iter_mut().zip(k) {
                *acc = simd.mul_add(q, k, *acc);
            }
        }
        channel += S::LANES;
    }
    reduce(simd, acc)
}

/// The lane sums of a block of accumulators, four at a time.
#[inline(always)]
fn reduce<S: Simd, const R: usize, const N: usize>(simd: S, acc: [[S::V; N]; R]) -> [[f32; N]; R] {
    let mut sums = [[0.0; N]; R];
    let mut i = 0;
    while i + 4 <= R * N {
        let at = |j: usize| acc[(i + j) / N][(i + j) % N];
        let four = simd.reduce_add4([at(0), at(1), at(2), at(3)]);
        for (j, sum) in four.into_iter().enumerate() {
            sums[(i + j) / N][(i + j) % N] = sum;
        }
        i += 4;
    }
    while i < R * N {
        sums[i / N][i % N] = simd.reduce_add(acc[i / N][i % N]);
        i += 1;
    }
    sums
}

fn accumulate<C: Codec, S: Simd>(
    simd: S,
    walk: Walk<'_, '_, S>,
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
    walk: Walk<'_, '_, S>,
    head_dim: usize,
    p: &[f32],
    p_stride: usize,
    out: Matrix<'_>,
) {
    assert!(p.len() >= (R - 1) * p_stride + walk.slots.len());
    assert!(out.stride >= head_dim && out.values.len() >= R * out.stride);
    let mut done = 0;
    for run in walk.runs() {
        check_run::<C, S>(&run, head_dim);
        let weights = Weights { p: &p[done..], stride: p_stride };
        let (values, stride) = (out.values.as_mut_ptr(), out.stride);
        simd.vectorize(
            #[inline(always)]
            || {
                let mut channel = 0;
                // SAFETY: the run's bytes and `out` were measured above; `weights` has a value for
                // each of the R rows and each slot of the run; the channels end at `head_dim`.
                unsafe {
                    // Wide tiles amortise the broadcast of p; R * T accumulators stay in registers.
                    if S::LANES == 16 && R <= 5 || R <= 2 {
                        while channel + 4 * S::LANES <= head_dim {
                            let out = values.add(channel);
                            accumulate_tile::<C, S, R, 4>(
                                simd, &run, &weights, head_dim, channel, out, stride,
                            );
                            channel += 4 * S::LANES;
                        }
                    }
                    if S::LANES == 16 || R <= 4 {
                        while channel + 2 * S::LANES <= head_dim {
                            let out = values.add(channel);
                            accumulate_tile::<C, S, R, 2>(
                                simd, &run, &weights, head_dim, channel, out, stride,
                            );
                            channel += 2 * S::LANES;
                        }
                    }
                    while channel < head_dim {
                        let out = values.add(channel);
                        accumulate_tile::<C, S, R, 1>(
                            simd, &run, &weights, head_dim, channel, out, stride,
                        );
                        channel += S::LANES;
                    }
                }
            },
        );
        done += run.slots;
    }
}

/// `p[r][i]`, rows `stride` apart.
struct Weights<'a> {
    p: &'a [f32],
    stride: usize,
}

/// Channels `channel .. channel + T * LANES` of all rows, for all slots of the run.
///
/// # Safety
/// The run has its slots of codec `C`; `weights` has R rows with a value for each slot; `out` is valid
/// for `T * LANES` values in each of R rows `stride` apart; the channels are within `head_dim`.
#[inline(always)]
unsafe fn accumulate_tile<C: Codec, S: Simd, const R: usize, const T: usize>(
    simd: S,
    run: &Run<'_>,
    weights: &Weights<'_>,
    head_dim: usize,
    channel: usize,
    out: *mut f32,
    stride: usize,
) {
    let (bytes, scale_bytes) = (C::payload_bytes(head_dim), C::scale_bytes(head_dim));
    let mut acc = [[simd.splat(0.0); T]; R];
    for (r, acc) in acc.iter_mut().enumerate() {
        for (t, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's `out`.
            *acc = unsafe { simd.load(out.add(r * stride + t * S::LANES)) };
        }
    }
    for slot in 0..run.slots {
        if channel == 0 {
            run.prefetch(slot);
        }
        let mut v = [simd.splat(0.0); T];
        for (t, v) in v.iter_mut().enumerate() {
            // SAFETY: the caller's run and channels.
            *v = unsafe {
                let payload = run.payload.as_ptr().add(slot * bytes);
                let scales = run.scales.as_ptr().add(slot * scale_bytes);
                C::load(simd, payload, scales, channel + t * S::LANES)
            };
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's weights.
            let p = simd.splat(unsafe { *weights.p.get_unchecked(r * weights.stride + slot) });
            for (acc, v) in acc.iter_mut().zip(v) {
                *acc = simd.mul_add(p, v, *acc);
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        for (t, acc) in acc.into_iter().enumerate() {
            // SAFETY: the caller's `out`.
            unsafe { simd.store(out.add(r * stride + t * S::LANES), acc) };
        }
    }
}

fn widen<C: Codec, S: Simd>(simd: S, walk: Walk<'_, '_, S>, head_dim: usize, out: &mut [f32]) {
    assert_eq!(out.len(), walk.slots.len() * head_dim);
    let (bytes, scale_bytes) = (C::payload_bytes(head_dim), C::scale_bytes(head_dim));
    let mut rows = out.chunks_exact_mut(head_dim);
    for run in walk.runs() {
        check_run::<C, S>(&run, head_dim);
        let rows = rows.by_ref().take(run.slots);
        simd.vectorize(
            #[inline(always)]
            || {
                for (slot, row) in rows.enumerate() {
                    run.prefetch(slot);
                    for channel in (0..head_dim).step_by(S::LANES) {
                        // SAFETY: `check_run` measured the slots' bytes; a row is `head_dim`.
                        unsafe {
                            let payload = run.payload.as_ptr().add(slot * bytes);
                            let scales = run.scales.as_ptr().add(slot * scale_bytes);
                            let values = C::load(simd, payload, scales, channel);
                            simd.store(row.as_mut_ptr().add(channel), values);
                        }
                    }
                }
            },
        );
    }
}
