//! Attention as it is written down: f64, plain loops, no trick. The oracle of every other backend.

use super::{AttendError, Attention, Batch, Output, Reduce};
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
        let scale = 1.0 / (dim as f64).sqrt();
        let mut scores = output.scores.take();
        if let Some(scores) = &mut scores {
            scores.reset(batch);
        }
        let reduce = scores.as_ref().map(|s| s.reduce());
        let skip = scores.as_ref().map_or(0, |s| s.skip_newest());
        let windows: Vec<_> =
            batch.spans.iter().map(|s| scores.as_ref().map(|scores| scores.tokens(s))).collect();
        let mut scored = scores.map(|s| s.heads_mut()).unwrap_or_default();

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
                        let q = &batch.q[row * dim..(row + 1) * dim];
                        let keys = k.chunks_exact(dim).take(visible);
                        let logits: Vec<f64> = keys.map(|k| scale * dot(q, k)).collect();
                        let (p, lse) = softmax(&logits);
                        output.lse[row] = lse as f32;
                        for (c, out) in
                            output.out[row * dim..(row + 1) * dim].iter_mut().enumerate()
                        {
                            let values = v.iter().skip(c).step_by(dim).map(|&v| f64::from(v));
                            *out = p.iter().zip(values).map(|(p, v)| p * v).sum::<f64>() as f32;
                        }
                        if windows[s].as_ref().is_some_and(|window| window.contains(&token)) {
                            let offset = match reduce {
                                Some(Reduce::PerQueryHead) => g * head.slots,
                                _ => 0,
                            };
                            let sums = &mut scored[s * shape.kv_heads() + h][offset..];
                            let counted = visible.saturating_sub(skip);
                            for (sum, p) in sums.iter_mut().zip(&p[..counted]) {
                                *sum += (p * p) as f32;
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

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Probabilities and the logarithm of the sum of exponentials. Nothing: no probabilities, −∞.
fn softmax(logits: &[f64]) -> (Vec<f64>, f64) {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    (exp.iter().map(|e| e / sum).collect(), max + sum.ln())
}
