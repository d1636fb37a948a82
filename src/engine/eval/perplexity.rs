//! Plain perplexity of a text in windows.

use serde::Serialize;

use crate::{
    cache::{CacheConfig, Capacity, KvCache},
    engine::{error::EngineError, kv::Logits, likelihood::NllSum, model::Model, prefill},
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct PerplexityOptions {
    /// Tokens of a window; windows do not overlap.
    pub context: usize,
    /// Most windows.
    pub windows: usize,
    /// Tokens of a prefill chunk.
    pub chunk: usize,
    /// The cache: formats and page size. Its capacity is set to one window.
    pub cache: CacheConfig,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerplexityResult {
    /// e to the mean negative log-likelihood.
    pub perplexity: f64,
    /// Mean negative log-likelihood in nats.
    pub nll: f64,
    /// Tokens predicted: all of a window but its first.
    pub tokens: usize,
    /// Windows measured.
    pub windows: usize,
    /// Pages that a window held.
    pub pages: usize,
    /// Bytes of them.
    pub page_bytes_held: usize,
}

/// Perplexity over windows `[0, context)`, `[context, 2·context)`, … of `tokens`, each on an empty
/// cache: every token but the first of a window is predicted from those before it. `progress` is told
/// the tokens done.
pub fn perplexity(
    model: &Model,
    tokens: &[u32],
    options: &PerplexityOptions,
    mut progress: impl FnMut(usize),
) -> Result<PerplexityResult, EngineError> {
    let context = options.context;
    EngineError::unless(
        context >= 2,
        "context",
        context,
        "at least two tokens, to predict one from another",
    )?;
    EngineError::unless(options.windows > 0, "windows", options.windows, "at least one")?;
    if tokens.len() < context {
        return Err(EngineError::TextTooShort { found: tokens.len(), needed: context });
    }
    model.config().check_context(context)?;
    let config = CacheConfig { capacity: Capacity::Tokens(context), ..options.cache.clone() };
    let mut cache = KvCache::new(&config)?;
    let mut sum = NllSum::default();
    let (mut windows, mut pages) = (0, 0);
    for window in tokens.chunks_exact(context).take(options.windows) {
        let mut sequence = cache.sequence();
        let each = |range: std::ops::Range<usize>, rows: crate::engine::kv::LogitRows| {
            for (position, (_, logits)) in range.clone().zip(rows.iter()) {
                if let Some(&next) = window.get(position + 1) {
                    sum.add(logits, next)?;
                }
            }
            progress(range.len());
            Ok(())
        };
        let chunk = options.chunk;
        prefill::feed(model, &mut cache, &mut sequence, window, chunk, Logits::All, each)?;
        pages = sequence.tables().pages();
        drop(sequence);
        cache.settle();
        windows += 1;
    }
    let short = EngineError::TextTooShort { found: tokens.len(), needed: context };
    let nll = sum.mean().ok_or(short)?;
    let page_bytes_held = pages * config.page_bytes()?;
    let (perplexity, tokens) = (nll.exp(), sum.tokens());
    Ok(PerplexityResult { perplexity, nll, tokens, windows, pages, page_bytes_held })
}
