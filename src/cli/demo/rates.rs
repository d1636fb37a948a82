//! One context at several compression ratios.

use std::time::Instant;

use serde::Serialize;

use super::flags::Demo;
use crate::{
    cache::{Capacity, KvSequence},
    cli::{error::CliError, progress, setup::Loaded, table::table},
    engine::{
        Runner,
        eval::{Continuation, Quality},
    },
    evict::scorer::ScorerKind,
    report::{Bytes, MemoryReport},
};

/// The context and all rates.
#[derive(Serialize)]
pub(super) struct Rates {
    pub context_tokens: usize,
    pub following_tokens: usize,
    pub prefill_tokens_per_second: f64,
    /// Keys and values that the page format could not hold and that were saturated.
    pub saturated: u64,
    pub rows: Vec<Rate>,
}

/// One rate.
#[derive(Serialize)]
pub(super) struct Rate {
    pub ratio: f64,
    pub quality: Quality,
    pub perplexity: f64,
    pub perplexity_change: f64,
    /// Pages evicted exactly as planned.
    pub pages_freed: usize,
    pub decode_tokens_per_second: f64,
    pub text: String,
    pub memory: MemoryReport,
    /// Slots kept by each head, layer by layer.
    pub slots: Vec<usize>,
}

impl Demo {
    pub(super) fn compare_rates<R: Runner>(
        &self,
        loaded: &Loaded<R>,
        tokens: &[u32],
    ) -> Result<Rates, CliError> {
        let longest = self.context.saturating_add(self.generate);
        let config = self.pages.config(loaded.model.shape(), Capacity::Tokens(longest));
        let context = self.context.saturating_add(1);
        let span = context.saturating_add(self.following);
        let tokens = &tokens[..tokens.len().min(span)];
        let following = tokens.len().saturating_sub(context);
        let each = following.saturating_add(self.generate);
        let work = each.saturating_mul(self.ratios.len() + 1).saturating_add(self.context);
        let bar = progress::bar("one context, every rate", "tokens", work);
        let start = Instant::now();
        let scorer = self.protect.scorer(ScorerKind::KvCompress)?;
        let mut prefilled = 0.0;
        let mut window =
            Continuation::new(&loaded.model, &config, tokens, self.context, 256, scorer, |done| {
                prefilled = start.elapsed().as_secs_f64();
                bar.inc(done as u64);
            })?;
        let full = window.full();
        let mut rows = Vec::with_capacity(self.ratios.len());
        for &ratio in &self.ratios {
            let compression = self.compression(ratio)?;
            let (fork, done) = window.compressed(&compression)?;
            let slots = slots(&fork);
            // The fork's own memory: without the context that it was forked from.
            let memory = MemoryReport::of(window.cache(), [&fork])?;
            let quality = window.measure_fork(fork)?;
            bar.inc(following as u64);
            let (fork, _) = window.compressed(&compression)?;
            let start = Instant::now();
            let generated = window.generate(fork, self.generate)?;
            let seconds = start.elapsed().as_secs_f64();
            bar.inc(self.generate as u64);
            rows.push(Rate {
                ratio,
                perplexity: quality.nll.exp(),
                perplexity_change: (quality.nll - full.nll).exp() - 1.0,
                quality,
                pages_freed: done.pages_freed,
                decode_tokens_per_second: self.generate as f64 / seconds,
                text: loaded.tokenizer.decode(&generated)?,
                memory,
                slots,
            });
        }
        bar.finish_and_clear();
        Ok(Rates {
            context_tokens: self.context,
            following_tokens: full.tokens,
            prefill_tokens_per_second: self.context as f64 / prefilled,
            saturated: window.cache().saturated()?,
            rows,
        })
    }
}

fn slots(sequence: &KvSequence) -> Vec<usize> {
    sequence.tables().heads().map(|table| table.slots).collect()
}

impl Rates {
    /// The table on the screen.
    pub fn table(&self) -> String {
        let heading = [
            "rate",
            "held",
            "used",
            "physical",
            "theoretical",
            "decode",
            "ppl",
            "change",
            "KL",
            "top-1",
            "goes on with",
        ];
        let mut lines = vec![heading.map(str::to_owned).to_vec()];
        lines.extend(self.rows.iter().map(|row| {
            let total = &row.memory.total;
            vec![
                format!("{}x", row.ratio),
                Bytes(total.held_bytes).to_string(),
                Bytes(total.used_bytes).to_string(),
                times(row.memory.compression.physical),
                times(row.memory.compression.theoretical),
                format!("{:.1}/s", row.decode_tokens_per_second),
                format!("{:.3}", row.perplexity),
                format!("{:+.1}%", 100.0 * row.perplexity_change),
                format!("{:.4}", row.quality.kl),
                format!("{:.0}%", 100.0 * row.quality.top1),
                first_words(&row.text),
            ]
        }));
        format!(
            "{} tokens of context ({:.0} tokens/s), {} that follow:\n{}\n",
            self.context_tokens,
            self.prefill_tokens_per_second,
            self.following_tokens,
            table(&lines),
        )
    }
}

/// A rate, or a dash where nothing is held.
pub(super) fn times(rate: Option<f64>) -> String {
    rate.map_or("–".to_owned(), |rate| format!("{rate:.2}x"))
}

/// The beginning of a text in one line.
fn first_words(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(44) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
