//! `headwise generate`: text from a prompt.

use std::{path::PathBuf, time::Instant};

use clap::Args;
use serde::Serialize;

use super::{
    args::{CompressArgs, JsonArgs, ModelArgs, PageArgs, above_zero},
    error::CliError,
    given::Given,
    input::{read_stdin, read_text},
    output::{Input, Results},
    place::with_model,
    setup::Loaded,
};
use crate::{
    cache::Capacity,
    engine::{
        EngineError, Runner, Sampler, Strategy,
        serve::{
            Completion, CompressionPlan, Finish, Request, Scheduler, ServeOptions, ServeStats,
            StopStrings,
        },
    },
    report::{Bytes, MemoryReport},
};

/// What is asked, once it is known to be sound.
struct Asked {
    text: String,
    compression: Option<CompressionPlan>,
    strategy: Strategy,
    stop_strings: StopStrings,
}

/// Generate text from a prompt, through pages that are evicted head by head.
#[derive(Args)]
pub(super) struct Generate {
    /// The prompt. `-` reads it from standard input.
    #[arg(
        long,
        required_unless_present = "prompt_file",
        conflicts_with = "prompt_file",
        allow_hyphen_values = true
    )]
    prompt: Option<String>,
    /// A file with the prompt.
    #[arg(long, value_name = "PATH")]
    prompt_file: Option<PathBuf>,
    /// Take control tokens written out in the prompt (`<|im_start|>`) as such; without it they are
    /// text like any other.
    #[arg(long)]
    control_tokens: bool,
    /// Most tokens to generate.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Temperature; 0 takes the most likely token.
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true)]
    temperature: f32,
    /// The most likely tokens that hold this much of the probability.
    #[arg(long, default_value_t = 1.0, allow_hyphen_values = true)]
    top_p: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Text that ends the answer, which is cut off before it; may be given more than once.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Let the answer end with the stop text that came.
    #[arg(long)]
    keep_stop: bool,
    /// Most prompt tokens in one step.
    #[arg(long, default_value_t = 256)]
    chunk: usize,
    /// KV memory in MiB; without it, enough for the uncompressed prompt and answer.
    #[arg(long, value_name = "MIB")]
    memory: Option<usize>,
    #[command(flatten)]
    compress: CompressArgs,
    #[command(flatten)]
    pages: PageArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Serialize)]
struct Generated {
    text: String,
    prompt_tokens: usize,
    tokens: Vec<u32>,
    finish: Finish,
    seconds: f64,
    stats: ServeStats,
    memory: Option<MemoryReport>,
}

impl Generate {
    pub fn run(self, given: &Given) -> Result<(), CliError> {
        let mut inputs = self.model.inputs()?;
        inputs.push(self.input());
        let results = Results::to(self.json.path(), None, &inputs)?;
        above_zero([("--max-tokens", self.max_tokens), ("--chunk", self.chunk)])?;
        above_zero([("--memory", self.memory.unwrap_or(1))])?;
        self.pages.check()?;
        let compression = self.compress.plan(given)?;
        let strategy = self.strategy(given)?;
        let stop_strings = self.stop_strings(given)?;
        let text = self.text()?;
        let asked = Asked { text, compression, strategy, stop_strings };
        with_model!(self.model, |loaded| self.answer(&loaded, asked, &results))
    }

    fn answer<R: Runner>(
        &self,
        loaded: &Loaded<R>,
        asked: Asked,
        results: &Results,
    ) -> Result<(), CliError> {
        let Asked { text, compression, strategy, stop_strings } = asked;
        let prompt = match self.control_tokens {
            true => loaded.tokenizer.encode_prompt(&text)?,
            false => loaded.tokenizer.encode_plain_prompt(&text)?,
        };
        let prompt_tokens = prompt.len();
        let capacity = match self.memory {
            Some(mib) => Capacity::Bytes(mib.saturating_mul(1 << 20)),
            // The last token generated is not run.
            None => {
                let tokens = prompt_tokens.saturating_add(self.max_tokens - 1);
                Capacity::Tokens(tokens.clamp(1, loaded.model.config().context))
            }
        };
        let cache = loaded.model.cache(&self.pages.config(loaded.model.shape(), capacity))?;
        let options = ServeOptions { chunk: self.chunk, compression, ..ServeOptions::default() };
        let scheduler = Scheduler::new(&loaded.model, cache, options)?;
        let mut scheduler = scheduler.with_tokenizer(&loaded.tokenizer);
        scheduler.submit(Request {
            prompt,
            max_new_tokens: self.max_tokens,
            strategy,
            seed: self.seed,
            stop: loaded.tokenizer.ends().collect(),
            stop_strings,
        })?;

        let start = Instant::now();
        let mut memory = None;
        let Completion { text, tokens, finish, .. } = loop {
            let progress = scheduler.step()?;
            for (_, piece) in &progress.text {
                results.print(piece)?;
            }
            if scheduler.sequences().next().is_some() {
                memory = Some(MemoryReport::of(scheduler.cache(), scheduler.sequences())?);
            }
            if let Some(completion) = progress.completed.into_iter().next() {
                break completion;
            }
        };
        results.print("\n")?;
        if let Finish::Failed(error) = finish {
            return Err(CliError::Request(error));
        }
        self.pages.check_saturated(scheduler.cache().saturated()?, results)?;
        let seconds = start.elapsed().as_secs_f64();
        let stats = scheduler.stats();
        let page_bytes = scheduler.cache().layouts().of(0).page_bytes;
        results.note(format!(
            "{prompt_tokens} prompt tokens, {} generated, {seconds:.1} s; peak KV {}, {} evicted\n",
            stats.generated_tokens,
            Bytes(stats.peak_pages * page_bytes),
            Bytes(stats.pages_evicted * page_bytes),
        ));
        results.write_json(&Generated {
            text,
            prompt_tokens,
            tokens,
            finish,
            seconds,
            stats,
            memory,
        })
    }

    /// How tokens are drawn, if that can be.
    fn strategy(&self, given: &Given) -> Result<Strategy, CliError> {
        let draws = self.temperature != 0.0;
        given.all_used(&[(&["--top-p", "--seed"], draws, "at --temperature 0")])?;
        let strategy = match self.temperature {
            0.0 => Strategy::Greedy,
            temperature => Strategy::Nucleus { temperature, top_p: self.top_p },
        };
        Sampler::new(strategy, self.seed)?;
        Ok(strategy)
    }

    /// The texts that end the answer.
    fn stop_strings(&self, given: &Given) -> Result<StopStrings, CliError> {
        given.all_used(&[(&["--keep-stop"], !self.stop.is_empty(), "without --stop")])?;
        let stops = StopStrings::new(self.stop.iter().cloned()).map_err(EngineError::from)?;
        Ok(if self.keep_stop { stops.kept() } else { stops })
    }

    fn reads_stdin(&self) -> bool {
        self.prompt.as_deref() == Some("-")
    }

    fn input(&self) -> Input {
        match &self.prompt_file {
            Some(path) => Input::file("the prompt of --prompt-file", path),
            None if self.reads_stdin() => Input::stdin("the prompt on standard input"),
            None => Input::none("the prompt"),
        }
    }

    fn text(&self) -> Result<String, CliError> {
        match (&self.prompt, &self.prompt_file) {
            (_, Some(path)) => read_text(path),
            (Some(_), None) if self.reads_stdin() => read_stdin(),
            (Some(prompt), None) => Ok(prompt.clone()),
            (None, None) => Err(CliError::Usage("a prompt is needed".into())),
        }
    }
}
