//! Root-mean-square layer normalisation (Zhang and Sennrich 2019).

use rayon::prelude::*;

use super::simd::sum_of_squares;

/// Tokens that one rayon job normalises.
const JOB_TOKENS: usize = 32;

/// `out = x / √(mean(x²) + ε) · weight`, token by token.
#[derive(Debug)]
pub(super) struct RmsNorm {
    weight: Vec<f32>,
    epsilon: f32,
}

impl RmsNorm {
    pub fn new(weight: Vec<f32>, epsilon: f32) -> Self {
        Self { weight, epsilon }
    }

    /// `x` and `out` are \[tokens\]\[channels\].
    pub fn apply(&self, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        let channels = self.weight.len();
        x.par_chunks(JOB_TOKENS * channels)
            .zip(out.par_chunks_mut(JOB_TOKENS * channels))
            .for_each(|(x, out)| {
                for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
                    self.token(x, out);
                }
            });
    }

    /// Normalises heads in place, each by itself, without other threads.
    pub fn heads(&self, x: &mut [f32]) {
        for head in x.chunks_exact_mut(self.weight.len()) {
            let scale = self.scale(head);
            for (x, &weight) in head.iter_mut().zip(&self.weight) {
                *x = *x * scale * weight;
            }
        }
    }

    fn scale(&self, x: &[f32]) -> f32 {
        let mean = sum_of_squares(x) / x.len() as f32;
        1.0 / (mean + self.epsilon).sqrt()
    }

    fn token(&self, x: &[f32], out: &mut [f32]) {
        let scale = self.scale(x);
        for ((out, &x), &weight) in out.iter_mut().zip(x).zip(&self.weight) {
            *out = x * scale * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_formula_in_f64() {
        let norm = RmsNorm::new(vec![0.5, 1.0, 2.0], 1e-5);
        let x = [1.0, -2.0, 3.0, 0.0, 0.0, 0.0];
        let mut out = [f32::NAN; 6];
        norm.apply(&x, &mut out);
        let scale = 1.0 / (14.0f64 / 3.0 + 1e-5).sqrt();
        for (got, exact) in out.iter().zip([0.5 * scale, -2.0 * scale, 6.0 * scale, 0.0, 0.0, 0.0])
        {
            assert!((f64::from(*got) - exact).abs() < 1e-6);
        }
        let mut heads = x;
        norm.heads(&mut heads);
        assert_eq!(heads, out);
    }
}
