//! Few queries over many slots (decode): K and V stream by once, straight from the pages.

use std::ops::Range;

use super::{
    cap,
    doubt::doubt,
    exp::exp2,
    queries::Queries,
    side::{QUAD, Side},
    sides::Sides,
    walk::{MAX_ROWS, Matrix},
};
use crate::base::simd::Simd;

/// The most slots whose scores are computed before their values are added: enough to make the softmax
/// between the two passes cheap.
pub(super) const CHUNK: usize = 256;
/// Payload bytes of K in a chunk, about: what one pass prefetches must still be in a near cache when
/// the next pass reads it, and the pages of a chunk are walked side by side.
const CHUNK_BYTES: usize = 16 << 10;

/// Online softmax (Milakov & Gimelshein, arXiv 1805.02867) of query rows, in base 2: `max` of the
/// scores so far, `sum` of `2^(score − max)` and `out`, the values weighted alike, not yet divided.
pub(super) struct State<'a> {
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[rows][v_dim]`
    pub out: &'a mut [f32],
}

/// The maximum of no scores. Finite, so that differences of maxima are never NaN.
pub(super) const NO_SCORE: f32 = f32::MIN;

impl<'a> State<'a> {
    /// Values that the state of one row needs.
    pub fn row_len(v_dim: usize) -> usize {
        v_dim + 2
    }

    /// Cuts a buffer of `rows * row_len` values.
    pub fn new(buffer: &'a mut [f32], rows: usize) -> Self {
        let (max, rest) = buffer.split_at_mut(rows);
        let (sum, out) = rest.split_at_mut(rows);
        Self { max, sum, out }
    }

    /// Nothing seen yet.
    pub fn clear(&mut self) {
        self.max.fill(NO_SCORE);
        self.sum.fill(0.0);
        self.out.fill(0.0);
    }

    fn rows(&mut self, rows: Range<usize>, v_dim: usize) -> State<'_> {
        State {
            max: &mut self.max[rows.clone()],
            sum: &mut self.sum[rows.clone()],
            out: &mut self.out[rows.start * v_dim..rows.end * v_dim],
        }
    }
}

/// Adds `slots` of a head to the state of `rows`, which are those of `q` at the same place.
pub(super) fn stream<S: Simd>(
    simd: S,
    sides: &Sides<'_, S>,
    slots: Range<usize>,
    q: Queries<'_>,
    rows: Range<usize>,
    state: &mut State<'_>,
) {
    let (k, v) = (&sides.k, &sides.v);
    let mut scores = [0f32; MAX_ROWS * CHUNK];
    let tiles = rows.len().div_ceil(MAX_ROWS);
    let mut first = slots.start;
    while first < slots.end {
        let chunk = first..chunk_end(&k.side, first, slots.end);
        for tile in 0..tiles {
            // Tiles of almost equal size: five rows are three and two, not four and one.
            let at = |tile: usize| rows.start + tile * rows.len() / tiles;
            let rows = at(tile)..at(tile + 1);
            let mut state = state.rows(rows.clone(), v.dim);
            // Later tiles find the chunk in the cache.
            let ahead = (tile == 0).then_some(chunk.len());
            let matrix = Matrix { values: &mut scores, stride: CHUNK };
            (k.ops.dot)(simd, k.stream(chunk.clone(), ahead), k.dim, q.of(rows.clone()), matrix);
            if let Some(cap) = q.cap {
                cap_rows(simd, &mut scores, rows.len(), chunk.len(), cap);
            }
            softmax(simd, &mut scores, chunk.len(), v.dim, &mut state);
            let out = Matrix { values: state.out, stride: v.dim };
            (v.ops.accumulate)(simd, v.stream(chunk.clone(), ahead), v.dim, &scores, CHUNK, out);
        }
        first = chunk.end;
    }
}

/// Holds the first `count` scores of each row to `cap`.
pub(super) fn cap_rows<S: Simd>(
    simd: S,
    scores: &mut [f32; MAX_ROWS * CHUNK],
    rows: usize,
    count: usize,
    cap: f32,
) {
    assert!(count <= CHUNK && rows <= MAX_ROWS && CHUNK.is_multiple_of(S::LANES));
    simd.vectorize(
        #[inline(always)]
        || {
            for row in scores.chunks_exact_mut(CHUNK).take(rows) {
                for i in (0..count).step_by(S::LANES) {
                    // SAFETY: vectors start before `count <= CHUNK`, and CHUNK is whole vectors.
                    unsafe { cap::cap(simd, row.as_mut_ptr().add(i), cap) };
                }
            }
        },
    );
}

/// Where the chunk that starts at slot `first` ends: at the end of a page where pages are small, so
/// that runs are whole pages, and bundles of them where they can be.
pub(super) fn chunk_end(side: &Side<'_>, first: usize, end: usize) -> usize {
    let (page_slots, bundle) = (side.page_slots(), QUAD * side.page_slots());
    let slots = (CHUNK_BYTES / side.slot_bytes()).clamp(CHUNK / 8, CHUNK);
    let slots = if bundle <= CHUNK { slots.max(bundle) / bundle * bundle } else { slots };
    let boundary = (first + slots) / page_slots * page_slots;
    (if boundary > first { boundary } else { first + slots }).min(end)
}

/// Turns each row's `count` scores into weights `2^(score − max)` under its new maximum, and brings
/// the row's sum and values under that maximum. A row with a score that is in [doubt](doubt()) gets a
/// sum of NaN.
fn softmax<S: Simd>(
    simd: S,
    scores: &mut [f32; MAX_ROWS * CHUNK],
    count: usize,
    v_dim: usize,
    state: &mut State<'_>,
) {
    assert!(count <= CHUNK && state.out.len() == state.max.len() * v_dim);
    assert!(state.max.len() == state.sum.len() && v_dim.is_multiple_of(S::LANES));
    let padded = count.next_multiple_of(S::LANES);
    simd.vectorize(
        #[inline(always)]
        || {
            let rows = scores.chunks_exact_mut(CHUNK).zip(state.out.chunks_exact_mut(v_dim));
            for (r, (scores, out)) in rows.enumerate() {
                let scores = &mut scores[..padded];
                // Padding that is neither the largest nor the smallest, and then has no weight.
                let first = scores[0];
                scores[count..].fill(first);
                // SAFETY: `scores` and `out` are whole vectors, checked above.
                unsafe {
                    let (mut max, mut min) = (simd.splat(state.max[r]), simd.splat(0.0));
                    for i in (0..padded).step_by(S::LANES) {
                        let score = simd.load(scores.as_ptr().add(i));
                        (max, min) = (simd.max(max, score), simd.min(min, score));
                    }
                    scores[count..].fill(f32::NEG_INFINITY);
                    let (old, new) = (state.max[r], simd.reduce_max(max));
                    let base = simd.splat(new);
                    // A NaN that both dropped makes its own weight NaN.
                    let mut sum = simd.add(doubt(simd, base), doubt(simd, min));
                    for i in (0..padded).step_by(S::LANES) {
                        let p = scores.as_mut_ptr().add(i);
                        let weight = exp2(simd, simd.sub(simd.load(p), base));
                        sum = simd.add(sum, weight);
                        simd.store(p, weight);
                    }
                    let shrink = if new > old { (old - new).exp2() } else { 1.0 };
                    state.max[r] = new;
                    state.sum[r] = state.sum[r] * shrink + simd.reduce_add(sum);
                    if shrink != 1.0 {
                        let shrink = simd.splat(shrink);
                        for c in (0..v_dim).step_by(S::LANES) {
                            let p = out.as_mut_ptr().add(c);
                            simd.store(p, simd.mul(simd.load(p), shrink));
                        }
                    }
                }
            }
        },
    );
}
