//! Rows that fast arithmetic leaves in doubt, settled in f64.
//!
//! f32 holds attention for the logits that models have. Elsewhere a backend need not be right, only
//! honest: it marks every row that *may* have left its range with a log-sum-exp of NaN. These rows are
//! then computed as the reference does. The mark costs next to nothing, because an overflow leaves an
//! infinity or a NaN behind and those survive sums and products.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    batch::{Batch, Head},
    row::Row,
    scores::{Reduce, SlotScores},
    visible::Visible,
};
use crate::store::{PageStore, StoreError, TablePages};

/// The largest logit, in base 2, that f32 can tell from others: from here on neighbours are 2 apart, and
/// rounding alone decides between keys. Backends leave rows with such logits in doubt.
pub(crate) const MOST_LOGIT: f32 = 16_777_216.0;

/// The largest log-sum-exp that probabilities are replayed from in f32: its last bit is a hundredth of them.
pub(crate) const MOST_REPLAYED: f32 = 65_536.0;

/// Slots that are read at a time.
const TILE: usize = 256;

/// The rows in doubt.
pub(crate) struct Doubts {
    /// Ascending.
    rows: Vec<usize>,
}

impl Doubts {
    /// The rows whose log-sum-exp a backend left as NaN.
    pub fn of(lse: &[f32]) -> Self {
        let rows = lse.iter().enumerate().filter(|(_, lse)| lse.is_nan()).map(|(row, _)| row);
        Self { rows: rows.collect() }
    }

    /// Marks the rows of results from elsewhere: not finite somewhere, or of logits too large to be told
    /// apart. What saw nothing is not in doubt.
    #[cfg(feature = "cuda")]
    pub fn mark(out: &[f32], lse: &mut [f32]) {
        let dim = out.len() / lse.len().max(1);
        for (row, lse) in lse.iter_mut().enumerate() {
            let values = &out[row * dim..(row + 1) * dim];
            let finite = values.iter().all(|value| value.is_finite());
            let unseen = *lse == f32::NEG_INFINITY && finite;
            if !(unseen || finite && lse.abs() < MOST_LOGIT) {
                *lse = f32::NAN;
            }
        }
    }

    /// Computes these rows, `out` and `lse`, as the reference does.
    pub fn settle<S: PageStore + Sync>(
        &self,
        store: &S,
        batch: &Batch<'_>,
        out: &mut [f32],
        lse: &mut [f32],
    ) -> Result<(), StoreError> {
        let dim = batch.layer.v_dim();
        let settled: Vec<(Vec<f32>, f32)> = (self.rows.par_iter())
            .map_init(Tiles::default, |tiles, &row| tiles.attend(store, batch, row))
            .collect::<Result<_, _>>()?;
        for (&row, (values, sum)) in self.rows.iter().zip(settled) {
            out[row * dim..][..dim].copy_from_slice(&values);
            lse[row] = sum;
        }
        Ok(())
    }

    /// For each (span, KV head), whether its scores cannot be replayed from `lse`, which is settled: a
    /// row of its window was in doubt, or its log-sum-exp is `most` or more, where the backend's rounding
    /// is no longer small.
    pub fn unsure_heads(
        &self,
        batch: &Batch<'_>,
        lse: &[f32],
        scores: &SlotScores,
        most: f32,
    ) -> Vec<bool> {
        let (group, query_heads) = (batch.layer.group(), batch.layer.query_heads());
        let unsure = |row: usize| {
            let large = lse[row].abs() >= most && lse[row] != f32::NEG_INFINITY;
            large || self.rows.binary_search(&row).is_ok()
        };
        let mut heads = Vec::with_capacity(batch.spans.len() * batch.layer.kv_heads());
        let mut first_token = 0;
        for span in batch.spans {
            let window = scores.tokens(span);
            heads.extend((0..span.heads.len()).map(|head| {
                window.clone().any(|token| {
                    let first = (first_token + token) * query_heads + head * group;
                    (first..first + group).any(unsure)
                })
            }));
            first_token += span.tokens;
        }
        heads
    }
}

/// Computes the scores of the heads that `unsure` names, `[span][KV head]`, as the reference does.
pub(crate) fn rescore<S: PageStore>(
    store: &S,
    batch: &Batch<'_>,
    unsure: &[bool],
    scores: &mut SlotScores,
) -> Result<(), StoreError> {
    if !unsure.contains(&true) {
        return Ok(());
    }
    let (group, kv_heads) = (batch.layer.group(), batch.layer.kv_heads());
    let (reduce, skip) = (scores.reduce(), scores.skip_newest());
    let windows: Vec<_> = batch.spans.iter().map(|span| scores.tokens(span)).collect();
    let mut tiles = Tiles::default();
    let mut first_row = 0;
    for (index, sums) in scores.heads_mut().into_iter().enumerate() {
        let (s, h) = (index / kv_heads, index % kv_heads);
        let span = &batch.spans[s];
        if unsure[index] {
            sums.fill(0.0);
            for token in windows[s].clone() {
                let visible = batch.visible(span, h, token);
                for g in 0..group {
                    let query_head = h * group + g;
                    let row = first_row + token * batch.layer.query_heads() + query_head;
                    tiles.probabilities(store, batch, &span.heads[h], &visible, row)?;
                    let line = match reduce {
                        Reduce::PerQueryHead => g * span.heads[h].slots,
                        Reduce::Group => 0,
                    };
                    let mut seen = 0;
                    for (part, counted) in visible.parts().into_iter().zip(visible.skipping(skip)) {
                        tiles.row.add_squares(seen, &mut sums[line..][counted]);
                        seen += part.len();
                    }
                }
            }
        }
        if h + 1 == kv_heads {
            first_row += span.tokens * batch.layer.query_heads();
        }
    }
    Ok(())
}

fn query<'a>(batch: &Batch<'a>, row: usize) -> &'a [f32] {
    let dim = batch.layer.k_dim();
    &batch.q[row * dim..][..dim]
}

/// Buffers for one row, and for the slots that it is shown.
#[derive(Default)]
struct Tiles {
    row: Row,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Tiles {
    /// Output and log-sum-exp of a row of the batch.
    fn attend<S: PageStore>(
        &mut self,
        store: &S,
        batch: &Batch<'_>,
        row: usize,
    ) -> Result<(Vec<f32>, f32), StoreError> {
        let layer = batch.layer;
        let (mut token, h) = (row / layer.query_heads(), row % layer.query_heads() / layer.group());
        let mut spans = batch.spans.iter();
        let span = loop {
            match spans.next() {
                Some(span) if token < span.tokens => break span,
                Some(span) => token -= span.tokens,
                None => unreachable!("row {row} of a batch that has fewer"),
            }
        };
        let (head, visible) = (&span.heads[h], batch.visible(span, h, token));
        let (k_dim, v_dim) = (layer.k_dim(), layer.v_dim());
        let mut out = vec![f32::NAN; v_dim];
        // Nothing survives a query that is NaN, and a broken model's are: slots need not be read.
        if !visible.is_empty() && query(batch, row).iter().any(|q| q.is_nan()) {
            return Ok((out, f32::NAN));
        }
        let lse = self.probabilities(store, batch, head, &visible, row)?;
        // The same for a logit that is: all probabilities are NaN then.
        if !lse.is_nan() {
            let table = TablePages { pages: head.pages, layout: head.layout };
            self.v.resize(TILE * v_dim, 0.0);
            let mut seen = 0;
            for tile in tiles(&visible) {
                let (k, v) = (&mut self.k[..tile.len() * k_dim], &mut self.v[..tile.len() * v_dim]);
                store.read(table, tile.start, k, v)?;
                self.row.add(seen, v);
                seen += tile.len();
            }
            self.row.write(&mut out);
        }
        Ok((out, lse))
    }

    /// Leaves the probabilities of the slots that query row `row` of the batch sees in the row; returns
    /// the log-sum-exp.
    fn probabilities<S: PageStore>(
        &mut self,
        store: &S,
        batch: &Batch<'_>,
        head: &Head<'_>,
        visible: &Visible,
        row: usize,
    ) -> Result<f32, StoreError> {
        let (layer, q) = (batch.layer, query(batch, row));
        let table = TablePages { pages: head.pages, layout: head.layout };
        self.row.clear(layer.v_dim());
        self.k.resize(TILE * q.len(), 0.0);
        for tile in tiles(visible) {
            let keys = &mut self.k[..tile.len() * q.len()];
            store.read_keys(table, tile.start, keys)?;
            self.row.score(layer, q, keys);
        }
        Ok(self.row.soften(layer.sink_logits().map(|logits| logits[row % layer.query_heads()])))
    }
}

/// The slots that are seen, as many at a time as are read.
fn tiles(visible: &Visible) -> impl Iterator<Item = Range<usize>> {
    visible.parts().into_iter().flat_map(|part| {
        part.clone().step_by(TILE).map(move |first| first..part.end.min(first + TILE))
    })
}
