//! `headwise demo`: the main job on a real model.

mod page;
mod rates;
mod serving;

use std::{path::PathBuf, time::Instant};

use clap::Args;
use serde::Serialize;

use self::{rates::Rates, serving::Serving};
use super::{
    args::{JsonArgs, ModelArgs, PageArgs, PolicyArgs, above_zero},
    error::CliError,
    given::Given,
    input::read_text,
    output::{Input, Results},
    setup::Loaded,
};
use crate::{
    cache::Compression,
    engine::EngineError,
    evict::{Budget, scorer::ScorerKind},
};

/// The repository's own documents: what the demo reads when nothing else is given.
const DOCUMENTS: [&str; 5] = [
    include_str!("../../docs/design.md"),
    include_str!("../../docs/attention.md"),
    include_str!("../../docs/eviction.md"),
    include_str!("../../docs/page-format.md"),
    include_str!("../../README.md"),
];

/// Compress a real model's cache 1x to 16x, measure quality and memory, and write a report page.
#[derive(Args)]
pub(super) struct Demo {
    /// Text to read instead of this project's documents.
    #[arg(long, value_name = "PATH")]
    prompt_file: Option<PathBuf>,
    /// Tokens of it that are prefilled and compressed.
    #[arg(long, default_value_t = 2048)]
    context: usize,
    /// Tokens after them on which each rate is compared with the full cache.
    #[arg(long, default_value_t = 128)]
    following: usize,
    /// Tokens generated at each rate.
    #[arg(long, default_value_t = 24)]
    generate: usize,
    /// Compression ratios.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16", allow_hyphen_values = true)]
    ratios: Vec<f64>,
    /// Requests of the serving comparison.
    #[arg(long, default_value_t = 10)]
    requests: usize,
    /// Prompt tokens of each request.
    #[arg(long, default_value_t = 512)]
    request_tokens: usize,
    /// Tokens generated for each request.
    #[arg(long, default_value_t = 48)]
    request_generate: usize,
    /// Compression of the serving comparison.
    #[arg(long, default_value_t = 8.0, allow_hyphen_values = true)]
    serve_ratio: f64,
    /// Where the report page goes; `-` is standard output, and text goes to standard error.
    #[arg(long, value_name = "PATH", default_value = "headwise-demo.html")]
    report: PathBuf,
    #[command(flatten)]
    protect: PolicyArgs,
    #[command(flatten)]
    pages: PageArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// Everything that the page and the JSON show.
#[derive(Serialize)]
struct Outcome {
    model: String,
    format: String,
    rates: Rates,
    serving: Serving,
    seconds: f64,
}

impl Demo {
    pub fn run(self, given: &Given) -> Result<(), CliError> {
        // What cannot be done should not cost minutes to find out.
        let mut inputs = self.model.inputs()?;
        let text = self.prompt_file.iter();
        inputs.extend(text.map(|path| Input::file("the text of --prompt-file", path)));
        let results = Results::to(self.json.path(), Some(&self.report), &inputs)?;
        self.check_flags(given)?;
        let text = match &self.prompt_file {
            Some(path) => read_text(path)?,
            None => DOCUMENTS.concat(),
        };
        let start = Instant::now();
        let loaded = self.model.load()?;
        let tokens = loaded.tokenizer.encode_plain_prompt(&text)?;
        if tokens.is_empty() {
            return Err(EngineError::EmptyRequest.into());
        }
        let following = tokens.len().saturating_sub(self.context.saturating_add(1));
        let further = following.min(self.following).max(self.generate);
        loaded.model.config().check_context(self.context.saturating_add(further))?;
        let comparison = self.prepare_serving(&loaded, &tokens)?;
        results.print(self.introduction(&loaded))?;
        let rates = self.compare_rates(&loaded, &tokens)?;
        results.print(rates.table())?;
        let serving = comparison.run()?;
        results.print(serving.table())?;
        let outcome = Outcome {
            model: loaded.name(),
            format: self.pages.format.to_string(),
            rates,
            serving,
            seconds: start.elapsed().as_secs_f64(),
        };
        results.write_report(&page::page(&outcome).to_html())?;
        let report = self.report.display();
        results.print(format!("\nreport: {report} ({:.0} s)\n", outcome.seconds))?;
        results.write_json(&outcome)
    }

    fn check_flags(&self, given: &Given) -> Result<(), CliError> {
        above_zero([
            ("--context", self.context),
            ("--following", self.following),
            ("--requests", self.requests),
            ("--request-tokens", self.request_tokens),
            ("--request-generate", self.request_generate),
        ])?;
        if self.ratios.is_empty() {
            return Err(CliError::Usage("--ratios needs at least one ratio".into()));
        }
        let ratios: Vec<f64> = self.ratios.iter().copied().chain([self.serve_ratio]).collect();
        for &ratio in &ratios {
            self.compression(ratio)?;
        }
        self.pages.check()?;
        self.protect.all_used(given, &[ScorerKind::KvCompress], &ratios)
    }

    fn compression(&self, ratio: f64) -> Result<Compression, CliError> {
        self.protect.compression(ScorerKind::KvCompress, Budget::Ratio(ratio))
    }

    fn introduction(&self, loaded: &Loaded) -> String {
        let shape = loaded.model.shape();
        let (heads, channels) = (shape.heads() / shape.layers(), shape.layer(0).k_dim());
        format!(
            "{}: {} layers × {} KV heads of {} channels, one page table each; {} pages of {} \
             tokens\n\n",
            loaded.name(),
            shape.layers(),
            heads,
            channels,
            self.pages.format,
            self.pages.block_tokens,
        )
    }
}
