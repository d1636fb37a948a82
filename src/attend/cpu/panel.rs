//! Many queries over many slots (prefill): two register-blocked matrix products per tile of slots.
//!
//! Query rows lie in the *lanes*: a panel is two vectors of rows, so maxima, exponentials, sums and
//! rescaling are lane by lane, nothing is ever reduced across a vector, and neither K nor V needs to
//! be transposed: both products broadcast single values of a widened K or V row.

use std::ops::Range;

use super::{
    cap,
    doubt::doubt,
    exp::exp2,
    queries::Queries,
    sides::Sides,
    stream::{NO_SCORE, State},
};
use crate::base::simd::Simd;

/// Slots that are widened to f32 at a time and serve every panel of the item.
const TILE: usize = 64;

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct Workspace {
    /// Widened slots, `[TILE][k_dim]` and `[TILE][v_dim]`.
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[panel][k_dim][width]` and `[panel][v_dim][width]`
    q: Vec<f32>,
    out: Vec<f32>,
    /// `[panel][width]`
    max: Vec<f32>,
    sum: Vec<f32>,
    /// Scores, then weights, of one panel: `[TILE][width]`.
    scores: Vec<f32>,
}

/// Rows of a panel.
pub(super) const fn width<S: Simd>() -> usize {
    2 * S::LANES
}

/// Attends with `q`, panel after panel, where each panel sees the slots of its entry in `seen`; leaves the
/// result in `state`, which was clear.
pub(super) fn attend_panels<S: Simd>(
    simd: S,
    sides: &Sides<'_, S>,
    q: Queries<'_>,
    seen: &[Range<usize>],
    state: &mut State<'_>,
    work: &mut Workspace,
) {
    let width = width::<S>();
    let (rows, k_dim, v_dim) = (q.rows(), sides.k.dim, sides.v.dim);
    assert!(q.dim == k_dim && seen.len() == rows.div_ceil(width));
    work.load(q, v_dim, width, seen.len());
    let some = || seen.iter().filter(|seen| !seen.is_empty());
    let end = some().map(|seen| seen.end).max().unwrap_or(0);
    let mut first = some().map(|seen| seen.start).min().unwrap_or(end);
    while first < end {
        let tile = first..(first + TILE).min(end);
        for (side, buffer) in [(&sides.k, &mut work.k), (&sides.v, &mut work.v)] {
            // The product reads whole blocks of K rows; what is beyond the tile is never used.
            let walk = side.walk(tile.clone(), Some(TILE));
            (side.ops.widen)(simd, walk, side.dim, &mut buffer[..tile.len() * side.dim]);
        }
        for (panel, seen) in seen.iter().enumerate() {
            let within = |slot: usize| slot.clamp(tile.start, tile.end) - tile.start;
            let seen = within(seen.start)..within(seen.end);
            if !seen.is_empty() {
                let square = |dim| panel * dim * width..(panel + 1) * dim * width;
                let line = panel * width..(panel + 1) * width;
                Panel {
                    k_dim,
                    v_dim,
                    cap: q.cap,
                    seen,
                    k: &work.k,
                    v: &work.v,
                    q: &work.q[square(k_dim)],
                    scores: &mut work.scores,
                    max: &mut work.max[line.clone()],
                    sum: &mut work.sum[line],
                    out: &mut work.out[square(v_dim)],
                }
                .attend(simd);
            }
        }
        first = tile.end;
    }
    for row in 0..rows {
        let (panel, lane) = (row / width, row % width);
        state.max[row] = work.max[row];
        state.sum[row] = work.sum[row];
        let square = &work.out[panel * v_dim * width..];
        let column = square[lane..].iter().step_by(width);
        for (out, value) in state.out[row * v_dim..][..v_dim].iter_mut().zip(column) {
            *out = *value;
        }
    }
}

impl Workspace {
    /// Makes room, turns the queries into panels and clears the results.
    fn load(&mut self, q: Queries<'_>, v_dim: usize, width: usize, panels: usize) {
        let squares = |dim| panels * dim * width;
        for (buffer, len) in [
            (&mut self.k, TILE * q.dim),
            (&mut self.v, TILE * v_dim),
            (&mut self.scores, TILE * width),
        ] {
            buffer.resize(buffer.len().max(len), 0.0);
        }
        for (buffer, len, value) in [
            (&mut self.q, squares(q.dim), 0.0),
            (&mut self.out, squares(v_dim), 0.0),
            (&mut self.max, panels * width, NO_SCORE),
            (&mut self.sum, panels * width, 0.0),
        ] {
            buffer.clear();
            buffer.resize(len, value);
        }
        for (row, channels) in q.values.chunks_exact(q.dim).enumerate() {
            let square = &mut self.q[row / width * q.dim * width + row % width..];
            for (value, q) in square.iter_mut().step_by(width).zip(channels) {
                *value = *q;
            }
        }
    }
}

/// One panel of rows against one tile of slots.
struct Panel<'a> {
    k_dim: usize,
    v_dim: usize,
    /// What scores are held to.
    cap: Option<f32>,
    /// Slots of the tile that the panel sees.
    seen: Range<usize>,
    k: &'a [f32],
    v: &'a [f32],
    q: &'a [f32],
    scores: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    out: &'a mut [f32],
}

impl Panel<'_> {
    fn attend<S: Simd>(mut self, simd: S) {
        let (width, k_dim, v_dim) = (width::<S>(), self.k_dim, self.v_dim);
        assert!(!self.seen.is_empty() && self.seen.end <= TILE);
        assert!(k_dim.is_multiple_of(16) && v_dim.is_multiple_of(16));
        assert!(self.k.len() >= TILE * k_dim && self.v.len() >= TILE * v_dim);
        assert!(self.q.len() == k_dim * width && self.out.len() == v_dim * width);
        assert!(self.max.len() == width && self.sum.len() == width);
        assert!(self.scores.len() >= TILE * width);
        simd.vectorize(
            #[inline(always)]
            || {
                // Two vectors times this many broadcasts fill the registers with accumulators.
                if S::LANES == 16 { self.run::<S, 8>(simd) } else { self.run::<S, 4>(simd) }
            },
        );
    }

    #[inline(always)]
    fn run<S: Simd, const N: usize>(&mut self, simd: S) {
        // SAFETY: `attend` measured every buffer; N divides TILE and 16.
        unsafe {
            for slot in (self.seen.start / N * N..self.seen.end).step_by(N) {
                self.score::<S, N>(simd, slot);
            }
            if let Some(cap) = self.cap {
                let width = width::<S>();
                for i in (self.seen.start * width..self.seen.end * width).step_by(S::LANES) {
                    cap::cap(simd, self.scores.as_mut_ptr().add(i), cap);
                }
            }
            let shrink = self.softmax(simd);
            for channel in (0..self.v_dim).step_by(N) {
                self.add_values::<S, N>(simd, channel, shrink);
            }
        }
    }

    /// `scores[slot + n][row] = Σ_c K[slot + n][c] · q[c][row]`
    ///
    /// # Safety
    /// The buffers are of the lengths that `attend` checks, `slot + N <= TILE`.
    #[inline(always)]
    unsafe fn score<S: Simd, const N: usize>(&mut self, simd: S, slot: usize) {
        let (width, dim) = (width::<S>(), self.k_dim);
        let mut acc = [[simd.splat(0.0); 2]; N];
        // SAFETY: channels end at `k_dim`, slots at `TILE`.
        unsafe {
            let k = self.k.as_ptr().add(slot * dim);
            for channel in 0..dim {
                let q = self.q.as_ptr().add(channel * width);
                let q = [simd.load(q), simd.load(q.add(S::LANES))];
                for (n, acc) in acc.iter_mut().enumerate() {
                    let k = simd.splat(*k.add(n * dim + channel));
                    acc[0] = simd.mul_add(k, q[0], acc[0]);
                    acc[1] = simd.mul_add(k, q[1], acc[1]);
                }
            }
            for (n, acc) in acc.into_iter().enumerate() {
                let out = self.scores.as_mut_ptr().add((slot + n) * width);
                simd.store(out, acc[0]);
                simd.store(out.add(S::LANES), acc[1]);
            }
        }
    }

    /// Turns the visible scores into weights under the rows' new maxima and returns what the values
    /// so far must be multiplied with. Rows with a score in [doubt](doubt()) get a sum of NaN.
    ///
    /// # Safety
    /// The buffers are of the lengths that `attend` checks.
    #[inline(always)]
    unsafe fn softmax<S: Simd>(&mut self, simd: S) -> [S::V; 2] {
        let width = width::<S>();
        let mut shrink = [simd.splat(0.0); 2];
        for (half, shrink) in shrink.iter_mut().enumerate() {
            let offset = half * S::LANES;
            // SAFETY: `seen.end` rows of `scores`, both halves of `max` and `sum`.
            unsafe {
                let scores = self.scores.as_mut_ptr().add(offset);
                let max_at = self.max.as_mut_ptr().add(offset);
                let old = simd.load(max_at);
                let (mut new, mut min) = (old, simd.splat(0.0));
                for slot in self.seen.clone() {
                    let score = simd.load(scores.add(slot * width));
                    (new, min) = (simd.max(new, score), simd.min(min, score));
                }
                simd.store(max_at, new);
                *shrink = exp2(simd, simd.sub(old, new));
                let sum_at = self.sum.as_mut_ptr().add(offset);
                let doubts = simd.add(doubt(simd, new), doubt(simd, min));
                let mut sum = simd.mul_add(simd.load(sum_at), *shrink, doubts);
                for slot in self.seen.clone() {
                    let p = scores.add(slot * width);
                    let weight = exp2(simd, simd.sub(simd.load(p), new));
                    sum = simd.add(sum, weight);
                    simd.store(p, weight);
                }
                simd.store(sum_at, sum);
            }
        }
        shrink
    }

    /// `out[channel + n][row] = shrink[row]·out[channel + n][row] + Σ_s V[s][channel + n]·p[s][row]`
    ///
    /// # Safety
    /// The buffers are of the lengths that `attend` checks, `channel + N <= v_dim`.
    #[inline(always)]
    unsafe fn add_values<S: Simd, const N: usize>(
        &mut self,
        simd: S,
        channel: usize,
        shrink: [S::V; 2],
    ) {
        let (width, dim) = (width::<S>(), self.v_dim);
        // SAFETY: channels end at `v_dim`, slots at `seen.end`.
        unsafe {
            let out = self.out.as_mut_ptr().add(channel * width);
            let mut acc = [[simd.splat(0.0); 2]; N];
            for (n, acc) in acc.iter_mut().enumerate() {
                for (half, acc) in acc.iter_mut().enumerate() {
                    let so_far = simd.load(out.add(n * width + half * S::LANES));
                    *acc = simd.mul(so_far, shrink[half]);
                }
            }
            let v = self.v.as_ptr().add(channel);
            for slot in self.seen.clone() {
                let p = self.scores.as_ptr().add(slot * width);
                let p = [simd.load(p), simd.load(p.add(S::LANES))];
                for (n, acc) in acc.iter_mut().enumerate() {
                    let v = simd.splat(*v.add(slot * dim + n));
                    acc[0] = simd.mul_add(v, p[0], acc[0]);
                    acc[1] = simd.mul_add(v, p[1], acc[1]);
                }
            }
            for (n, acc) in acc.into_iter().enumerate() {
                for (half, acc) in acc.into_iter().enumerate() {
                    simd.store(out.add(n * width + half * S::LANES), acc);
                }
            }
        }
    }
}
