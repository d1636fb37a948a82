//! Plain perplexity of a text in windows.

use serde::Serialize;

use crate::{
    cache::{CacheConfig, Capacity},
    engine::{error::EngineError, kv::Logits, likelihood::NllSum, prefill, runner::Runner},
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct PerplexityOptions {
    /// Tokens of a window; windows do not overlap.
    pub context: usize,
    /// The first token of every window, where the model wants one
    /// ([`Tokenizer::begin`](crate::engine::Tokenizer::begin)); the text has none then.
    pub begin: Option<u32>,
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
    /// Keys and values that the page format could not hold and that were saturated.
    pub saturated: u64,
}

impl PerplexityOptions {
    /// Tokens of the text that a window has.
    fn stride(&self) -> usize {
        self.context.saturating_sub(usize::from(self.begin.is_some()))
    }

    /// Windows that a text of so many tokens has.
    pub fn windows_in(&self, tokens: usize) -> usize {
        self.windows.min(tokens / self.stride().max(1))
    }
}

/// Perplexity over windows `[0, context)`, `[context, 2·context)`, … of `tokens` (with a `begin` of one
/// token less), each on an empty cache: every token but the first of a window is predicted from those
/// before it. `progress` is told
/// the tokens done.
pub fn perplexity<R: Runner>(
    model: &R,
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
    let stride = options.stride();
    let short = || EngineError::TextTooShort { found: tokens.len(), needed: stride };
    if tokens.len() < stride {
        return Err(short());
    }
    model.config().check_context(context)?;
    let config = CacheConfig { capacity: Capacity::Tokens(context), ..options.cache.clone() };
    let cache = model.cache(&config)?;
    let mut sum = NllSum::default();
    let (mut windows, mut pages) = (0, 0);
    for text in tokens.chunks_exact(stride).take(options.windows) {
        let window: Vec<u32> = options.begin.into_iter().chain(text.iter().copied()).collect();
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
        prefill::feed(model, &cache, &mut sequence, &window, chunk, Logits::All, each)?;
        pages = sequence.tables().pages();
        drop(sequence);
        cache.settle()?;
        windows += 1;
    }
    let nll = sum.mean().ok_or_else(short)?;
    let page_bytes_held = pages * config.page_bytes()?;
    let (perplexity, tokens) = (nll.exp(), sum.tokens());
    let saturated = cache.saturated()?;
    Ok(PerplexityResult { perplexity, nll, tokens, windows, pages, page_bytes_held, saturated })
}
