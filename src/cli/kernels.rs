//! `headwise kernels`: devices, and what each CUDA kernel needs.

use std::sync::OnceLock;

use clap::Args;
use indicatif::ProgressBar;

use super::{
    args::JsonArgs,
    error::CliError,
    output::Results,
    progress::{bar, fetching},
    setup::artifact_inputs,
};
use crate::{
    cuda::{Arch, KernelCache, nvrtc::Nvrtc},
    device::kernels::{MOST_HEAD_DIM, Terms},
    fetch::{CacheDir, NVRTC},
    format::PageFormat,
    measure::report::{ReportEvent, ReportShape, kernels_report},
};

/// List the CUDA devices, compile the CUDA kernels and report what each needs.
#[derive(Args)]
pub(super) struct Kernels {
    /// Architecture to compile for, sm_80 or newer.
    #[arg(long, default_value = "sm_90")]
    arch: Arch,
    /// Channels of a head: a multiple of 16 up to 256.
    #[arg(long, default_value_t = 128)]
    head_dim: usize,
    /// Query heads that read a KV head.
    #[arg(long, default_value_t = 4)]
    group: usize,
    /// Page formats, separated by spaces: f32, f16, bf16, i8 or k=FORMAT,v=FORMAT; without it each
    /// of the four.
    #[arg(long, num_args = 1..)]
    format: Vec<PageFormat>,
    /// Compile for layers with attention windows.
    #[arg(long)]
    window: bool,
    /// Compile for layers with logit soft caps.
    #[arg(long)]
    softcap: bool,
    /// Compile for layers with sink logits.
    #[arg(long)]
    sink_logits: bool,
    #[command(flatten)]
    json: JsonArgs,
}

impl Kernels {
    pub fn run(self) -> Result<(), CliError> {
        let results =
            Results::to(self.json.path(), None, &artifact_inputs("the compiler", &NVRTC)?)?;
        let shape = self.shape()?;
        let nvrtc = fetching(Nvrtc::open_or_fetch)?;
        let cache = KernelCache::within(&CacheDir::from_env()?);
        let shown: OnceLock<ProgressBar> = OnceLock::new();
        let report =
            kernels_report(self.arch, &shape, &nvrtc, Some(&cache), &|event| match event {
                ReportEvent::Files(files) => {
                    shown.get_or_init(|| bar("compiling kernels", "files", files));
                }
                ReportEvent::Compiled => shown.get().into_iter().for_each(|bar| bar.inc(1)),
            });
        shown.get().into_iter().for_each(ProgressBar::finish_and_clear);
        let report = report?;
        results.print(format!("{report}\n"))?;
        results.write_json(&report)
    }

    fn shape(&self) -> Result<ReportShape, CliError> {
        let refuse = |reason: String| Err(CliError::Usage(reason));
        if self.arch < Arch::OLDEST {
            let (arch, oldest) = (self.arch, Arch::OLDEST);
            return refuse(format!("the kernels need {oldest} or newer, not {arch}"));
        }
        if !self.head_dim.is_multiple_of(16) || !(16..=MOST_HEAD_DIM).contains(&self.head_dim) {
            let head_dim = self.head_dim;
            return refuse(format!(
                "--head-dim {head_dim} is no multiple of 16 up to {MOST_HEAD_DIM}"
            ));
        }
        if !(1..=MOST_GROUP).contains(&self.group) {
            return refuse(format!("--group {} is not from 1 to {MOST_GROUP}", self.group));
        }
        let Self { head_dim, group, window, softcap, sink_logits, .. } = *self;
        let terms = Terms { window, softcap, sink_logits };
        let mut shape = ReportShape { head_dim, group, terms, ..ReportShape::default() };
        if !self.format.is_empty() {
            shape.formats.clone_from(&self.format);
        }
        Ok(shape)
    }
}

/// Query heads of a KV head in the widest multi-query models, and room to spare.
const MOST_GROUP: usize = 128;
