//! Eviction scores: a second pass over K for the last query tokens, with the log-sum-exp at hand.

use std::{
    cell::RefCell,
    f32::consts::LOG2_E,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    doubt::doubt,
    exp::exp2,
    in_parallel, item,
    ops::{MAX_ROWS, Matrix, Walk},
    plan::{self, Plan},
    stream::{CHUNK, Sides, chunk_end},
};
use crate::{
    attend::{
        batch::Batch,
        scores::{Reduce, SlotScores},
    },
    base::simd::Simd,
};

/// Slots that one job scores, about.
const PIECE: usize = 2048;

/// A piece of one head.
struct Job<'a> {
    span: usize,
    head: usize,
    slots: Range<usize>,
    /// The scores of these slots: a row for each query head of the group, or one for all.
    scores: Vec<&'a mut [f32]>,
    unsure: &'a AtomicBool,
}

thread_local! {
    static QUERIES: RefCell<Vec<f32>> = RefCell::default();
}

/// Fills `scores`, given the natural log-sum-exp of every query row, for the heads that are not `unsure`,
/// and adds to these the heads with a logit in [doubt](doubt()).
pub(super) fn score<S: Simd>(
    simd: S,
    batch: &Batch<'_>,
    plan: &Plan,
    sides: &[Sides<'_, S>],
    lse: &[f32],
    scores: &mut SlotScores,
    unsure: &mut [bool],
) {
    scores.reset(batch);
    let found: Vec<AtomicBool> = unsure.iter().map(|_| AtomicBool::new(false)).collect();
    let (kv_heads, reduce, skip) = (batch.shape.kv_heads(), scores.reduce(), scores.skip_newest());
    let windows: Vec<_> = batch.spans.iter().map(|span| scores.tokens(span)).collect();
    let mut jobs = Vec::new();
    for (index, head) in scores.heads_mut().into_iter().enumerate() {
        let (span, h) = (index / kv_heads, index % kv_heads);
        let table = &batch.spans[span].heads[h];
        if table.slots == 0 || windows[span].is_empty() || unsure[index] {
            continue;
        }
        let (piece, pieces) = plan::pieces(table, table.slots, PIECE);
        let mut rows: Vec<_> =
            head.chunks_exact_mut(table.slots).map(|row| row.chunks_mut(piece)).collect();
        jobs.extend((0..pieces).map(|i| Job {
            span,
            head: h,
            slots: i * piece..((i + 1) * piece).min(table.slots),
            scores: rows.iter_mut().filter_map(Iterator::next).collect(),
            unsure: &found[index],
        }));
    }
    in_parallel(jobs, |job| {
        let sides = &sides[job.span * kv_heads + job.head];
        let window = windows[job.span].clone();
        QUERIES.with_borrow_mut(|q| {
            let first_token = plan.first_token(job.span);
            job.run(simd, batch, sides, (first_token, window), lse, (reduce, skip), q);
        });
    });
    for (unsure, found) in unsure.iter_mut().zip(found) {
        *unsure |= found.into_inner();
    }
}

impl Job<'_> {
    #[expect(clippy::too_many_arguments, reason = "one call, from `score`")]
    fn run<S: Simd>(
        mut self,
        simd: S,
        batch: &Batch<'_>,
        sides: &Sides<'_, S>,
        (first_token, window): (usize, Range<usize>),
        lse: &[f32],
        (reduce, skip): (Reduce, usize),
        q: &mut Vec<f32>,
    ) {
        let (group, dim) = (batch.shape.group(), batch.shape.head_dim());
        let span = &batch.spans[self.span];
        item::gather(batch, first_token + window.start..first_token + window.end, self.head, q);
        let rows = group * window.len();
        // Only these count; the log-sum-exp is over all that the query sees.
        let visible =
            |row: usize| span.visible(self.head, window.start + row / group).saturating_sub(skip);
        let lse_of = |row: usize| {
            let token = first_token + window.start + row / group;
            LOG2_E * lse[token * batch.shape.query_heads() + self.head * group + row % group]
        };
        let mut logits = [0f32; MAX_ROWS * CHUNK];
        let mut first = self.slots.start;
        while first < self.slots.end {
            let chunk = first..chunk_end(&sides.k, first, self.slots.end);
            for tile in (0..rows).step_by(MAX_ROWS) {
                let tile = tile..(tile + MAX_ROWS).min(rows);
                // Rows are in the order of their tokens: the last one sees the most.
                let seen = chunk.start..visible(tile.end - 1).clamp(chunk.start, chunk.end);
                if seen.is_empty() {
                    continue;
                }
                let walk = Walk { side: &sides.k, slots: seen, streams: false, ahead: None };
                let tile_q = &q[tile.start * dim..tile.end * dim];
                let matrix = Matrix { values: &mut logits, stride: CHUNK };
                (sides.k.ops.dot)(simd, walk, dim, tile_q, matrix);
                for (row, logits) in tile.zip(logits.chunks_exact(CHUNK)) {
                    let seen = visible(row).clamp(chunk.start, chunk.end) - chunk.start;
                    let line = match reduce {
                        Reduce::PerQueryHead => row % group,
                        Reduce::Group => 0,
                    };
                    let offset = chunk.start - self.slots.start;
                    let sums = &mut self.scores[line][offset..offset + seen];
                    add_squares(simd, logits, lse_of(row), sums);
                }
            }
            first = chunk.end;
        }
        if self.scores.iter().any(|scores| scores.iter().any(|x| x.is_nan())) {
            self.unsure.store(true, Ordering::Relaxed);
        }
    }
}

/// `sums[i] += (2^(logits[i] − lse))²`, or NaN where the logit is in doubt; `logits` is a whole row of a
/// chunk.
fn add_squares<S: Simd>(simd: S, logits: &[f32], lse: f32, sums: &mut [f32]) {
    assert!(logits.len() == CHUNK && sums.len() <= CHUNK && CHUNK.is_multiple_of(S::LANES));
    simd.vectorize(
        #[inline(always)]
        || {
            let base = simd.splat(lse);
            let mut squares = [0f32; CHUNK];
            for i in (0..sums.len()).step_by(S::LANES) {
                // SAFETY: vectors start before `sums.len() <= CHUNK`, and CHUNK is whole vectors.
                unsafe {
                    let logit = simd.load(logits.as_ptr().add(i));
                    // Rounding may leave the logarithm of a probability above 0, by a hundredth.
                    let log = simd.min(simd.splat(0.0), simd.sub(logit, base));
                    let p = exp2(simd, log);
                    let square = simd.mul_add(p, p, doubt(simd, logit));
                    simd.store(squares.as_mut_ptr().add(i), square);
                }
            }
            for (sum, square) in sums.iter_mut().zip(squares) {
                *sum += square;
            }
        },
    );
}
