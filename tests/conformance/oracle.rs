//! The formulas once more, in f64, over what the slots read as; and how results are compared.

use headwise::{
    attend::{Attention, Output, Reduce, SlotScores},
    base::LayerShape,
    store::PageStore,
};

use super::{Stored, scene::StoredTable};

/// What attention returns.
pub struct Results {
    /// `[tokens][query heads][v_dim]`
    pub out: Vec<f32>,
    /// `[tokens][query heads]`
    pub lse: Vec<f32>,
    /// `[span][KV head]`
    pub scores: Vec<Vec<f32>>,
}

impl Results {
    /// Runs an implementation of the contract; the output buffers start as garbage.
    pub fn of<S: PageStore>(
        attention: &impl Attention<S>,
        store: &S,
        stored: &Stored,
        mut scores: SlotScores,
    ) -> Self {
        let tokens: usize = stored.tokens.iter().sum();
        let mut out = vec![123.0; tokens * stored.layer.out_row()];
        let mut lse = vec![123.0; tokens * stored.layer.query_heads()];
        stored
            .with_batch(|batch| {
                let scores = Some(&mut scores);
                attention.attend(store, batch, Output { out: &mut out, lse: &mut lse, scores })
            })
            .unwrap();
        let heads = stored.layer.kv_heads();
        let at = |i: usize| scores.head(i / heads, i % heads).to_vec();
        Self { out, lse, scores: (0..stored.tables.len()).map(at).collect() }
    }

    /// Panics unless the two agree. NaN agrees with NaN alone, and an infinity with itself.
    pub fn assert_close(&self, want: &Self, stored: &Stored, tolerance: f32, what: &str) {
        let layer = &stored.layer;
        let (dim, query_heads) = (layer.v_dim(), layer.query_heads());
        let near = |name: &str, at: usize, got: f32, want: f32, tolerance: f32| {
            let same = got == want || got.is_nan() && want.is_nan();
            let close = got.is_finite() && want.is_finite() && (got - want).abs() <= tolerance;
            assert!(same || close, "{what}: {name}[{at}] is {got:e}, expected {want:e}");
        };
        let spans = stored.tokens.iter().enumerate();
        let spans: Vec<usize> = spans.flat_map(|(span, &n)| std::iter::repeat_n(span, n)).collect();
        let largest: Vec<f32> = stored.tables.iter().map(StoredTable::largest_value).collect();
        assert_eq!((self.out.len(), self.lse.len()), (want.out.len(), want.lse.len()), "{what}");
        for (at, (&got, &want)) in self.out.iter().zip(&want.out).enumerate() {
            let row = at / dim;
            let head = row % query_heads / layer.group();
            let table = spans[row / query_heads] * layer.kv_heads() + head;
            near("out", at, got, want, tolerance * largest[table]);
        }
        for (at, (&got, &want)) in self.lse.iter().zip(&want.lse).enumerate() {
            near("lse", at, got, want, tolerance * want.abs().max(1.0));
        }
        assert_eq!(self.scores.len(), want.scores.len(), "{what}");
        // Probabilities are replayed from a log-sum-exp in f32, up to a limit.
        let lse = want.lse.iter().map(|lse| lse.abs()).filter(|&lse| lse < 65_536.0);
        let tolerance = 4.0 * tolerance + lse.fold(0.0, f32::max) * 2f32.powi(-22);
        for (head, (got, want)) in self.scores.iter().zip(&want.scores).enumerate() {
            assert_eq!(got.len(), want.len(), "{what}: scores of head {head}");
            for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
                let tolerance = tolerance * want.max(1.0);
                near(&format!("scores of head {head}"), at, got, want, tolerance);
            }
        }
    }
}

impl StoredTable {
    /// The largest finite magnitude: what errors of a mean of values are in proportion to.
    fn largest_value(&self) -> f32 {
        let finite = self.v.iter().filter(|v| v.is_finite());
        finite.fold(1e-30, |largest, v| largest.max(v.abs()))
    }
}

/// What a backend should give.
pub fn oracle(stored: &Stored, scores: &SlotScores) -> Results {
    let layer = &stored.layer;
    let (group, heads) = (layer.group(), layer.kv_heads());
    let (k_dim, v_dim) = (layer.k_dim(), layer.v_dim());
    let rows = match scores.reduce() {
        Reduce::PerQueryHead => group,
        Reduce::Group => 1,
    };
    let mut results = Results {
        out: vec![f32::NAN; stored.q.len() / k_dim * v_dim],
        lse: vec![f32::NAN; stored.q.len() / k_dim],
        scores: stored.tables.iter().map(|table| vec![0.0; rows * table.slots]).collect(),
    };
    let mut first_token = 0;
    for (span, &tokens) in stored.tokens.iter().enumerate() {
        for token in 0..tokens {
            for query_head in 0..layer.query_heads() {
                let (index, g) = (span * heads + query_head / group, query_head % group);
                let table = &stored.tables[index];
                let row = (first_token + token) * layer.query_heads() + query_head;
                // The query is of the token that its last slot holds, or held.
                let end = (table.slots + token + 1).saturating_sub(tokens);
                let seen: Vec<usize> =
                    (0..end).filter(|&slot| table.sees(layer, end, slot)).collect();
                let q = &stored.q[row * k_dim..][..k_dim];
                let keys = seen.iter().map(|slot| &table.k[slot * k_dim..][..k_dim]);
                let (p, lse) = probabilities(layer, query_head, q, keys);
                results.lse[row] = lse;
                let mut sums = vec![0.0; v_dim];
                for (p, slot) in p.iter().zip(&seen) {
                    let values = &table.v[slot * v_dim..][..v_dim];
                    sums.iter_mut().zip(values).for_each(|(sum, &v)| *sum += p * f64::from(v));
                }
                for (out, sum) in results.out[row * v_dim..].iter_mut().zip(sums) {
                    *out = sum as f32;
                }
                if token + scores.window() >= tokens {
                    let line = if rows == 1 { 0 } else { g * table.slots };
                    for (&slot, p) in seen.iter().zip(&p) {
                        if slot + scores.skip_newest() < end {
                            results.scores[index][line + slot] += (p * p) as f32;
                        }
                    }
                }
            }
        }
        first_token += tokens;
    }
    results
}

impl StoredTable {
    /// Whether a query whose own slot is the last of the first `end` sees `slot`, by what the layer says of
    /// positions.
    fn sees(&self, layer: &LayerShape, end: usize, slot: usize) -> bool {
        let Some(window) = layer.window() else { return true };
        let (query, position) = (self.positions[end - 1], self.positions[slot]);
        query - position < window.tokens || position < window.sinks
    }
}

/// The softmax of a query's scores, and the logarithm of their exponentials' sum: what f32 cannot hold
/// of it saturates, and only of nothing it is −∞.
fn probabilities<'a>(
    layer: &LayerShape,
    query_head: usize,
    q: &[f32],
    keys: impl Iterator<Item = &'a [f32]>,
) -> (Vec<f64>, f32) {
    let mut logits = Vec::new();
    for key in keys {
        let products = q.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k));
        let logit = products.sum::<f64>() * f64::from(layer.scale());
        logits.push(match layer.softcap().map(f64::from) {
            Some(cap) => cap * (logit / cap).tanh(),
            None => logit,
        });
    }
    let sink = layer.sink_logits().map(|logits| f64::from(logits[query_head]));
    let Some(most) = logits.iter().copied().chain(sink).reduce(f64::max) else {
        return (logits, f32::NEG_INFINITY);
    };
    let sum: f64 = logits.iter().copied().chain(sink).map(|x| (x - most).exp()).sum();
    let p = logits.iter().map(|x| (x - most).exp() / sum).collect();
    let lse = most + sum.ln();
    let lse = match lse as f32 {
        f32::INFINITY => f32::MAX,
        f32::NEG_INFINITY => f32::MIN,
        lse => lse,
    };
    (p, lse)
}
