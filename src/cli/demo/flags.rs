//! What the demo is asked for.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cache::Compression,
    cli::{
        args::{JsonArgs, ModelArgs, PageArgs, PolicyArgs, above_zero},
        error::CliError,
        given::Given,
    },
    evict::{Budget, scorer::ScorerKind},
};

/// Compress a real model's cache 1x to 16x, measure quality and memory, and write a report page.
#[derive(Args)]
pub(crate) struct Demo {
    /// Text to read instead of this project's documents.
    #[arg(long, value_name = "PATH")]
    pub(super) prompt_file: Option<PathBuf>,
    /// Tokens of it that are prefilled and compressed.
    #[arg(long, default_value_t = 2048)]
    pub(super) context: usize,
    /// Tokens after them on which each rate is compared with the full cache.
    #[arg(long, default_value_t = 128)]
    pub(super) following: usize,
    /// Tokens generated at each rate.
    #[arg(long, default_value_t = 24)]
    pub(super) generate: usize,
    /// Compression ratios.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16", allow_hyphen_values = true)]
    pub(super) ratios: Vec<f64>,
    /// Requests of the serving comparison.
    #[arg(long, default_value_t = 10)]
    pub(super) requests: usize,
    /// Prompt tokens of each request.
    #[arg(long, default_value_t = 512)]
    pub(super) request_tokens: usize,
    /// Tokens generated for each request.
    #[arg(long, default_value_t = 48)]
    pub(super) request_generate: usize,
    /// Compression of the serving comparison.
    #[arg(long, default_value_t = 8.0, allow_hyphen_values = true)]
    pub(super) serve_ratio: f64,
    /// Where the report page goes; `-` is standard output, and text goes to standard error.
    #[arg(long, value_name = "PATH", default_value = "headwise-demo.html")]
    pub(super) report: PathBuf,
    #[command(flatten)]
    pub(super) protect: PolicyArgs,
    #[command(flatten)]
    pub(super) pages: PageArgs,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) json: JsonArgs,
}

impl Demo {
    /// Refuses flags outside their range, and those that do nothing.
    pub(super) fn check_flags(&self, given: &Given) -> Result<(), CliError> {
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

    /// The compression by a ratio, which is refused here if no sequence could have it.
    pub(super) fn compression(&self, ratio: f64) -> Result<Compression, CliError> {
        self.protect.compression(ScorerKind::KvCompress, Budget::Ratio(ratio))
    }
}
