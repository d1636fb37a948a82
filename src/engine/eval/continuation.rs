//! The continuation protocol: what a compressed context still predicts.
//!
//! A window is a context and the tokens that follow it. The context is prefilled once; each way of
//! compressing it works on a fork, which then reads the following tokens one after another. All of
//! their predictions are compared with those of the full cache.

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    cache::{CacheConfig, Capacity, Compressed, Compression, KvCache, KvSequence},
    engine::{
        error::EngineError,
        kv::{LogitRows, Logits},
        likelihood::{PerplexityError, log_softmax},
        model::Model,
        prefill,
        runner::Runner,
    },
    evict::Scorer,
};

/// A prefilled context and what the full cache predicts after it.
pub struct Continuation<'m, R: Runner = Model> {
    model: &'m R,
    cache: KvCache<R::Memory>,
    context: KvSequence,
    following: Vec<u32>,
    chunk: usize,
    /// Log-probabilities of the full cache, one row per following token.
    expected: Vec<Vec<f64>>,
    full: Quality,
}

/// How well one cache predicts the tokens after a context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quality {
    /// Mean negative log-likelihood of the true tokens, in nats.
    pub nll: f64,
    /// Mean KL(full ‖ this), in nats.
    pub kl: f64,
    /// Share of positions where the most likely token is that of the full cache.
    pub top1: f64,
    /// Predictions.
    pub tokens: usize,
    /// Pages held by the context, before the following tokens.
    pub pages: usize,
    /// Slots in use in them.
    pub slots: usize,
    /// Bytes of the pages and of the tables, positions and scores that go with them.
    pub bytes: usize,
}

/// The mean of [`Quality`] over windows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QualitySum {
    total: Quality,
    windows: usize,
}

impl<'m, R: Runner> Continuation<'m, R> {
    /// Prefills `tokens[..context]` and predicts after each token of `tokens[context..]` but the last,
    /// which is only a target. `scorer` observes the prefill; others read the pages. Where the capacity
    /// of `config` is in tokens, a fork may [generate](Self::generate) up to so many positions.
    ///
    /// # Errors
    /// Before anything runs: counts of nothing, too few tokens, more positions than the model has.
    pub fn new(
        model: &'m R,
        config: &CacheConfig,
        tokens: &[u32],
        context: usize,
        chunk: usize,
        scorer: Arc<dyn Scorer>,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, EngineError> {
        let needed = context.saturating_add(2);
        EngineError::unless(context > 0, "context", context, "at least one token")?;
        if tokens.len() < needed {
            return Err(EngineError::TextTooShort { found: tokens.len(), needed });
        }
        let positions = match config.capacity {
            Capacity::Tokens(room) => room.max(tokens.len() - 1),
            Capacity::Pages(_) | Capacity::Bytes(_) => tokens.len() - 1,
        };
        model.config().check_context(positions)?;
        // A fork shares the context until it compresses; then it copies at most what it keeps. The
        // full continuation and one fork are the most that live at once.
        let room = positions.saturating_add(config.block_tokens).saturating_mul(2);
        let capacity = Capacity::Tokens(room);
        let cache = model.cache(&CacheConfig { capacity, ..config.clone() })?;
        let mut sequence = cache.sequence();
        sequence.observe(scorer);
        let (prompt, following) = tokens.split_at(context);
        prefill::feed(model, &cache, &mut sequence, prompt, chunk, Logits::None, |range, _| {
            progress(range.len());
            Ok(())
        })?;
        let following = following.to_vec();
        let (expected, full) = (Vec::new(), Quality::default());
        let context = sequence;
        let mut window = Self { model, cache, context, following, chunk, expected, full };
        let fork = window.cache.fork(&window.context)?;
        let (mut quality, rows) = window.read_on(fork)?;
        quality.top1 = 1.0;
        window.expected = rows;
        window.full = quality;
        Ok(window)
    }

    /// The full cache's own quality.
    pub fn full(&self) -> Quality {
        self.full
    }

    /// The prefilled context.
    pub fn context(&self) -> &KvSequence {
        &self.context
    }

    /// The cache that the context is in.
    pub fn cache(&self) -> &KvCache<R::Memory> {
        &self.cache
    }

    /// A compressed fork of the context, and what the compression did. It is the caller's to read and
    /// drop.
    pub fn compressed(
        &mut self,
        compression: &Compression,
    ) -> Result<(KvSequence, Compressed), EngineError> {
        let mut fork = self.cache.fork(&self.context)?;
        let done = self.cache.compress(&mut fork, compression)?;
        Ok((fork, done))
    }

    /// Compresses a fork of the context, and measures what it predicts.
    pub fn measure(&mut self, compression: &Compression) -> Result<Quality, EngineError> {
        let (fork, _) = self.compressed(compression)?;
        self.measure_fork(fork)
    }

    /// Measures what a fork predicts.
    pub fn measure_fork(&mut self, fork: KvSequence) -> Result<Quality, EngineError> {
        let (mut quality, rows) = self.read_on(fork)?;
        let pairs = self.expected.par_iter().zip(&rows);
        let (kl, same) = pairs
            .map(|(full, this)| (divergence(full, this), usize::from(top(full) == top(this))))
            .reduce(|| (0.0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        quality.kl = kl / rows.len() as f64;
        quality.top1 = same as f64 / rows.len() as f64;
        Ok(quality)
    }

    /// Greedy tokens after the context and the first following token, from a fork.
    pub fn generate(
        &mut self,
        mut fork: KvSequence,
        tokens: usize,
    ) -> Result<Vec<u32>, EngineError> {
        fork.stop_observing();
        let mut generated = vec![self.following[0]];
        for _ in 0..tokens {
            let next = generated[generated.len() - 1];
            let mut token = None;
            let each = |_: Range<usize>, rows: LogitRows| {
                token = rows.last_of(0).map(crate::engine::sampling::argmax).transpose()?;
                Ok(())
            };
            prefill::feed(self.model, &self.cache, &mut fork, &[next], 1, Logits::Last, each)?;
            generated.extend(token);
        }
        drop(fork);
        self.cache.settle()?;
        Ok(generated)
    }

    /// Feeds the following tokens to `fork`; returns its quality so far and all log-probabilities.
    fn read_on(&mut self, mut fork: KvSequence) -> Result<(Quality, Vec<Vec<f64>>), EngineError> {
        let tables = fork.tables();
        let (pages, slots) = (tables.pages(), tables.slots());
        let page_bytes = self.cache.layouts().of(0).page_bytes;
        let bytes = pages * page_bytes + fork.metadata_bytes();
        fork.stop_observing();
        let fed = &self.following[..self.following.len() - 1];
        let mut rows: Vec<Vec<f64>> = Vec::with_capacity(fed.len());
        let each = |_: Range<usize>, logits: LogitRows| {
            let values: Vec<&[f32]> = logits.iter().map(|(_, values)| values).collect();
            let logs: Result<Vec<_>, _> = values.par_iter().map(|row| log_softmax(row)).collect();
            rows.extend(logs?);
            Ok(())
        };
        let chunk = self.chunk;
        prefill::feed(self.model, &self.cache, &mut fork, fed, chunk, Logits::All, each)?;
        drop(fork);
        self.cache.settle()?;
        let targets = &self.following[1..];
        let losses = rows.iter().zip(targets).map(|(row, &token)| {
            let unknown = PerplexityError::TokenId { token, vocab: row.len() };
            row.get(token as usize).map(|log| -log).ok_or(unknown)
        });
        let nll = losses.sum::<Result<f64, _>>()? / rows.len() as f64;
        let tokens = rows.len();
        Ok((Quality { nll, tokens, pages, slots, bytes, ..Quality::default() }, rows))
    }
}

impl QualitySum {
    /// Adds a window.
    pub fn add(&mut self, quality: &Quality) {
        let Quality { nll, kl, top1, tokens, pages, slots, bytes } = *quality;
        let weight = tokens as f64;
        self.total.nll += nll * weight;
        self.total.kl += kl * weight;
        self.total.top1 += top1 * weight;
        self.total.tokens += tokens;
        self.total.pages += pages;
        self.total.slots += slots;
        self.total.bytes += bytes;
        self.windows += 1;
    }

    /// Means over all predictions; pages, slots and bytes of the mean window.
    pub fn mean(&self) -> Quality {
        let Quality { nll, kl, top1, tokens, pages, slots, bytes } = self.total;
        let (weight, windows) = (tokens.max(1) as f64, self.windows.max(1));
        Quality {
            nll: nll / weight,
            kl: kl / weight,
            top1: top1 / weight,
            tokens,
            pages: pages / windows,
            slots: slots / windows,
            bytes: bytes / windows,
        }
    }
}

impl<R: Runner> std::fmt::Debug for Continuation<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Continuation")
            .field("context", &self.context)
            .field("following", &self.following.len())
            .field("full", &self.full)
            .finish_non_exhaustive()
    }
}

/// Σ p (log p − log q), from log-probabilities.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter()
        .zip(q)
        .map(|(&p, &q)| if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) })
        .sum()
}

/// The most likely token.
fn top(logs: &[f64]) -> Option<usize> {
    (0..logs.len()).max_by(|&a, &b| logs[a].total_cmp(&logs[b]).then(b.cmp(&a)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_zero_only_between_equals() {
        let p: Vec<f64> = [0.5f64, 0.25, 0.25].map(f64::ln).to_vec();
        let q: Vec<f64> = [0.25f64, 0.5, 0.25].map(f64::ln).to_vec();
        assert_eq!(divergence(&p, &p), 0.0);
        assert!((divergence(&p, &q) - 0.25 * 2f64.ln()).abs() < 1e-12);
        let never = [0.0, f64::NEG_INFINITY, f64::NEG_INFINITY];
        assert!((divergence(&never, &p) - 2f64.ln()).abs() < 1e-12);
        assert_eq!((top(&p), top(&q)), (Some(0), Some(1)));
    }

    #[test]
    fn means_weigh_every_prediction_alike() {
        let mut sum = QualitySum::default();
        sum.add(&Quality { nll: 1.0, tokens: 1, pages: 10, ..Quality::default() });
        sum.add(&Quality { nll: 4.0, tokens: 2, pages: 20, ..Quality::default() });
        assert_eq!((sum.mean().nll, sum.mean().tokens, sum.mean().pages), (3.0, 3, 15));
    }
}
