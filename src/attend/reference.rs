//! Attention as it is written down: f64, plain loops, no trick. The oracle of every other backend.

use super::{
    Attention,
    batch::{Batch, Output},
    error::AttendError,
    row::Row,
    scores::Reduce,
};
use crate::store::{PageStore, TablePages};

/// The reference. Works on every store, because it reads slots through [`PageStore::read`].
///
/// Scaled dot-product attention as in Vaswani et al., "Attention Is All You Need", §3.2.1
/// (arXiv 1706.03762), with query groups as in Ainslie et al., "GQA" (arXiv 2305.13245).
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl<S: PageStore> Attention<S> for Reference {
    fn attend(
        &self,
        store: &S,
        batch: &Batch<'_>,
        mut output: Output<'_>,
    ) -> Result<(), AttendError> {
        batch.check(store, &output)?;
        let shape = batch.shape;
        let (group, dim) = (shape.group(), shape.head_dim());
        let mut scores = output.scores.take();
        if let Some(scores) = &mut scores {
            scores.reset(batch);
        }
        let reduce = scores.as_ref().map(|s| s.reduce());
        let skip = scores.as_ref().map_or(0, |s| s.skip_newest());
        let windows: Vec<_> =
            batch.spans.iter().map(|s| scores.as_ref().map(|scores| scores.tokens(s))).collect();
        let mut scored = scores.map(|s| s.heads_mut()).unwrap_or_default();

        let mut state = Row::default();
        let mut first_token = 0;
        for (s, span) in batch.spans.iter().enumerate() {
            for (h, head) in span.heads.iter().enumerate() {
                let mut k = vec![0.0; head.slots * dim];
                let mut v = k.clone();
                let table = TablePages { pages: head.pages, layout: head.layout };
                store.read(table, 0, &mut k, &mut v)?;
                for token in 0..span.tokens {
                    let visible = span.visible(h, token);
                    for g in 0..group {
                        let row = (first_token + token) * shape.query_heads() + h * group + g;
                        state.clear(dim);
                        state.score(&batch.q[row * dim..][..dim], &k[..visible * dim]);
                        output.lse[row] = state.soften();
                        state.add(0, &v[..visible * dim]);
                        state.write(&mut output.out[row * dim..][..dim]);
                        if windows[s].as_ref().is_some_and(|window| window.contains(&token)) {
                            let offset = match reduce {
                                Some(Reduce::PerQueryHead) => g * head.slots,
                                _ => 0,
                            };
                            let sums = &mut scored[s * shape.kv_heads() + h][offset..];
                            state.add_squares(&mut sums[..visible.saturating_sub(skip)]);
                        }
                    }
                }
            }
            first_token += span.tokens;
        }
        Ok(())
    }
}
