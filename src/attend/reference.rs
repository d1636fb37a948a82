//! Attention as it is written down: f64, plain loops, no trick. The oracle of every other backend.

use super::{
    Attention, batch::Batch, error::AttendError, output::Output, row::Row, scores::Reduce,
};
use crate::store::{PageStore, TablePages};

/// The reference. Works on every store, because it reads slots through [`PageStore::read`].
///
/// Scaled dot-product attention as in Vaswani et al., "Attention Is All You Need", §3.2.1
/// (arXiv 1706.03762), with query groups as in Ainslie et al., "GQA" (arXiv 2305.13245), and what the
/// layer adds to it.
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
        let layer = batch.layer;
        let (group, k_dim, v_dim) = (layer.group(), layer.k_dim(), layer.v_dim());
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
                let mut k = vec![0.0; head.slots * k_dim];
                let mut v = vec![0.0; head.slots * v_dim];
                let table = TablePages { pages: head.pages, layout: head.layout };
                store.read(table, 0, &mut k, &mut v)?;
                for token in 0..span.tokens {
                    let visible = batch.visible(span, h, token);
                    for g in 0..group {
                        let query_head = h * group + g;
                        let row = (first_token + token) * layer.query_heads() + query_head;
                        state.clear(v_dim);
                        for part in visible.parts() {
                            let keys = &k[part.start * k_dim..part.end * k_dim];
                            state.score(layer, &batch.q[row * k_dim..][..k_dim], keys);
                        }
                        let sink = layer.sink_logits().map(|logits| logits[query_head]);
                        output.lse[row] = state.soften(sink);
                        let mut seen = 0;
                        for part in visible.parts() {
                            state.add(seen, &v[part.start * v_dim..part.end * v_dim]);
                            seen += part.len();
                        }
                        state.write(&mut output.out[row * v_dim..][..v_dim]);
                        if windows[s].as_ref().is_some_and(|window| window.contains(&token)) {
                            let offset = match reduce {
                                Some(Reduce::PerQueryHead) => g * head.slots,
                                _ => 0,
                            };
                            let sums = &mut scored[s * layer.kv_heads() + h][offset..];
                            let mut seen = 0;
                            for (part, counted) in
                                visible.parts().into_iter().zip(visible.skipping(skip))
                            {
                                state.add_squares(seen, &mut sums[counted]);
                                seen += part.len();
                            }
                        }
                    }
                }
            }
            first_token += span.tokens;
        }
        Ok(())
    }
}
