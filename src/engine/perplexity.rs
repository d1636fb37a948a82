//! How well logits predict text.

use thiserror::Error;

/// Logits that predict nothing.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum PerplexityError {
    /// The token that came next is not among the logits.
    #[error("token id {token} has no logit among {vocab}")]
    TokenId {
        /// The token.
        token: u32,
        /// Logits in the row.
        vocab: usize,
    },
    /// A NaN, or no finite logit at all.
    #[error("the logits have no log-softmax: their largest is {0}")]
    Logits(f32),
}

/// log softmax of `logits` in f64, as an offset: `logits[i] - offset` is the log-probability of
/// token i. NaN when a logit is NaN or the largest is infinite.
fn offset(logits: &[f32]) -> f64 {
    let top = logits.iter().fold(f32::NEG_INFINITY, |top, &x| if x > top { x } else { top });
    let top = f64::from(top);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - top).exp()).sum();
    top + sum.ln()
}

fn checked_offset(logits: &[f32]) -> Result<f64, PerplexityError> {
    let offset = offset(logits);
    if offset.is_finite() { Ok(offset) } else { Err(PerplexityError::Logits(offset as f32)) }
}

/// Natural-log probabilities of every token, in f64.
pub fn log_softmax(logits: &[f32]) -> Result<Vec<f64>, PerplexityError> {
    let offset = checked_offset(logits)?;
    Ok(logits.iter().map(|&x| f64::from(x) - offset).collect())
}

/// Negative natural-log likelihood of `token` under a row of logits.
pub fn nll(logits: &[f32], token: u32) -> Result<f64, PerplexityError> {
    let unknown = PerplexityError::TokenId { token, vocab: logits.len() };
    let logit = *logits.get(token as usize).ok_or(unknown)?;
    Ok(checked_offset(logits)? - f64::from(logit))
}

/// A running mean of negative log-likelihoods.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NllSum {
    total: f64,
    tokens: usize,
}

impl NllSum {
    /// Adds the likelihood of one predicted token.
    pub fn add(&mut self, logits: &[f32], token: u32) -> Result<(), PerplexityError> {
        self.total += nll(logits, token)?;
        self.tokens += 1;
        Ok(())
    }

    /// Tokens predicted.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Mean negative log-likelihood in nats, or `None` when nothing was predicted.
    pub fn mean(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.total / self.tokens as f64)
    }

    /// e to the mean negative log-likelihood, or `None` when nothing was predicted.
    pub fn perplexity(&self) -> Option<f64> {
        self.mean().map(f64::exp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_have_the_vocabulary_as_perplexity() {
        let mut sum = NllSum::default();
        assert_eq!(sum.perplexity(), None);
        for token in 0..8 {
            sum.add(&[300.0; 8], token).unwrap();
        }
        assert!((sum.perplexity().unwrap() - 8.0).abs() < 1e-12);
        assert_eq!(sum.tokens(), 8);
    }

    #[test]
    fn log_probabilities_sum_to_one_for_large_logits() {
        let logs = log_softmax(&[1000.0, 999.0, -1000.0, f32::NEG_INFINITY]).unwrap();
        let sum: f64 = logs.iter().map(|log| log.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert!((logs[0] - logs[1] - 1.0).abs() < 1e-12);
        assert_eq!(logs[3], f64::NEG_INFINITY);
    }

    #[test]
    fn refuses_rows_without_a_softmax() {
        for row in
            [vec![1.0, f32::NAN], vec![f32::NEG_INFINITY; 2], vec![f32::INFINITY, 0.0], vec![]]
        {
            assert!(matches!(log_softmax(&row), Err(PerplexityError::Logits(_))), "{row:?}");
        }
        assert_eq!(nll(&[0.0; 4], 4), Err(PerplexityError::TokenId { token: 4, vocab: 4 }));
    }
}
