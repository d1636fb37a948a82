//! Throughput by compression rate, in fixed KV memory.

use std::{collections::BTreeMap, time::Instant};

use rayon::prelude::*;

use super::{
    cache::{Cache, CacheSetup, Memory, Tables},
    error::ServingError,
    evict::Evicted,
    model::{Model, Weights, fill},
    phases::{Phase, Phases},
    prompt::Prompt,
    report::{HostTime, PAPER_H100, PAPER_L4, Run, ServingReport},
    shape::ModelShape,
};
use crate::{
    cuda::{
        Staging,
        cublas::Gemm,
        driver::{DeviceBuffer, Event, Stream},
    },
    device::{Kernels, eviction::SlotData},
    evict::Policy,
    format::{PageFormat, PageLayout},
    store::{HostStore, PageStore, Rows, TablePages},
};

/// Steps of a plan.
const WINDOW: usize = 16;
/// Steps before those that are timed: a plan that fills the tables, and one as all later ones are.
const WARM_UP: usize = 2 * WINDOW;
/// Prompts that differ; sequences take turns at them.
const PROMPTS: usize = 4;
/// Pages of random rows that are copied over the arena.
const BLOCK_PAGES: usize = 64;
/// Slots of the staging ring, and their bytes.
const STAGING: (usize, usize) = (6, 8 << 20);

/// What is measured.
#[derive(Clone, Debug)]
pub struct CurveConfig {
    /// The model.
    pub model: ModelShape,
    /// Layers with weights of their own; the others share them.
    pub distinct_layers: usize,
    /// Format of the pages.
    pub format: PageFormat,
    /// Slots of a page.
    pub page_slots: usize,
    /// KV memory, in bytes.
    pub kv_bytes: usize,
    /// The most sequences at once.
    pub batch_cap: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Steps to time, rounded up to whole plans.
    pub steps: usize,
    /// Steps between evictions, rounded up to whole plans.
    pub evict_every: usize,
    /// Score one in so many steps.
    pub score_every: u32,
    /// Compression rates, from 1 up.
    pub rates: Vec<f64>,
}

impl CurveConfig {
    fn timed_steps(&self) -> usize {
        self.steps.max(1).next_multiple_of(WINDOW)
    }

    fn between_evictions(&self) -> usize {
        self.evict_every.max(1).next_multiple_of(WINDOW).min(self.timed_steps())
    }

    /// The longest a sequence gets: the warm-up, then what is timed.
    fn longest(&self) -> usize {
        self.prompt + WARM_UP + self.timed_steps()
    }

    fn pages(&self, tokens: usize) -> usize {
        self.model.heads() * tokens.div_ceil(self.page_slots)
    }

    /// Pages that a sequence holds at most at a rate.
    fn most_pages(&self, rate: f64) -> usize {
        let whole = self.pages(self.longest());
        if rate <= 1.0 {
            return whole;
        }
        // What the budget leaves, and what heads grow by before the next eviction; each may be in the
        // middle of a page.
        let grown = self.between_evictions() + WARM_UP;
        let kept = (whole as f64 / rate) as usize;
        (kept + self.model.heads() * (grown.div_ceil(self.page_slots) + 1)).min(whole)
    }

    /// Sequences that run at once in `pages` pages.
    fn sequences(&self, rate: f64, pages: usize) -> usize {
        (pages / self.most_pages(rate)).min(self.batch_cap)
    }
}

/// What all runs share.
struct Bench<'a, G> {
    config: &'a CurveConfig,
    layout: PageLayout,
    kernels: &'a Kernels,
    stream: &'a Stream,
    staging: Staging,
    memory: Memory,
    weights: Weights,
    gemm: &'a G,
    /// Pages that sequences may hold together.
    pages: usize,
}

/// Measures the baseline (one table for all heads of a sequence, no scores), per-head tables without
/// scores at 1x, and per-head tables with scores at each rate. `progress` is told what begins.
///
/// # Errors
/// Missing memory, a device that fails, a rate at which no sequence fits.
pub fn curve<G: Gemm>(
    config: &CurveConfig,
    kernels: &Kernels,
    gemm: &G,
    stream: &Stream,
    progress: &mut dyn FnMut(&str),
) -> Result<ServingReport, ServingError> {
    let model = config.model;
    let page_bytes = PageLayout::page_bytes_for(config.format, model.head_dim, config.page_slots)?;
    let layout = PageLayout::new(config.format, model.head_dim, page_bytes)?;
    if layout.slots != config.page_slots {
        let (asked, got) = (config.page_slots, layout.slots);
        return Err(ServingError::Config(format!(
            "pages of {asked} slots would hold {got}: choose {got}"
        )));
    }
    let pages = config.kv_bytes / page_bytes;
    for &rate in config.rates.iter().chain([&1.0]) {
        if config.sequences(rate, pages) == 0 {
            let needed = config.most_pages(rate) * page_bytes;
            return Err(ServingError::TooLittleMemory { bytes: config.kv_bytes, rate, needed });
        }
    }
    progress("filling weights and pages");
    let mut staging = Staging::new(kernels.context(), STAGING.0, STAGING.1)?;
    let weights = Weights::new(&model, config.distinct_layers, &mut staging, stream)?;
    // Beside the KV memory there is room for one prompt that is not compressed yet: sequences are made
    // one after another, whole. (An engine that evicts between chunks of a prompt needs less.)
    let all = pages + config.pages(config.prompt);
    let mut arena = DeviceBuffer::new(kernels.context(), all * page_bytes)?;
    fill(&mut arena, &random_pages(&layout)?, &mut staging, stream)?;
    let data = SlotData::new(kernels.context(), all, layout.slots)?;
    let memory = Memory { arena, data, pages: all };
    stream.synchronize()?;
    let mut bench =
        Bench { config, layout, kernels, stream, staging, memory, weights, gemm, pages };

    let scores = |every| Tables::PerHead { scores: Some(every) };
    let mut runs = vec![bench.run(1.0, Tables::Shared, progress)?];
    runs.push(bench.run(1.0, Tables::PerHead { scores: None }, progress)?);
    if config.score_every > 1 {
        runs.push(bench.run(1.0, scores(1), progress)?);
    }
    for &rate in &config.rates {
        runs.push(bench.run(rate, scores(config.score_every), progress)?);
    }
    let baseline = (runs[0].tokens_per_second, runs[0].step_ms / runs[0].sequences as f64);
    runs.iter_mut().for_each(|run| run.relative = run.tokens_per_second / baseline.0);
    let overhead_percent = runs[1..]
        .iter()
        .filter(|run| run.rate == 1.0)
        .map(|run| {
            let per_token = run.step_ms / run.sequences as f64;
            (run.name.clone(), 100.0 * (per_token / baseline.1 - 1.0))
        })
        .collect();
    Ok(ServingReport {
        device: kernels.context().info().name.clone(),
        model,
        distinct_layers: config.distinct_layers,
        format: config.format,
        page_slots: config.page_slots,
        prompt: config.prompt,
        kv_bytes: pages * page_bytes,
        batch_cap: config.batch_cap,
        evict_every: config.between_evictions(),
        metadata_bytes: pages * layout.slots * (size_of::<u16>() + size_of::<u32>()),
        runs,
        overhead_percent,
        paper_l4: PAPER_L4.to_vec(),
        paper_h100: PAPER_H100.to_vec(),
    })
}

impl<G: Gemm> Bench<'_, G> {
    fn run(
        &mut self,
        rate: f64,
        tables: Tables,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Run, ServingError> {
        let config = self.config;
        let (name, score_every) = match tables {
            Tables::Shared => ("shared table".to_owned(), None),
            Tables::PerHead { scores: None } => ("per head".to_owned(), None),
            Tables::PerHead { scores: Some(1) } => ("per head, scores".to_owned(), Some(1)),
            Tables::PerHead { scores: Some(n) } => (format!("per head, scores 1/{n}"), Some(n)),
        };
        let sequences = config.sequences(rate, self.pages);
        progress(&format!("{name}, {rate}x: {sequences} sequences"));
        let (policy, heads) = (Policy::default(), config.model.heads());
        let prompts: Vec<Prompt> = (0..PROMPTS.min(sequences))
            .into_par_iter()
            .map(|i| {
                let seed = 100 + i as u64;
                Prompt::new(config.prompt, heads, self.layout.slots, rate, &policy, seed)
            })
            .collect::<Result<_, _>>()?;
        let prompts: Vec<&Prompt> = (0..sequences).map(|i| &prompts[i % prompts.len()]).collect();
        let (kernels, stream, staging) = (self.kernels, self.stream, &mut self.staging);
        let setup = CacheSetup { shape: config.model, layout: self.layout, tables };
        let memory = &mut self.memory;
        let mut cache = Cache::new(kernels, memory, setup, &prompts, staging, stream)?;
        let sizes = [sequences, config.longest() + 1];
        let model =
            Model::new(config.model, &self.weights, self.gemm, kernels, sizes, staging, stream)?;
        let held_bytes = cache.held_bytes();
        let lengths = prompts.iter().flat_map(|prompt| prompt.heads.iter().map(|h| h.slots));
        let (longest, all) = lengths.fold((0, 0), |(most, sum), n| (n.max(most), sum + n));

        let scored = |step: usize| step.is_multiple_of(score_every.unwrap_or(1) as usize);
        let (mut host, phases_ms) = warm_up(&mut cache, &model, config, staging, stream)?;
        let (steps, every) = (config.timed_steps(), config.between_evictions());
        let (begin, end) = (Event::timed(kernels.context())?, Event::timed(kernels.context())?);
        let mut done = Evicted::default();
        let (mut evictions, mut peak_bytes) = (0, cache.held_bytes());
        let mut off = Phases::default();
        let started = Instant::now();
        begin.record(stream)?;
        for window in 1..=steps / WINDOW {
            cache.plan(WINDOW, staging, stream)?;
            peak_bytes = peak_bytes.max(cache.held_bytes());
            for step in 0..WINDOW {
                let scored = scored(window * WINDOW + step);
                // SAFETY: the plan has the step; the model was made for these sequences and lengths.
                unsafe { model.step(&cache, scored, stream, &mut off) }?;
            }
            if rate > 1.0 && (window * WINDOW).is_multiple_of(every) {
                // What is queued before belongs to the steps.
                stream.synchronize()?;
                let from = Instant::now();
                let evicted = cache.evict(rate, &policy, staging, stream)?;
                host.evict_ms += from.elapsed().as_secs_f64() * 1e3 / steps as f64;
                done.pages += evicted.pages;
                done.moved += evicted.moved;
                evictions += 1;
            }
        }
        end.record(stream)?;
        stream.synchronize()?;
        let step_ms = started.elapsed().as_secs_f64() * 1e3 / steps as f64;
        Ok(Run {
            name,
            rate,
            per_head: tables != Tables::Shared,
            score_every,
            sequences,
            held_bytes,
            peak_bytes,
            ragged: longest as f64 * (sequences * heads) as f64 / all.max(1) as f64,
            steps,
            step_ms,
            device_ms: end.since(&begin)?.as_secs_f64() * 1e3 / steps as f64,
            tokens_per_second: sequences as f64 / step_ms * 1e3,
            relative: 1.0,
            phases_ms,
            host,
            evictions,
            pages_freed: done.pages,
            slots_moved: done.moved,
            saturated: cache.saturated(staging, stream)?,
        })
    }
}

/// Two plans' steps: host times with nothing queued before, and where one step's device time goes.
fn warm_up<G: Gemm>(
    cache: &mut Cache,
    model: &Model<'_, G>,
    config: &CurveConfig,
    staging: &mut Staging,
    stream: &Stream,
) -> Result<(HostTime, BTreeMap<Phase, f64>), ServingError> {
    const LAUNCHED: usize = 4;
    let mut host = HostTime::default();
    // Twelve phases of a layer, and a few around them.
    let marks = 16 * (config.model.layers + 1);
    let (mut off, mut on) = (Phases::default(), Phases::on(stream.context(), marks)?);
    for step in 0..WARM_UP {
        if step.is_multiple_of(WINDOW) {
            stream.synchronize()?;
            let started = Instant::now();
            cache.plan(WINDOW, staging, stream)?;
            host.plan_ms = started.elapsed().as_secs_f64() * 1e3 / WINDOW as f64;
        }
        // The last steps run as they will: the device is busy while its time is taken.
        let launched = (WINDOW..WINDOW + LAUNCHED).contains(&step);
        if launched {
            stream.synchronize()?;
        }
        let started = Instant::now();
        let phases = if step == WARM_UP - 1 { &mut on } else { &mut off };
        // SAFETY: the plan has the step; the model was made for these sequences and lengths.
        unsafe { model.step(cache, true, stream, phases) }?;
        if launched {
            host.launch_ms += started.elapsed().as_secs_f64() * 1e3 / LAUNCHED as f64;
        }
    }
    stream.synchronize()?;
    Ok((host, on.milliseconds()?))
}

/// Pages of random rows, as the format stores them.
fn random_pages(layout: &PageLayout) -> Result<Vec<u8>, ServingError> {
    let mut random = super::prompt::Random::new(7);
    let mut store = HostStore::new(BLOCK_PAGES, layout.page_bytes)?;
    let pages: Vec<u32> = (0..BLOCK_PAGES as u32).collect();
    let slots = BLOCK_PAGES * layout.slots;
    let [k, v] = [(); 2].map(|()| -> Vec<f32> {
        (0..slots * layout.channels.k).map(|_| 2.0 * random.uniform() as f32 - 1.0).collect()
    });
    let table = TablePages { pages: &pages, layout };
    let rows = |values| Rows::dense(values, layout.channels.k);
    store.append(table, 0, rows(&k), rows(&v))?;
    Ok(store.bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> CurveConfig {
        CurveConfig {
            model: ModelShape::LLAMA_8B,
            distinct_layers: 32,
            format: PageFormat::default(),
            page_slots: 16,
            kv_bytes: 24 << 30,
            batch_cap: 256,
            prompt: 6000,
            steps: 128,
            evict_every: 64,
            score_every: 4,
            rates: vec![1.0],
        }
    }

    #[test]
    fn sequences_at_once_follow_from_memory() {
        let config = config();
        let page_bytes = 16 * 128 * 2 * 2;
        let pages = config.kv_bytes / page_bytes;
        // 6,160 tokens at most: 385 pages of 256 heads, 770 MiB.
        assert_eq!(config.most_pages(1.0), 385 * 256);
        let at = |rate| config.sequences(rate, pages);
        assert_eq!((at(1.0), at(2.0), at(4.0)), (31, 61, 119));
        assert_eq!(at(64.0), 256);
        let small = CurveConfig { kv_bytes: 6 << 30, ..config.clone() };
        let rates = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
        let counts = rates.map(|rate| small.sequences(rate, pages / 4));
        assert_eq!(counts, [7, 15, 29, 55, 98, 161, 236]);
    }

    #[test]
    fn plans_are_whole_and_evictions_happen_within_the_run() {
        let config = CurveConfig { steps: 5, evict_every: 100, ..config() };
        assert_eq!((config.timed_steps(), config.between_evictions()), (16, 16));
        assert_eq!(config.longest(), 6000 + 48);
    }
}
