//! The formulas once more, in f64, over what the slots read as; and how results are compared.

use headwise::{
    attend::{Attention, Output, Reduce, SlotScores},
    store::PageStore,
};

use super::{Stored, scene::StoredTable};

/// What attention returns.
pub struct Results {
    /// `[tokens][query heads][head_dim]`
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
        let mut out = vec![123.0; stored.q.len()];
        let mut lse = vec![123.0; stored.q.len() / stored.shape.head_dim()];
        stored
            .with_batch(|batch| {
                let scores = Some(&mut scores);
                attention.attend(store, batch, Output { out: &mut out, lse: &mut lse, scores })
            })
            .unwrap();
        let heads = stored.shape.kv_heads();
        let at = |i: usize| scores.head(i / heads, i % heads).to_vec();
        Self { out, lse, scores: (0..stored.tables.len()).map(at).collect() }
    }

    /// Panics unless the two agree. NaN agrees with NaN alone, and an infinity with itself.
    pub fn assert_close(&self, want: &Self, stored: &Stored, tolerance: f32, what: &str) {
        let shape = stored.shape;
        let (dim, query_heads) = (shape.head_dim(), shape.query_heads());
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
            let head = row % query_heads / shape.group();
            let table = spans[row / query_heads] * shape.kv_heads() + head;
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
    let shape = stored.shape;
    let (group, dim, heads) = (shape.group(), shape.head_dim(), shape.kv_heads());
    let rows = match scores.reduce() {
        Reduce::PerQueryHead => group,
        Reduce::Group => 1,
    };
    let mut results = Results {
        out: vec![f32::NAN; stored.q.len()],
        lse: vec![f32::NAN; stored.q.len() / dim],
        scores: stored.tables.iter().map(|table| vec![0.0; rows * table.slots]).collect(),
    };
    let mut first_token = 0;
    for (span, &tokens) in stored.tokens.iter().enumerate() {
        for token in 0..tokens {
            for query_head in 0..shape.query_heads() {
                let (index, g) = (span * heads + query_head / group, query_head % group);
                let table = &stored.tables[index];
                let row = (first_token + token) * shape.query_heads() + query_head;
                let visible = (table.slots + token + 1).saturating_sub(tokens);
                let q = &stored.q[row * dim..][..dim];
                let (p, lse) = probabilities(q, &table.k[..visible * dim]);
                results.lse[row] = lse;
                let mut sums = vec![0.0; dim];
                for (p, values) in p.iter().zip(table.v.chunks_exact(dim)) {
                    sums.iter_mut().zip(values).for_each(|(sum, &v)| *sum += p * f64::from(v));
                }
                for (out, sum) in results.out[row * dim..].iter_mut().zip(sums) {
                    *out = sum as f32;
                }
                if token + scores.window() >= tokens {
                    let line = if rows == 1 { 0 } else { g * table.slots };
                    let counted = visible.saturating_sub(scores.skip_newest());
                    let held = &mut results.scores[index][line..line + counted];
                    for (score, p) in held.iter_mut().zip(&p) {
                        *score += (p * p) as f32;
                    }
                }
            }
        }
        first_token += tokens;
    }
    results
}

/// The softmax of a query's scores, and the logarithm of their exponentials' sum: what f32 cannot hold
/// of it saturates, and only of nothing it is −∞.
fn probabilities(q: &[f32], keys: &[f32]) -> (Vec<f64>, f32) {
    let scale = (q.len() as f64).sqrt();
    let mut logits = Vec::with_capacity(keys.len() / q.len());
    for key in keys.chunks_exact(q.len()) {
        let products = q.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k));
        logits.push(products.sum::<f64>() / scale);
    }
    let Some(most) = logits.iter().copied().reduce(f64::max) else {
        return (logits, f32::NEG_INFINITY);
    };
    let sum: f64 = logits.iter().map(|x| (x - most).exp()).sum();
    let p = logits.iter().map(|x| (x - most).exp() / sum).collect();
    let lse = most + sum.ln();
    let lse = match lse as f32 {
        f32::INFINITY => f32::MAX,
        f32::NEG_INFINITY => f32::MIN,
        lse => lse,
    };
    (p, lse)
}
