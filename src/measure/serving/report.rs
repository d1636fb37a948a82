//! What a serving benchmark found.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{phases::Phase, shape::ModelShape};
use crate::format::PageFormat;

/// Throughput against plain vLLM as the paper reports it (arXiv 2410.00161, prefill included), by
/// compression rate: Llama-3.1-8B on an L4.
pub const PAPER_L4: [(f64, f64); 7] =
    [(1.0, 1.38), (2.0, 2.00), (4.0, 2.54), (8.0, 3.44), (16.0, 3.90), (32.0, 4.93), (64.0, 5.18)];
/// The same for Llama-3.1-70B in FP8 on an H100.
pub const PAPER_H100: [(f64, f64); 7] =
    [(1.0, 0.77), (2.0, 1.01), (4.0, 1.51), (8.0, 1.80), (16.0, 2.06), (32.0, 2.12), (64.0, 2.14)];

/// Host time of a step, measured with nothing queued before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct HostTime {
    /// Milliseconds to queue a step's launches.
    pub launch_ms: f64,
    /// Milliseconds of planning: pages, tables, work; a plan's time over its steps.
    pub plan_ms: f64,
    /// Milliseconds of eviction, waiting for the device included, over the steps between two.
    pub evict_ms: f64,
}

/// One configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// What it is.
    pub name: String,
    /// The compression rate.
    pub rate: f64,
    /// Whether each head has a table of its own.
    pub per_head: bool,
    /// Of how many steps one adds to the scores of slots, if any does.
    pub score_every: Option<u32>,
    /// Sequences at once.
    pub sequences: usize,
    /// Bytes of pages that they held at the start.
    pub held_bytes: usize,
    /// The most that they held while timed.
    pub peak_bytes: usize,
    /// Slots of the longest head over the mean, at the start.
    pub ragged: f64,
    /// Steps that were timed.
    pub steps: usize,
    /// Milliseconds of a step by the clock on the wall, evictions included.
    pub step_ms: f64,
    /// The same by the device's events.
    pub device_ms: f64,
    /// Tokens in a second, by the clock on the wall.
    pub tokens_per_second: f64,
    /// Of the baseline's.
    pub relative: f64,
    /// Where the device's time of one step goes, in milliseconds; a step that is scored, if any is.
    pub phases_ms: BTreeMap<Phase, f64>,
    /// Where the host's goes.
    pub host: HostTime,
    /// Evictions while timed.
    pub evictions: usize,
    /// Pages they freed.
    pub pages_freed: usize,
    /// Slots they moved.
    pub slots_moved: usize,
    /// Keys and values of all steps, the first ones that are not timed among them, that the format could
    /// not hold, and that were saturated: with any, the run computed something else than the model.
    pub saturated: u64,
}

/// The whole curve.
#[derive(Clone, Debug, Serialize)]
pub struct ServingReport {
    /// The device.
    pub device: String,
    /// The model.
    pub model: ModelShape,
    /// Layers with weights of their own.
    pub distinct_layers: usize,
    /// Format of the pages.
    pub format: PageFormat,
    /// Slots of a page.
    pub page_slots: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// KV memory, in bytes.
    pub kv_bytes: usize,
    /// The most sequences at once.
    pub batch_cap: usize,
    /// Steps between evictions.
    pub evict_every: usize,
    /// Bytes beside the pages: scores and positions.
    pub metadata_bytes: usize,
    /// One table for all heads, no scores, 1x; then per-head tables by rate.
    pub runs: Vec<Run>,
    /// Time that per-head tables cost at 1x, in percent of the baseline's; then with scores too.
    pub overhead_percent: Vec<(String, f64)>,
    /// The paper's throughput against plain vLLM by rate: Llama-3.1-8B on an L4.
    pub paper_l4: Vec<(f64, f64)>,
    /// Llama-3.1-70B in FP8 on an H100.
    pub paper_h100: Vec<(f64, f64)>,
}
