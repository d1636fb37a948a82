//! `headwise bench-gpu`: is a device right, and how fast is it.

use std::sync::{Arc, OnceLock};

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;

use super::{
    args::{JsonArgs, above_zero, at_most},
    error::CliError,
    given::Given,
    output::Results,
    progress::{bar, fetching},
    setup::artifact_inputs,
};
use crate::{
    cuda::{
        KernelCache,
        driver::{Context, Driver},
        nvrtc::Nvrtc,
    },
    device::Kernels,
    fetch::{CacheDir, NVRTC},
    format::PageFormat,
    measure::bench::{BenchEvent, BenchPlan, BenchScope, bench},
};

/// Check the kernels on a CUDA device against the reference, then measure each next to a plain copy.
#[derive(Args)]
pub(super) struct BenchGpu {
    /// Which device.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Slots of a head, comma-separated.
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    lengths: Vec<usize>,
    /// Sequences decoded at once, comma-separated.
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    batches: Vec<usize>,
    /// Page formats, separated by spaces: f32, f16, bf16, i8 or k=FORMAT,v=FORMAT; without it each
    /// of the four.
    #[arg(long, num_args = 1..)]
    format: Vec<PageFormat>,
    /// Channels of a head.
    #[arg(long, default_value_t = 128)]
    head_dim: usize,
    /// KV heads of the layer.
    #[arg(long, default_value_t = 8)]
    kv_heads: usize,
    /// Query heads that read a KV head.
    #[arg(long, default_value_t = 4)]
    group: usize,
    /// Tokens of one head that a page holds in f16.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    block_tokens: usize,
    /// Leave out cases whose pages take more device memory than this, in GiB, or than the device has.
    #[arg(long, value_name = "GIB", default_value_t = 40)]
    memory: usize,
    /// Run a part: the checks alone, or decode alone and unchecked, as for a profiler.
    #[arg(long, value_enum)]
    only: Option<Only>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Only {
    Checks,
    Decode,
}

impl BenchGpu {
    pub fn run(self, given: &Given) -> Result<(), CliError> {
        let results =
            Results::to(self.json.path(), None, &artifact_inputs("the compiler", &NVRTC)?)?;
        self.check_flags(given)?;
        let plan = self.plan();
        plan.check()?;
        // The device first: without one, no compiler needs to be fetched.
        let context = Driver::open().and_then(|driver| Context::new(&driver, self.device))?;
        let nvrtc = fetching(Nvrtc::open_or_fetch)?;
        let cache = KernelCache::within(&CacheDir::from_env()?);
        let kernels = Arc::new(Kernels::new(&context, nvrtc, Some(cache)));
        let shown: OnceLock<ProgressBar> = OnceLock::new();
        let report = bench(&kernels, &plan, &|event| match event {
            BenchEvent::Parts(parts) => {
                shown.get_or_init(|| bar("measuring", "parts", parts));
            }
            BenchEvent::Done => shown.get().into_iter().for_each(|bar| bar.inc(1)),
        });
        shown.get().into_iter().for_each(ProgressBar::finish_and_clear);
        let report = report?;
        results.print(report.to_string())?;
        results.write_json(&report)?;
        if report.right() { Ok(()) } else { Err(CliError::WrongResults) }
    }

    /// Refuses flags that do nothing, and counts far beyond what any device holds, with which nothing
    /// would be measured.
    fn check_flags(&self, given: &Given) -> Result<(), CliError> {
        let measures = !matches!(self.only, Some(Only::Checks));
        let grid = ["--lengths", "--batches", "--memory"];
        given.all_used(&[(&grid, measures, "with --only checks, which measures nothing")])?;
        above_zero([("--memory", self.memory)])?;
        let most = |values: &[usize]| values.iter().copied().max().unwrap_or(0);
        at_most(1 << 24, [("--lengths", most(&self.lengths))])?;
        at_most(1 << 16, [("--batches", most(&self.batches)), ("--memory", self.memory)])?;
        at_most(1 << 10, [("--kv-heads", self.kv_heads), ("--group", self.group)])
    }

    fn plan(&self) -> BenchPlan {
        let mut plan = BenchPlan {
            scope: match self.only {
                None => BenchScope::All,
                Some(Only::Checks) => BenchScope::Checks,
                Some(Only::Decode) => BenchScope::Decode,
            },
            head_dim: self.head_dim,
            kv_heads: self.kv_heads,
            group: self.group,
            page_slots: self.block_tokens,
            most_bytes: self.memory.saturating_mul(1 << 30),
            ..BenchPlan::default()
        };
        if !self.lengths.is_empty() {
            plan.lengths.clone_from(&self.lengths);
        }
        if !self.batches.is_empty() {
            plan.batches.clone_from(&self.batches);
        }
        if !self.format.is_empty() {
            plan.formats.clone_from(&self.format);
        }
        plan
    }
}
