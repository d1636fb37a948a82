//! From logits to the next token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

/// Logits or settings from which no token can be drawn.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A logit is NaN or +∞.
    #[error("the logit of token {token} is {value}")]
    Logit {
        /// The token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// No logit is above −∞.
    #[error("none of {0} logits is finite")]
    NoChoice(usize),
    /// A temperature that is not a positive finite number.
    #[error("temperature {0} is not a number above zero")]
    Temperature(f32),
    /// A nucleus outside (0, 1].
    #[error("top-p {0} is not above zero and at most one")]
    TopP(f32),
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strategy {
    /// The largest logit; among equals the lowest id.
    Greedy,
    /// A draw from softmax(logits / temperature), cut to the nucleus: the fewest most likely tokens
    /// that hold at least `top_p` of the probability (Holtzman et al. 2020, "The Curious Case of
    /// Neural Text Degeneration"). `top_p` = 1 cuts nothing.
    Nucleus {
        /// Above zero.
        temperature: f32,
        /// Above zero, at most one.
        top_p: f32,
    },
}

/// Draws tokens: the same seed and the same logits give the same tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    strategy: Strategy,
    random: ChaCha8Rng,
}

impl Sampler {
    /// Checks the settings and seeds the sampler.
    pub fn new(strategy: Strategy, seed: u64) -> Result<Self, SamplingError> {
        if let Strategy::Nucleus { temperature, top_p } = strategy {
            if !(temperature > 0.0 && temperature.is_finite()) {
                return Err(SamplingError::Temperature(temperature));
            }
            if !(top_p > 0.0 && top_p <= 1.0) {
                return Err(SamplingError::TopP(top_p));
            }
        }
        Ok(Self { strategy, random: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// The next token for a row of logits.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        match self.strategy {
            Strategy::Greedy => argmax(logits),
            Strategy::Nucleus { temperature, top_p } => self.draw(logits, temperature, top_p),
        }
    }

    fn draw(&mut self, logits: &[f32], temperature: f32, top_p: f32) -> Result<u32, SamplingError> {
        let best = argmax(logits)?;
        let top = f64::from(logits[best as usize]);
        let weight = |logit: f32| ((f64::from(logit) - top) / f64::from(temperature)).exp();
        let mut candidates: Vec<(u32, f64)> =
            (0..).zip(logits).map(|(token, &logit)| (token, weight(logit))).collect();
        if top_p < 1.0 {
            cut_to_nucleus(&mut candidates, f64::from(top_p));
        }
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.random::<f64>() * total;
        for &(token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return Ok(token);
            }
        }
        // Rounding can leave a crumb of `left`; the largest logit is always possible.
        Ok(best)
    }
}

/// Keeps the fewest most likely candidates that hold at least `top_p` of all weight.
fn cut_to_nucleus(candidates: &mut Vec<(u32, f64)>, top_p: f64) {
    let wanted = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    // The sort is stable, so that equal weights stay in order of ids.
    candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut held = 0.0;
    let kept = candidates.iter().position(|(_, weight)| {
        held += weight;
        held >= wanted
    });
    if let Some(last) = kept {
        candidates.truncate(last + 1);
    }
}

/// The token with the largest logit; among equals the lowest id.
pub fn argmax(logits: &[f32]) -> Result<u32, SamplingError> {
    let mut best = None;
    let mut top = f32::NEG_INFINITY;
    for (token, &value) in logits.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return Err(SamplingError::Logit { token, value });
        }
        if value > top {
            (best, top) = (Some(token), value);
        }
    }
    best.map(|token| token as u32).ok_or(SamplingError::NoChoice(logits.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nucleus(temperature: f32, top_p: f32) -> Strategy {
        Strategy::Nucleus { temperature, top_p }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut sampler = Sampler::new(Strategy::Greedy, 1).unwrap();
        assert_eq!(sampler.sample(&[0.5, 2.0, 2.0, f32::NEG_INFINITY]), Ok(1));
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| ((i * 37) % 11) as f32 / 3.0).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(nucleus(0.8, 0.9), seed).unwrap();
            (0..64).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn frequencies_follow_the_tempered_softmax() {
        let logits = [1.0, 0.0, -1.0, f32::NEG_INFINITY];
        let mut sampler = Sampler::new(nucleus(2.0, 1.0), 3).unwrap();
        let draws = 40_000;
        let mut counts = [0.0f64; 4];
        for _ in 0..draws {
            counts[sampler.sample(&logits).unwrap() as usize] += 1.0;
        }
        let weights = [0.5f64.exp(), 1.0, (-0.5f64).exp(), 0.0];
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            assert!((count / f64::from(draws) - weight / sum).abs() < 0.01);
        }
    }

    #[test]
    fn the_nucleus_leaves_the_unlikely_out() {
        // Probabilities 0.5, 0.3, 0.2: 0.8 needs two tokens, 0.81 all three.
        let logits = [0.3f32.ln(), 0.5f32.ln(), 0.2f32.ln()];
        for (top_p, possible) in [(0.4, 1), (0.79, 2), (0.81, 3), (1.0, 3)] {
            let mut sampler = Sampler::new(nucleus(1.0, top_p), 5).unwrap();
            let drawn: std::collections::HashSet<u32> =
                (0..2000).map(|_| sampler.sample(&logits).unwrap()).collect();
            assert_eq!(drawn.len(), possible, "top_p {top_p}");
            assert!(drawn.contains(&1));
        }
    }

    #[test]
    fn refuses_logits_and_settings_that_make_no_sense() {
        for strategy in [Strategy::Greedy, nucleus(1.0, 0.9)] {
            let mut sampler = Sampler::new(strategy, 0).unwrap();
            let nan = sampler.sample(&[0.0, f32::NAN]);
            assert!(matches!(nan, Err(SamplingError::Logit { token: 1, .. })));
            let infinite = sampler.sample(&[f32::INFINITY]);
            assert!(matches!(infinite, Err(SamplingError::Logit { token: 0, .. })));
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3]), Err(SamplingError::NoChoice(3)));
            assert_eq!(sampler.sample(&[]), Err(SamplingError::NoChoice(0)));
        }
        for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let refused = Sampler::new(nucleus(temperature, 0.5), 0);
            assert!(matches!(refused, Err(SamplingError::Temperature(_))));
        }
        for top_p in [0.0, -0.1, 1.5, f32::NAN] {
            assert!(matches!(Sampler::new(nucleus(1.0, top_p), 0), Err(SamplingError::TopP(_))));
        }
    }
}
