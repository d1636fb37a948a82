//! Attention of one query row as it is written down, in f64.
//!
//! What [`Reference`](super::Reference) computes, and what faster backends fall back to for rows that
//! their arithmetic cannot hold ([`settle`](super::settle)). No sum of products of f32 leaves f64's
//! range, so finite inputs give finite results; NaN and infinities go through the formulas as they are.

use crate::base::LayerShape;

/// Buffers for one row at a time. Keys come in any number of calls, then [`soften`](Self::soften), then
/// values.
#[derive(Default)]
pub(super) struct Row {
    /// Scaled logits of the slots so far; probabilities once they are softened.
    p: Vec<f64>,
    out: Vec<f64>,
}

impl Row {
    /// Starts a row that has seen nothing.
    pub fn clear(&mut self, v_dim: usize) {
        self.p.clear();
        self.out.clear();
        self.out.resize(v_dim, 0.0);
    }

    /// The next slots' keys, `[slots][k_dim]`.
    pub fn score(&mut self, layer: &LayerShape, q: &[f32], keys: &[f32]) {
        let scale = f64::from(layer.scale());
        let logits = keys.chunks_exact(q.len()).map(|key| scale * dot(q, key));
        match layer.softcap().map(f64::from) {
            Some(cap) => self.p.extend(logits.map(|logit| cap * (logit / cap).tanh())),
            None => self.p.extend(logits),
        }
    }

    /// Makes probabilities of the logits; returns the natural logarithm of the sum of their
    /// exponentials and of that of `sink`, a logit without a value, held to f32's finite range. −∞ is
    /// kept for rows that saw nothing.
    pub fn soften(&mut self, sink: Option<f32>) -> f32 {
        let sink = sink.map_or(f64::NEG_INFINITY, f64::from);
        if self.p.is_empty() && sink == f64::NEG_INFINITY {
            return f32::NEG_INFINITY;
        }
        let max = self.p.iter().copied().fold(sink, f64::max);
        self.p.iter_mut().for_each(|p| *p = (*p - max).exp());
        let sum = self.p.iter().sum::<f64>() + (sink - max).exp();
        self.p.iter_mut().for_each(|p| *p /= sum);
        let most = f64::from(f32::MAX);
        (max + sum.ln()).clamp(-most, most) as f32
    }

    /// Adds the values of the slots from `first` on, `[slots][head_dim]`, weighted.
    pub fn add(&mut self, first: usize, values: &[f32]) {
        let slots = values.chunks_exact(self.out.len());
        for (p, values) in self.p[first..].iter().zip(slots) {
            for (out, value) in self.out.iter_mut().zip(values) {
                *out += p * f64::from(*value);
            }
        }
    }

    /// Adds the squared probabilities of the slots from the `first` that came on to their sums; there may
    /// be fewer sums than slots.
    pub fn add_squares(&self, first: usize, sums: &mut [f32]) {
        for (sum, p) in sums.iter_mut().zip(&self.p[first..]) {
            *sum += (p * p) as f32;
        }
    }

    /// The output. A mean of f32 values, so rounding brings it back into their range.
    pub fn write(&self, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(&self.out) {
            *out = *value as f32;
        }
    }
}

/// In eight sums, since one would wait for itself at every step. `head_dim` is a multiple of eight.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum()
}
