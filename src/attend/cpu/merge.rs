//! States of the pieces of a head become one result.

use std::f32::consts::{LN_2, LOG2_E};

use rayon::prelude::*;

use super::{
    plan::Plan,
    stream::{NO_SCORE, State},
};
use crate::{
    attend::{batch::Batch, settle::MOST_LOGIT},
    base::simd::Simd,
};

/// Tokens that one thread merges at least: merging a token reads a few kilobytes.
const MIN_TOKENS: usize = 16;

/// Merges the states that the items of `plan` left in `states`, divides, and writes the results. Rows
/// that f32 did not hold get a log-sum-exp of NaN, and their output is to be computed otherwise.
///
/// With maxima `m_i`, sums `l_i` and values `o_i` of the pieces and `m` the largest `m_i`:
/// `out = Σ 2^(m_i − m) o_i / Σ 2^(m_i − m) l_i`, and the log-sum-exp is `ln 2 · (m + log2 Σ …)`.
pub(super) fn merge<S: Simd>(
    simd: S,
    batch: &Batch<'_>,
    plan: &Plan,
    states: &mut [f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let layer = batch.layer;
    let (group, dim, heads) = (layer.group(), layer.v_dim(), layer.query_heads());
    let row_len = State::row_len(dim);
    let mut offsets = Vec::with_capacity(plan.blocks.len());
    let mut end = 0;
    for block in &plan.blocks {
        offsets.push(end);
        end += row_len * group * block.tokens.len() * block.pieces;
    }
    let states = &*states;
    let tokens = out.par_chunks_exact_mut(heads * dim).zip(lse.par_chunks_exact_mut(heads));
    tokens.with_min_len(MIN_TOKENS).enumerate().for_each(|(token, (out, lse))| {
        let (span, token) = plan.locate(token);
        let rows = out.chunks_exact_mut(dim).zip(lse);
        for (query_head, (out, lse)) in rows.enumerate() {
            let index = plan.block(span, query_head / group, token);
            let block = &plan.blocks[index];
            let rows = group * block.tokens.len();
            let row = (token - block.tokens.start) * group + query_head % group;
            let pieces = states[offsets[index]..][..row_len * rows * block.pieces]
                .chunks_exact(row_len * rows)
                .map(|piece| {
                    (piece[row], piece[rows + row], &piece[2 * rows + row * dim..][..dim])
                });
            // A piece of one slot without a value.
            let sink =
                layer.sink_logits().map(|logits| (LOG2_E * logits[query_head], 1.0, &[][..]));
            *lse = merge_row(simd, pieces.chain(sink), out);
        }
    });
}

/// Merges `(max, sum, values)` of the pieces into `out`; returns the natural log-sum-exp, or NaN if a
/// piece is in doubt or the values overflowed.
fn merge_row<'a, S: Simd>(
    simd: S,
    pieces: impl Iterator<Item = (f32, f32, &'a [f32])> + Clone,
    out: &mut [f32],
) -> f32 {
    out.fill(0.0);
    let max = pieces.clone().fold(NO_SCORE, |max, (m, _, _)| max.max(m));
    let sum: f32 = pieces.clone().map(|(m, sum, _)| (m - max).exp2() * sum).sum();
    if sum == 0.0 {
        return f32::NEG_INFINITY;
    }
    // Pieces say themselves if a logit of theirs is too large; a sink's may be as well.
    if max >= MOST_LOGIT {
        return f32::NAN;
    }
    simd.vectorize(
        #[inline(always)]
        || {
            for (m, _, values) in pieces {
                let weight = (m - max).exp2() / sum;
                for (out, value) in out.iter_mut().zip(values) {
                    *out += weight * value;
                }
            }
        },
    );
    if finite(simd, out) { LN_2 * (max + sum.log2()) } else { f32::NAN }
}

/// Whether all values are finite, which are whole vectors.
fn finite<S: Simd>(simd: S, values: &[f32]) -> bool {
    assert!(values.len().is_multiple_of(S::LANES));
    let nothing = simd.vectorize(
        #[inline(always)]
        || {
            let zero = simd.splat(0.0);
            let mut nothing = zero;
            for i in (0..values.len()).step_by(S::LANES) {
                // SAFETY: whole vectors, checked above. 0 · ∞ is NaN.
                nothing = unsafe { simd.mul_add(simd.load(values.as_ptr().add(i)), zero, nothing) };
            }
            simd.reduce_add(nothing)
        },
    );
    nothing == 0.0
}
