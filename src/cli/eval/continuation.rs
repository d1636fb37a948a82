//! `headwise eval continuation`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::{
    cache::{Capacity, Compression},
    cli::{
        args::{JsonArgs, ModelArgs, PageArgs, PolicyArgs, above_zero},
        error::CliError,
        given::Given,
        input::read_text,
        output::{Input, Results},
        place::with_model,
        progress,
        setup::Loaded,
        table::table,
    },
    engine::{
        EngineError, Runner,
        eval::{self, Quality, QualitySum},
    },
    evict::{Budget, scorer::ScorerKind},
    report::Bytes,
};

/// Prefill a context, compress it, and predict what follows it.
#[derive(Args)]
pub(super) struct Continuation {
    /// UTF-8 text, tokenised whole.
    #[arg(long, value_name = "PATH")]
    text: PathBuf,
    /// Most windows.
    #[arg(long, default_value_t = 10)]
    windows: usize,
    /// Tokens that are prefilled and compressed.
    #[arg(long, default_value_t = 2048)]
    context: usize,
    /// Tokens that follow.
    #[arg(long, default_value_t = 256)]
    following: usize,
    /// Compression ratios.
    #[arg(long, value_delimiter = ',', default_value = "2,4,8,16", allow_hyphen_values = true)]
    ratios: Vec<f64>,
    /// Which slots matter.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kv-compress,keydiff,key-norm,sinks-window,random"
    )]
    policies: Vec<ScorerKind>,
    /// Most tokens in one step.
    #[arg(long, default_value_t = 512)]
    chunk: usize,
    #[command(flatten)]
    protect: PolicyArgs,
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
    context: usize,
    following: usize,
    windows: usize,
    /// Keys and values that the page format could not hold and that were saturated.
    saturated: u64,
    rows: Vec<Row>,
}

/// One way of compressing.
struct Way {
    policy: ScorerKind,
    ratio: f64,
    compression: Compression,
}

/// One way of compressing, over all windows.
#[derive(Clone, Serialize)]
struct Row {
    policy: Option<ScorerKind>,
    ratio: f64,
    perplexity: f64,
    /// Relative to the full cache.
    perplexity_change: f64,
    #[serde(flatten)]
    quality: Quality,
}

impl Continuation {
    pub fn run(self, given: &Given) -> Result<(), CliError> {
        let mut inputs = self.model.inputs()?;
        inputs.push(Input::file("the text of --text", &self.text));
        let results = Results::to(self.json.path(), None, &inputs)?;
        above_zero([
            ("--windows", self.windows),
            ("--context", self.context),
            ("--following", self.following),
            ("--chunk", self.chunk),
        ])?;
        self.pages.check()?;
        self.protect.all_used(given, &self.policies, &self.ratios)?;
        let ways = self.ways()?;
        let text = read_text(&self.text)?;
        with_model!(self.model, |loaded| self.measure(&loaded, &text, &ways, &results))
    }

    fn measure<R: Runner>(
        &self,
        loaded: &Loaded<R>,
        text: &str,
        ways: &[Way],
        results: &Results,
    ) -> Result<(), CliError> {
        let tokens = loaded.tokenizer.encode_plain(text)?;
        // Where the model wants it, every window begins with a BOS, which is one of its tokens.
        let begin = loaded.tokenizer.begin();
        // The last token fed needs one more to predict.
        let span = self.context.saturating_add(self.following);
        let stride = span - usize::from(begin.is_some());
        let starts = (0..tokens.len().saturating_sub(stride)).step_by(stride);
        let starts: Vec<usize> = starts.take(self.windows).collect();
        if starts.is_empty() {
            let (found, needed) = (tokens.len(), stride.saturating_add(1));
            return Err(EngineError::TextTooShort { found, needed }.into());
        }
        let config = self.pages.config(loaded.model.shape(), Capacity::Tokens(0));
        let work = starts.len() * (self.context + (ways.len() + 1) * self.following);
        let bar = progress::bar("continuation", "tokens", work);
        let mut saturated = 0;
        let mut full = QualitySum::default();
        let mut sums = vec![QualitySum::default(); ways.len()];
        for &start in &starts {
            let scorer = self.protect.scorer(ScorerKind::KvCompress)?;
            let text = &tokens[start..=start + stride];
            let window: Vec<u32> = begin.into_iter().chain(text.iter().copied()).collect();
            let each = |done| bar.inc(done as u64);
            let (model, context) = (&loaded.model, self.context);
            let mut window = eval::Continuation::new(
                model, &config, &window, context, self.chunk, scorer, each,
            )?;
            full.add(&window.full());
            bar.inc(self.following as u64);
            for (way, sum) in ways.iter().zip(&mut sums) {
                sum.add(&window.measure(&way.compression)?);
                bar.inc(self.following as u64);
            }
            saturated += window.cache().saturated()?;
        }
        bar.finish_and_clear();
        self.pages.check_saturated(saturated, results)?;

        let full = full.mean();
        let mut rows = vec![row(None, 1.0, full, full)];
        for (way, sum) in ways.iter().zip(&sums) {
            rows.push(row(Some(way.policy), way.ratio, sum.mean(), full));
        }
        results.print(self.table(&rows))?;
        results.write_json(&Measured {
            model: loaded.name(),
            format: self.pages.format.to_string(),
            context: self.context,
            following: self.following,
            windows: starts.len(),
            saturated,
            rows,
        })
    }

    /// Every policy at every ratio.
    fn ways(&self) -> Result<Vec<Way>, CliError> {
        let pairs = (self.policies.iter())
            .flat_map(|&policy| self.ratios.iter().map(move |&ratio| (policy, ratio)));
        pairs
            .map(|(policy, ratio)| {
                let compression = self.protect.compression(policy, Budget::Ratio(ratio))?;
                Ok(Way { policy, ratio, compression })
            })
            .collect()
    }

    fn table(&self, rows: &[Row]) -> String {
        let heading = ["policy", "ratio", "ppl", "change", "KL", "top-1", "slots", "KV bytes"];
        let mut lines = vec![heading.map(str::to_owned).to_vec()];
        for row in rows {
            lines.push(vec![
                row.policy.map_or("full cache".to_owned(), |policy| policy.to_string()),
                format!("{}x", row.ratio),
                format!("{:.3}", row.perplexity),
                format!("{:+.2}%", 100.0 * row.perplexity_change),
                format!("{:.4}", row.quality.kl),
                format!("{:.1}%", 100.0 * row.quality.top1),
                row.quality.slots.to_string(),
                Bytes(row.quality.bytes).to_string(),
            ]);
        }
        table(&lines)
    }
}

fn row(policy: Option<ScorerKind>, ratio: f64, quality: Quality, full: Quality) -> Row {
    let perplexity = quality.nll.exp();
    let perplexity_change = (quality.nll - full.nll).exp() - 1.0;
    Row { policy, ratio, perplexity, perplexity_change, quality }
}
