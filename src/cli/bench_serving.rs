//! `headwise bench-serving`: decode throughput by compression rate, in fixed KV memory.

use clap::Args;

use super::{
    args::{JsonArgs, MOST_BLOCK_TOKENS, at_most},
    error::CliError,
    output::Results,
    progress::{fetching, spinner},
    setup::artifact_inputs,
    table::table,
};
use crate::{
    cuda::{
        KernelCache,
        cublas::CuBlas,
        driver::{Context, Driver, Stream},
        nvrtc::Nvrtc,
    },
    device::Kernels,
    fetch::{CacheDir, NVRTC},
    format::PageFormat,
    measure::serving::{CurveConfig, ModelShape, ServingReport, curve},
};

/// Decode throughput of a Llama-3.1-8B-shaped model by compression rate, in fixed KV memory.
///
/// Random weights through cuBLAS, the cache through headwise, on the first CUDA device. Decoding alone
/// is measured: prompts are in the cache when it starts.
#[derive(Args)]
pub(super) struct BenchServing {
    /// Layers of the model.
    #[arg(long, default_value_t = ModelShape::LLAMA_8B.layers)]
    layers: usize,
    /// Layers with weights of their own, the others share them; without it all.
    #[arg(long, value_name = "LAYERS")]
    distinct_layers: Option<usize>,
    /// Compression rates, from 1 up.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
        allow_hyphen_values = true
    )]
    rates: Vec<f64>,
    /// KV memory, in GiB.
    #[arg(long, value_name = "GIB", default_value_t = 24.0, allow_hyphen_values = true)]
    kv_gib: f64,
    /// The most sequences at once.
    #[arg(long, value_name = "SEQUENCES", default_value_t = 256)]
    batch_cap: usize,
    /// Tokens of a prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 6000)]
    prompt: usize,
    /// Decode steps to time at each rate.
    #[arg(long, default_value_t = 128)]
    steps: usize,
    /// Evict every this many steps.
    #[arg(long, value_name = "STEPS", default_value_t = 64)]
    every: usize,
    /// Score one in this many steps, which counts for as many.
    #[arg(long, value_name = "STEPS", default_value_t = 4)]
    score_every: u32,
    /// Slots of a page.
    #[arg(long, value_name = "SLOTS", default_value_t = 16)]
    page_slots: usize,
    /// Page format: f32, f16, bf16, i8, or k=FORMAT,v=FORMAT.
    #[arg(long, default_value = "f16")]
    format: PageFormat,
    #[command(flatten)]
    json: JsonArgs,
}

impl BenchServing {
    pub fn run(self) -> Result<(), CliError> {
        let results =
            Results::to(self.json.path(), None, &artifact_inputs("the compiler", &NVRTC)?)?;
        let config = self.config()?;
        let context = Context::new(&Driver::open()?, 0)?;
        let nvrtc = fetching(Nvrtc::open_or_fetch)?;
        let cache = KernelCache::within(&CacheDir::from_env()?);
        let kernels = Kernels::new(&context, nvrtc, Some(cache));
        let cublas = CuBlas::open(&context)?;
        let stream = Stream::new(&context)?;
        let bar = spinner("starting".into());
        let report = curve(&config, &kernels, &cublas, &stream, &mut |what| {
            bar.set_message(what.to_owned());
        });
        bar.finish_and_clear();
        let report = report?;
        results.print(text(&report))?;
        results.write_json(&report)
    }

    fn config(&self) -> Result<CurveConfig, CliError> {
        let refuse = |reason: String| Err(CliError::Usage(reason));
        for (name, value) in [
            ("--layers", self.layers),
            ("--distinct-layers", self.distinct_layers.unwrap_or(1)),
            ("--batch-cap", self.batch_cap),
            ("--prompt", self.prompt),
            ("--steps", self.steps),
            ("--every", self.every),
            ("--score-every", self.score_every as usize),
            ("--page-slots", self.page_slots),
        ] {
            if value == 0 {
                return refuse(format!("{name} 0 leaves nothing to measure"));
            }
        }
        // Far beyond what any device holds, and far from what arithmetic does.
        at_most(
            1 << 20,
            [
                ("--batch-cap", self.batch_cap),
                ("--prompt", self.prompt),
                ("--steps", self.steps),
                ("--every", self.every),
                ("--score-every", self.score_every as usize),
            ],
        )?;
        at_most(1 << 10, [("--layers", self.layers)])?;
        at_most(self.layers, [("--distinct-layers", self.distinct_layers.unwrap_or(1))])?;
        at_most(MOST_BLOCK_TOKENS, [("--page-slots", self.page_slots)])?;
        if let Some(rate) = self.rates.iter().find(|rate| !(1.0..=1e6).contains(*rate)) {
            return refuse(format!("a compression rate of {rate} is not from 1 up"));
        }
        if !(self.kv_gib > 0.0 && self.kv_gib <= 4096.0) {
            return refuse(format!("--kv-gib {} is no size of memory", self.kv_gib));
        }
        Ok(CurveConfig {
            model: ModelShape { layers: self.layers, ..ModelShape::LLAMA_8B },
            distinct_layers: self.distinct_layers.unwrap_or(self.layers),
            format: self.format,
            page_slots: self.page_slots,
            kv_bytes: (self.kv_gib * f64::from(1 << 30)) as usize,
            batch_cap: self.batch_cap,
            prompt: self.prompt,
            steps: self.steps,
            evict_every: self.every,
            score_every: self.score_every,
            rates: self.rates.clone(),
        })
    }
}

/// The report as people read it.
fn text(report: &ServingReport) -> String {
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    let heading = [
        "tables",
        "rate",
        "batch",
        "held GiB",
        "peak",
        "longest/mean",
        "ms/step",
        "device ms",
        "tokens/s",
        "relative",
        "L4 paper",
        "H100 paper",
    ];
    let paper = |curve: &[(f64, f64)], rate: f64, shown: bool| {
        let found = curve.iter().find(|(at, _)| shown && *at == rate);
        found.map_or(String::new(), |(_, ratio)| format!("{ratio:.2}x"))
    };
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(report.runs.iter().map(|run| {
        vec![
            run.name.clone(),
            format!("{}x", run.rate),
            run.sequences.to_string(),
            format!("{:.2}", gib(run.held_bytes)),
            format!("{:.2}", gib(run.peak_bytes)),
            format!("{:.1}", run.ragged),
            format!("{:.3}", run.step_ms),
            format!("{:.3}", run.device_ms),
            format!("{:.0}", run.tokens_per_second),
            format!("{:.2}x", run.relative),
            paper(&report.paper_l4, run.rate, run.score_every.is_some()),
            paper(&report.paper_h100, run.rate, run.score_every.is_some()),
        ]
    }));
    let mut parts = vec![
        ["tables", "rate", "device ms: products", "glue", "append", "attention", "score"]
            .iter()
            .chain(&["host ms: launch", "plan", "evict", "pages freed", "slots moved"])
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>(),
    ];
    parts.extend(report.runs.iter().map(|run| {
        use crate::measure::serving::Phase;
        let mut row = vec![run.name.clone(), format!("{}x", run.rate)];
        let phases = [Phase::Products, Phase::Glue, Phase::Append, Phase::Attention, Phase::Score];
        let spent = phases.map(|phase| run.phases_ms.get(&phase).copied().unwrap_or(0.0));
        let host = [run.host.launch_ms, run.host.plan_ms, run.host.evict_ms];
        row.extend(spent.iter().chain(&host).map(|ms| format!("{ms:.3}")));
        row.extend([run.pages_freed.to_string(), run.slots_moved.to_string()]);
        row
    }));
    let model = &report.model;
    let mut text = format!(
        "{}: {} layers, {} pages of {} slots, {:.1} GiB of KV memory, prompts of {} tokens, at most \
         {} sequences, eviction every {} steps; decoding alone (the paper's figures include prefill)\n",
        report.device,
        model.layers,
        report.format,
        report.page_slots,
        gib(report.kv_bytes),
        report.prompt,
        report.batch_cap,
        report.evict_every,
    );
    text.push_str(&table(&rows));
    text.push('\n');
    text.push_str(&table(&parts));
    for (name, percent) in &report.overhead_percent {
        text.push_str(&format!(
            "overhead at 1x, {name}: {percent:+.1} % of the shared table's time\n"
        ));
    }
    let saturated: u64 = report.runs.iter().map(|run| run.saturated).sum();
    text.push_str(&format!("keys and values that the pages could not hold: {saturated}\n"));
    let metadata = 100.0 * report.metadata_bytes as f64 / report.kv_bytes as f64;
    text.push_str(&format!("scores and positions: {metadata:.2} % of the KV memory\n"));
    text
}
