//! Scores: queries against the keys of a walk.

use super::{
    ops::{Matrix, Walk, by_rows},
    side::Run,
};
use crate::{
    base::simd::Simd,
    format::{BLOCK, Codec},
};

/// See [`Ops::dot`](super::ops::Ops).
pub(super) fn dot<C: Codec, S: Simd>(
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
    simd.vectorize(
        #[inline(always)]
        || {
            // SAFETY: measured above.
            unsafe {
                // As many slots at a time as accumulators fit in registers: a load of q serves them
                // all, and their sums share one reduction.
                match (S::LANES, R) {
                    (16, 1..=5) | (_, 1 | 2) => {
                        dot_walk::<C, S, R, 4>(simd, walk, head_dim, q, scores)
                    }
                    (16, _) | (_, 3 | 4) => dot_walk::<C, S, R, 2>(simd, walk, head_dim, q, scores),
                    _ => dot_walk::<C, S, R, 1>(simd, walk, head_dim, q, scores),
                }
            }
        },
    );
}

/// `N` slots at a time; it divides the runs of a bundle.
///
/// # Safety
/// `q` has R rows, `scores` R rows of as many values as the walk has slots.
#[inline(always)]
unsafe fn dot_walk<C: Codec, S: Simd, const R: usize, const N: usize>(
    simd: S,
    walk: Walk<'_, '_, S>,
    head_dim: usize,
    q: &[f32],
    scores: Matrix<'_>,
) {
    let lines = walk.lines(0..1, 1);
    let (mut out, stride) = (scores.values.as_mut_ptr(), scores.stride);
    for bundle in walk.bundles::<C>(head_dim) {
        // SAFETY: pointers go to slots of the bundle, whose bytes the walk measured; `out` advances
        // by a value for each slot.
        unsafe {
            if let [run] = bundle.runs() {
                let mut slot = 0;
                while slot + N <= bundle.slots {
                    let mut places = [Place::of::<C>(run, slot, head_dim); N];
                    for (n, place) in places.iter_mut().enumerate() {
                        run.prefetch(slot + n, lines);
                        *place = Place::of::<C>(run, slot + n, head_dim);
                    }
                    let sums = dot_block::<C, S, R, N>(simd, places, head_dim, q);
                    store(sums, out.add(slot), stride);
                    slot += N;
                }
                while slot < bundle.slots {
                    run.prefetch(slot, lines);
                    let places = [Place::of::<C>(run, slot, head_dim)];
                    let sums = dot_block::<C, S, R, 1>(simd, places, head_dim, q);
                    store(sums, out.add(slot), stride);
                    slot += 1;
                }
                out = out.add(bundle.slots);
            } else {
                for slot in 0..bundle.slots {
                    for runs in bundle.runs().chunks_exact(N) {
                        let mut places = [Place::of::<C>(&runs[0], slot, head_dim); N];
                        for (n, place) in places.iter_mut().enumerate() {
                            runs[n].prefetch(slot, lines);
                            *place = Place::of::<C>(&runs[n], slot, head_dim);
                        }
                        let sums = dot_block::<C, S, R, N>(simd, places, head_dim, q);
                        store(sums, out, stride);
                        out = out.add(N);
                    }
                }
            }
        }
    }
}

/// Where a slot is.
#[derive(Clone, Copy)]
struct Place {
    payload: *const u8,
    scales: *const u8,
}

impl Place {
    /// # Safety
    /// The run has more than `slot` slots of codec `C`.
    #[inline(always)]
    unsafe fn of<C: Codec>(run: &Run<'_>, slot: usize, head_dim: usize) -> Self {
        // SAFETY: the caller's slot.
        unsafe {
            Self {
                payload: run.payload.as_ptr().add(slot * C::payload_bytes(head_dim)),
                scales: run.scales.as_ptr().add(slot * C::scale_bytes(head_dim)),
            }
        }
    }
}

/// Writes `N` scores of each row.
///
/// # Safety
/// `out` is valid for `N` values in each of R rows `stride` apart.
#[inline(always)]
unsafe fn store<const R: usize, const N: usize>(sums: [[f32; N]; R], out: *mut f32, stride: usize) {
    for (r, sums) in sums.into_iter().enumerate() {
        // SAFETY: the caller's rows.
        unsafe { out.add(r * stride).cast::<[f32; N]>().write_unaligned(sums) };
    }
}

/// `[r][n] = q[r]·K[n]`
///
/// # Safety
/// Places are of whole slots of codec `C`, `q` has R rows of `head_dim`, a multiple of LANES.
#[inline(always)]
unsafe fn dot_block<C: Codec, S: Simd, const R: usize, const N: usize>(
    simd: S,
    places: [Place; N],
    head_dim: usize,
    q: &[f32],
) -> [[f32; N]; R] {
    let mut acc = [[simd.splat(0.0); N]; R];
    let mut channel = 0;
    while channel < head_dim {
        // SAFETY: `channel < head_dim`, and the vectors of a block end with it or with `head_dim`.
        unsafe {
            let mut shared = [C::shared(simd, places[0].scales, channel); N];
            for (shared, place) in shared.iter_mut().zip(&places).skip(1) {
                *shared = C::shared(simd, place.scales, channel);
            }
            // A whole block is a loop of constant length, which is unrolled.
            if channel + BLOCK <= head_dim {
                for i in 0..BLOCK / S::LANES {
                    let channel = channel + i * S::LANES;
                    dot_step::<C, S, R, N>(simd, places, shared, head_dim, channel, q, &mut acc);
                }
            } else {
                for channel in (channel..head_dim).step_by(S::LANES) {
                    dot_step::<C, S, R, N>(simd, places, shared, head_dim, channel, q, &mut acc);
                }
            }
        }
        channel += BLOCK;
    }
    reduce(simd, acc)
}

/// Adds the products of one vector of channels.
///
/// # Safety
/// As [`dot_block`]; `shared` is of the channel's block, `channel + LANES <= head_dim`.
#[inline(always)]
unsafe fn dot_step<C: Codec, S: Simd, const R: usize, const N: usize>(
    simd: S,
    places: [Place; N],
    shared: [C::Shared<S>; N],
    head_dim: usize,
    channel: usize,
    q: &[f32],
    acc: &mut [[S::V; N]; R],
) {
    // SAFETY: the caller's slots, rows and channels.
    unsafe {
        let mut k = [simd.splat(0.0); N];
        for (n, k) in k.iter_mut().enumerate() {
            *k = C::load_block(simd, places[n].payload, channel, shared[n]);
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let q = simd.load(q.as_ptr().add(r * head_dim + channel));
            for (acc, k) in acc.iter_mut().zip(k) {
                *acc = simd.mul_add(q, k, *acc);
            }
        }
    }
}

/// The lane sums of a block of accumulators, four at a time.
#[inline(always)]
fn reduce<S: Simd, const R: usize, const N: usize>(simd: S, acc: [[S::V; N]; R]) -> [[f32; N]; R] {
    let mut sums = [[0.0; N]; R];
    if N == 4 {
        let mut rows = [[simd.splat(0.0); 4]; R];
        for (row, acc) in rows.iter_mut().zip(acc) {
            row.copy_from_slice(&acc);
        }
        for (sums, row) in sums.iter_mut().zip(simd.reduce_add_rows(rows)) {
            sums.copy_from_slice(&row);
        }
        return sums;
    }
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
