//! `headwise eval perplexity`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::{
    cache::Capacity,
    cli::{
        args::{JsonArgs, ModelArgs, PageArgs, above_zero},
        error::CliError,
        input::{first_chars, read_text},
        output::{Input, Results},
        place::with_model,
        progress,
        setup::Loaded,
    },
    engine::{
        Runner,
        eval::{PerplexityOptions, PerplexityResult, perplexity},
    },
    report::Bytes,
};

/// Perplexity of a text in windows, without eviction.
#[derive(Args)]
pub(super) struct Perplexity {
    /// UTF-8 text, tokenised whole.
    #[arg(long, value_name = "PATH")]
    text: PathBuf,
    /// Use only this many characters of it.
    #[arg(long)]
    chars: Option<usize>,
    /// Most windows.
    #[arg(long, default_value_t = 2)]
    windows: usize,
    /// Tokens of a window.
    #[arg(long, default_value_t = 2048)]
    context: usize,
    /// Most tokens in one step.
    #[arg(long, default_value_t = 512)]
    chunk: usize,
    #[command(flatten)]
    pages: PageArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Serialize)]
struct Measured {
    model: String,
    format: String,
    text_tokens: usize,
    #[serde(flatten)]
    result: PerplexityResult,
}

impl Perplexity {
    pub fn run(self) -> Result<(), CliError> {
        let mut inputs = self.model.inputs()?;
        inputs.push(Input::file("the text of --text", &self.text));
        let results = Results::to(self.json.path(), None, &inputs)?;
        above_zero([
            ("--chars", self.chars.unwrap_or(1)),
            ("--windows", self.windows),
            ("--context", self.context),
            ("--chunk", self.chunk),
        ])?;
        self.pages.check()?;
        if self.context == 1 {
            let reason = "--context 1 leaves nothing to predict: a window's first token is given";
            return Err(CliError::Usage(reason.into()));
        }
        let text = read_text(&self.text)?;
        let text = self.chars.map_or(text.as_str(), |chars| first_chars(&text, chars));
        with_model!(self.model, |loaded| self.measure(&loaded, text, &results))
    }

    fn measure<R: Runner>(
        &self,
        loaded: &Loaded<R>,
        text: &str,
        results: &Results,
    ) -> Result<(), CliError> {
        let tokens = loaded.tokenizer.encode_plain(text)?;
        let options = PerplexityOptions {
            context: self.context,
            begin: loaded.tokenizer.begin(),
            windows: self.windows,
            chunk: self.chunk,
            cache: self.pages.config(loaded.model.shape(), Capacity::Tokens(0)),
        };
        let windows = options.windows_in(tokens.len());
        let bar = progress::bar("perplexity", "tokens", windows * self.context);
        let each = |done| bar.inc(done as u64);
        let result = perplexity(&loaded.model, &tokens, &options, each)?;
        bar.finish_and_clear();
        self.pages.check_saturated(result.saturated, results)?;
        results.print(format!(
            "{} pages: perplexity {:.4} over {} tokens in {} windows of {} ({} of KV pages each)\n",
            self.pages.format,
            result.perplexity,
            result.tokens,
            result.windows,
            self.context,
            Bytes(result.page_bytes_held),
        ))?;
        let (model, format) = (loaded.name(), self.pages.format.to_string());
        results.write_json(&Measured { model, format, text_tokens: tokens.len(), result })
    }
}
