//! Scores: queries against the keys of a walk.

use super::{
    ops::{Matrix, Walk, by_rows},
    side::{Ahead, Run},
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
    let kernel = Kernel { head_dim, ahead: walk.ahead(head_dim), q };
    let (mut out, stride) = (scores.values.as_mut_ptr(), scores.stride);
    // Scores are written while the next ones are computed. What is written first is no score, so it
    // goes nowhere: rows no values apart.
    let mut nowhere = [0f32; N];
    let nowhere = nowhere.as_mut_ptr();
    let mut last = Pending { acc: [[simd.splat(0.0); N]; R], out: nowhere, stride: 0 };
    for bundle in walk.bundles::<C>(head_dim) {
        // SAFETY: places are slots of the bundle, whose bytes the walk measured; `out` advances by a
        // value for each slot.
        unsafe {
            if let [run] = bundle.runs() {
                let mut slot = 0;
                while slot + N <= bundle.slots {
                    let mut places = [Place { run, slot }; N];
                    for (n, place) in places.iter_mut().enumerate() {
                        place.slot += n;
                    }
                    let acc = kernel.block::<C, S, R, N>(simd, places, &last);
                    last = Pending { acc, out, stride };
                    (out, slot) = (out.add(N), slot + N);
                }
                while slot < bundle.slots {
                    let none = Pending { acc: [[simd.splat(0.0)]; R], out: nowhere, stride: 0 };
                    let places = [Place { run, slot }];
                    let acc = kernel.block::<C, S, R, 1>(simd, places, &none);
                    Pending { acc, out, stride }.write(simd);
                    (out, slot) = (out.add(1), slot + 1);
                }
            } else {
                for slot in 0..bundle.slots {
                    for runs in bundle.runs().chunks_exact(N) {
                        let mut places = [Place { run: &runs[0], slot }; N];
                        for (place, run) in places.iter_mut().zip(runs) {
                            place.run = run;
                        }
                        let acc = kernel.block::<C, S, R, N>(simd, places, &last);
                        last = Pending { acc, out, stride };
                        out = out.add(N);
                    }
                }
            }
        }
    }
    // SAFETY: the scores of the last N slots, or nowhere.
    unsafe { last.write(simd) };
}

/// A slot of a run.
#[derive(Clone, Copy)]
struct Place<'b, 'a> {
    run: &'b Run<'a>,
    slot: usize,
}

/// Scores of N slots whose lanes are still to be added up, and where they go.
struct Pending<S: Simd, const R: usize, const N: usize> {
    acc: [[S::V; N]; R],
    out: *mut f32,
    /// From one row to the next.
    stride: usize,
}

impl<S: Simd, const R: usize, const N: usize> Pending<S, R, N> {
    /// Whether rows are folded one by one, each after one of the four vectors of a block: with more
    /// rows, two sets of accumulators do not fit in the registers.
    const BY_ROWS: bool = S::LANES == 16 && N == 4 && R <= 3;

    /// # Safety
    /// `out` is valid for N values in each of R rows `stride` apart.
    #[inline(always)]
    unsafe fn write(&self, simd: S) {
        let mut folded = [simd.splat(0.0); 4];
        let mut first = 0;
        while first < R * N {
            let mut four = [[simd.splat(0.0); 4]; 4];
            for i in first..(first + 16).min(R * N) {
                four[(i - first) / 4][i % 4] = self.acc[i / N][i % N];
            }
            for (folded, four) in folded.iter_mut().zip(four) {
                *folded = simd.fold_sums(four);
            }
            let sums = simd.finish_sums(folded);
            for i in first..(first + 16).min(R * N) {
                // SAFETY: the caller's rows.
                unsafe {
                    *self.out.add(i / N * self.stride + i % N) = sums[(i - first) / 4][i % 4]
                };
            }
            first += 16;
        }
    }

    /// The first half of the work for row `r`.
    #[inline(always)]
    fn fold(&self, simd: S, r: usize) -> S::V {
        let mut four = [simd.splat(0.0); 4];
        four.copy_from_slice(&self.acc[r]);
        simd.fold_sums(four)
    }

    /// # Safety
    /// As [`write`](Self::write).
    #[inline(always)]
    unsafe fn write_folded(&self, simd: S, folded: [S::V; 4]) {
        let sums = simd.finish_sums(folded);
        for (r, sums) in sums.into_iter().take(R).enumerate() {
            // SAFETY: the caller's rows.
            unsafe { self.out.add(r * self.stride).cast::<[f32; 4]>().write_unaligned(sums) };
        }
    }
}

/// What all blocks have in common.
struct Kernel<'a> {
    head_dim: usize,
    ahead: Ahead,
    /// `[R][head_dim]`
    q: &'a [f32],
}

impl Kernel<'_> {
    /// `[r][n] = q[r]·K[n]`, lanes not yet added up. Meanwhile writes the scores of the block before:
    /// their sums are a long chain of dependent operations that would otherwise fill the scheduler.
    ///
    /// # Safety
    /// Places are slots of codec `C` in their runs, `q` has R rows of `head_dim`, a multiple of LANES;
    /// `last` can be [written](Pending::write).
    #[inline(always)]
    unsafe fn block<C: Codec, S: Simd, const R: usize, const N: usize>(
        &self,
        simd: S,
        places: [Place<'_, '_>; N],
        last: &Pending<S, R, N>,
    ) -> [[S::V; N]; R] {
        let mut acc = [[simd.splat(0.0); N]; R];
        let mut channel = 0;
        // SAFETY: whole blocks within `head_dim`, then vectors within it; the rest is the caller's.
        unsafe {
            if Pending::<S, R, N>::BY_ROWS && self.head_dim >= BLOCK {
                let shared = self.shared::<C, S, N>(simd, places, 0);
                let mut folded = [simd.splat(0.0); 4];
                // Not a loop: it would index registers.
                unrolled!(i in 0, 1, 2, 3 => {
                    places[i % N].run.prefetch(self.ahead, places[i % N].slot, 0);
                    self.step::<C, S, R, N>(simd, places, shared, i * S::LANES, &mut acc);
                    if i < R {
                        folded[i] = last.fold(simd, i % R);
                    }
                });
                last.write_folded(simd, folded);
                channel = BLOCK;
            } else {
                last.write(simd);
            }
            while channel + BLOCK <= self.head_dim {
                let shared = self.shared::<C, S, N>(simd, places, channel);
                for place in places {
                    place.run.prefetch(self.ahead, place.slot, channel);
                }
                for i in 0..BLOCK / S::LANES {
                    let channel = channel + i * S::LANES;
                    self.step::<C, S, R, N>(simd, places, shared, channel, &mut acc);
                }
                channel += BLOCK;
            }
            if channel < self.head_dim {
                let shared = self.shared::<C, S, N>(simd, places, channel);
                for place in places {
                    place.run.prefetch(self.ahead, place.slot, channel);
                }
                while channel < self.head_dim {
                    self.step::<C, S, R, N>(simd, places, shared, channel, &mut acc);
                    channel += S::LANES;
                }
            }
        }
        acc
    }

    /// # Safety
    /// As [`block`](Self::block), for a block that starts at `channel < head_dim`.
    #[inline(always)]
    unsafe fn shared<C: Codec, S: Simd, const N: usize>(
        &self,
        simd: S,
        places: [Place<'_, '_>; N],
        channel: usize,
    ) -> [C::Shared<S>; N] {
        let bytes = C::scale_bytes(self.head_dim);
        // SAFETY: the caller's slots.
        unsafe {
            let at = |place: Place<'_, '_>| place.run.scales.as_ptr().add(place.slot * bytes);
            let mut shared = [C::shared(simd, at(places[0]), channel, self.head_dim); N];
            for (shared, place) in shared.iter_mut().zip(places).skip(1) {
                *shared = C::shared(simd, at(place), channel, self.head_dim);
            }
            shared
        }
    }

    /// Adds the products of one vector of channels.
    ///
    /// # Safety
    /// As [`block`](Self::block); `shared` is of the channel's block, `channel + LANES <= head_dim`.
    #[inline(always)]
    unsafe fn step<C: Codec, S: Simd, const R: usize, const N: usize>(
        &self,
        simd: S,
        places: [Place<'_, '_>; N],
        shared: [C::Shared<S>; N],
        channel: usize,
        acc: &mut [[S::V; N]; R],
    ) {
        let bytes = C::payload_bytes(self.head_dim);
        // SAFETY: the caller's slots, rows and channels.
        unsafe {
            let mut k = [simd.splat(0.0); N];
            for (n, k) in k.iter_mut().enumerate() {
                let payload = places[n].run.payload.as_ptr().add(places[n].slot * bytes);
                *k = C::load_block(simd, payload, channel, shared[n]);
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
