//! The same requests in the same KV memory, with and without compression.

use std::time::Instant;

use serde::Serialize;

use super::flags::Demo;
use crate::{
    cache::Capacity,
    cli::{error::CliError, progress, setup::Loaded, table::table},
    engine::{
        EngineError, Runner, Strategy,
        serve::{
            CompressionPlan, Finish, Request, Scheduler, ServeOptions, ServeStats, StopStrings,
        },
    },
    report::Bytes,
};

/// Both runs.
#[derive(Serialize)]
pub(super) struct Serving {
    pub requests: usize,
    pub prompt_tokens: usize,
    pub generated_tokens: usize,
    pub pages: usize,
    pub page_bytes: usize,
    pub ratio: f64,
    pub plain: Run,
    pub compressed: Run,
}

/// One run.
#[derive(Serialize)]
pub(super) struct Run {
    pub seconds: f64,
    /// Generated tokens per second of the whole run, prefill included.
    pub tokens_per_second: f64,
    /// Generated tokens per second of the steps that only decoded.
    pub decode_tokens_per_second: f64,
    /// Sequences that ran at the mean decoding step.
    pub mean_running: f64,
    /// Keys and values that the page format could not hold and that were saturated.
    pub saturated: u64,
    pub stats: ServeStats,
}

/// The same requests, waiting for two caches of the same memory.
pub(super) struct Comparison<'a, R: Runner> {
    demo: &'a Demo,
    plain: Scheduler<'a, R>,
    compressed: Scheduler<'a, R>,
}

impl Demo {
    /// Submits everything, so that what cannot be served is refused before anything runs.
    pub(super) fn prepare_serving<'a, R: Runner>(
        &'a self,
        loaded: &'a Loaded<R>,
        tokens: &[u32],
    ) -> Result<Comparison<'a, R>, CliError> {
        if tokens.len() < self.request_tokens {
            let (found, needed) = (tokens.len(), self.request_tokens);
            return Err(EngineError::TextTooShort { found, needed }.into());
        }
        let compression = CompressionPlan {
            compression: self.compression(self.serve_ratio)?,
            between_chunks: true,
            every: Some(16),
        };
        Ok(Comparison {
            demo: self,
            plain: self.scheduler(loaded, tokens, None)?,
            compressed: self.scheduler(loaded, tokens, Some(compression))?,
        })
    }

    fn scheduler<'a, R: Runner>(
        &self,
        loaded: &'a Loaded<R>,
        tokens: &[u32],
        compression: Option<CompressionPlan>,
    ) -> Result<Scheduler<'a, R>, CliError> {
        let (model, spare) = (&loaded.model, tokens.len() - self.request_tokens);
        // A request longer than the context is refused below; until then it is no size of memory.
        let tokens_each = self.request_tokens.saturating_add(self.request_generate);
        let tokens_each = tokens_each.min(model.config().context);
        // Memory for two requests at full length, and a little room to grow.
        let room = tokens_each.saturating_mul(2).saturating_add(tokens_each / 4);
        let capacity = Capacity::Tokens(room);
        let cache = model.cache(&self.pages.config(model.shape(), capacity))?;
        let options = ServeOptions { compression, ..ServeOptions::default() };
        let mut scheduler = Scheduler::new(model, cache, options)?;
        for request in 0..self.requests {
            // Stretches of the text, evenly spread.
            let start = spare.saturating_mul(request) / self.requests;
            let mut prompt = tokens[start..start + self.request_tokens].to_vec();
            if let (Some(first), Some(begin)) = (prompt.first_mut(), loaded.tokenizer.begin()) {
                *first = begin;
            }
            scheduler.submit(Request {
                prompt,
                max_new_tokens: self.request_generate,
                strategy: Strategy::Greedy,
                seed: 0,
                stop: Vec::new(),
                stop_strings: StopStrings::default(),
            })?;
        }
        Ok(scheduler)
    }
}

impl<R: Runner> Comparison<'_, R> {
    /// Serves them all, first without compression, then with.
    pub fn run(self) -> Result<Serving, CliError> {
        let Self { demo, plain, compressed } = self;
        let pages = plain.cache().stats().total;
        let page_bytes = plain.cache().layouts().of(0).page_bytes;
        Ok(Serving {
            requests: demo.requests,
            prompt_tokens: demo.request_tokens,
            generated_tokens: demo.request_generate,
            pages,
            page_bytes,
            ratio: demo.serve_ratio,
            plain: demo.serve("serving, uncompressed", plain)?,
            compressed: demo.serve("serving, compressed", compressed)?,
        })
    }
}

impl Demo {
    fn serve<R: Runner>(
        &self,
        name: &str,
        mut scheduler: Scheduler<'_, R>,
    ) -> Result<Run, CliError> {
        let tokens = self.requests.saturating_mul(self.request_generate);
        let bar = progress::bar(name, "tokens", tokens);
        let start = Instant::now();
        let (mut decode_seconds, mut decoded, mut decode_steps) = (0.0, 0, 0);
        while !scheduler.is_idle() {
            let (before, began) = (scheduler.stats(), Instant::now());
            let progress = scheduler.step()?;
            for completion in progress.completed {
                if let Finish::Failed(error) = completion.finish {
                    return Err(CliError::Request(error));
                }
            }
            let stats = scheduler.stats();
            let drawn = stats.generated_tokens - before.generated_tokens;
            bar.inc(drawn as u64);
            if stats.prefill_tokens == before.prefill_tokens {
                decode_seconds += began.elapsed().as_secs_f64();
                decoded += drawn;
                decode_steps += 1;
            }
        }
        bar.finish_and_clear();
        let stats = scheduler.stats();
        let seconds = start.elapsed().as_secs_f64();
        Ok(Run {
            seconds,
            tokens_per_second: stats.generated_tokens as f64 / seconds,
            decode_tokens_per_second: decoded as f64 / f64::max(decode_seconds, 1e-9),
            mean_running: decoded as f64 / f64::max(decode_steps as f64, 1.0),
            saturated: scheduler.cache().saturated()?,
            stats,
        })
    }
}

impl Serving {
    /// The table on the screen.
    pub fn table(&self) -> String {
        let heading =
            ["cache", "at once", "peak KV", "tokens/s", "decode", "batch", "preempted", "seconds"];
        let mut lines = vec![heading.map(str::to_owned).to_vec()];
        for (name, run) in self.runs() {
            lines.push(vec![
                name,
                run.stats.peak_running.to_string(),
                Bytes(run.stats.peak_pages * self.page_bytes).to_string(),
                format!("{:.1}", run.tokens_per_second),
                format!("{:.1}/s", run.decode_tokens_per_second),
                format!("{:.1}", run.mean_running),
                run.stats.preemptions.to_string(),
                format!("{:.1}", run.seconds),
            ]);
        }
        format!(
            "{} requests of {} + {} tokens in {} of KV memory:\n{}",
            self.requests,
            self.prompt_tokens,
            self.generated_tokens,
            Bytes(self.pages * self.page_bytes),
            table(&lines),
        )
    }

    /// The runs with their names.
    pub fn runs(&self) -> [(String, &Run); 2] {
        [
            ("uncompressed".to_owned(), &self.plain),
            (format!("{}x per head", self.ratio), &self.compressed),
        ]
    }
}
