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
    item,
    parallel::in_parallel,
    plan::{self, Plan},
    queries::Queries,
    sides::Sides,
    stream::{CHUNK, cap_rows, chunk_end},
    walk::{MAX_ROWS, Matrix},
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
    let (kv_heads, reduce, skip) = (batch.layer.kv_heads(), scores.reduce(), scores.skip_newest());
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
        let (group, k) = (batch.layer.group(), &sides.k);
        let span = &batch.spans[self.span];
        item::gather(batch, first_token + window.start..first_token + window.end, self.head, q);
        let q = Queries::new(batch.layer, q);
        let rows = group * window.len();
        // Only these count; the log-sum-exp is over all that the query sees.
        let counted =
            |row: usize| batch.visible(span, self.head, window.start + row / group).skipping(skip);
        let lse_of = |row: usize| {
            let token = first_token + window.start + row / group;
            LOG2_E * lse[token * batch.layer.query_heads() + self.head * group + row % group]
        };
        let mut logits = [0f32; MAX_ROWS * CHUNK];
        let mut first = self.slots.start;
        while first < self.slots.end {
            let chunk = first..chunk_end(&k.side, first, self.slots.end);
            let within = |part: Range<usize>| {
                part.start.clamp(chunk.start, chunk.end)..part.end.clamp(chunk.start, chunk.end)
            };
            for tile in (0..rows).step_by(MAX_ROWS) {
                let tile = tile..(tile + MAX_ROWS).min(rows);
                // Rows are in the order of their tokens: the first one sees furthest back, the last one
                // most of the newest slots.
                let ends = [tile.start, tile.end - 1].map(counted);
                let parts = ends.into_iter().flatten().map(within).filter(|part| !part.is_empty());
                let Some(hull) = parts.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)) else {
                    continue;
                };
                let matrix = Matrix { values: &mut logits, stride: CHUNK };
                let walk = k.walk(hull.clone(), None);
                (k.ops.dot)(simd, walk, k.dim, q.of(tile.clone()), matrix);
                if let Some(cap) = q.cap {
                    cap_rows(simd, &mut logits, tile.len(), hull.len(), cap);
                }
                for (row, logits) in tile.zip(logits.chunks_exact(CHUNK)) {
                    let line = match reduce {
                        Reduce::PerQueryHead => row % group,
                        Reduce::Group => 0,
                    };
                    for part in counted(row).map(within).into_iter().filter(|part| !part.is_empty())
                    {
                        let sums = part.start - self.slots.start..part.end - self.slots.start;
                        let part = part.start - hull.start..part.end - hull.start;
                        let sums = &mut self.scores[line][sums];
                        add_squares(simd, logits, lse_of(row), part, sums);
                    }
                }
            }
            first = chunk.end;
        }
        if self.scores.iter().any(|scores| scores.iter().any(|x| x.is_nan())) {
            self.unsure.store(true, Ordering::Relaxed);
        }
    }
}

/// `sums[i] += (2^(logits[i] − lse))²` for the logits of `part`, or NaN where the logit is in doubt; `logits`
/// is a whole row of a chunk.
fn add_squares<S: Simd>(simd: S, logits: &[f32], lse: f32, part: Range<usize>, sums: &mut [f32]) {
    assert!(logits.len() == CHUNK && part.end <= CHUNK && CHUNK.is_multiple_of(S::LANES));
    simd.vectorize(
        #[inline(always)]
        || {
            let base = simd.splat(lse);
            let mut squares = [0f32; CHUNK];
            for i in (part.start / S::LANES * S::LANES..part.end).step_by(S::LANES) {
                // SAFETY: whole vectors that start before `part.end <= CHUNK`, which is whole vectors.
                unsafe {
                    let logit = simd.load(logits.as_ptr().add(i));
                    // Rounding may leave the logarithm of a probability above 0, by a hundredth.
                    let log = simd.min(simd.splat(0.0), simd.sub(logit, base));
                    let p = exp2(simd, log);
                    let square = simd.mul_add(p, p, doubt(simd, logit));
                    simd.store(squares.as_mut_ptr().add(i), square);
                }
            }
            for (sum, square) in sums.iter_mut().zip(&squares[part]) {
                *sum += square;
            }
        },
    );
}
