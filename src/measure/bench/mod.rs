//! What `headwise bench-gpu` measures: whether a device's results are right, then how fast each kernel
//! reads and writes memory next to a plain copy on the same device.
//!
//! Decode runs over a grid of lengths, batches and formats, with all heads alike and with ragged heads
//! of the same bytes in all. Times are of the device (events around several launches), the median of
//! several samples. Data sets rotate, so that no launch finds the last one's pages in the cache.

mod arena;
mod clock;
mod correct;
mod decode;
mod measure;
mod movers;
mod scores;
mod table;

use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use self::{clock::Clock, measure::page_memory};
use super::verify::{AttentionErrors, VerifyError};
use crate::{
    base::{CacheShape, ShapeError},
    cuda::{CudaError, CudaVersion, DeviceInfo, driver::Stream},
    device::{DeviceError, Kernels, kernels::MOST_HEAD_DIM},
    format::{LayoutError, PageFormat, PageLayout},
};

/// How much of the benchmark runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BenchScope {
    /// The checks, then everything that is measured.
    All,
    /// The checks alone.
    Checks,
    /// Decode alone, unchecked: for profilers.
    Decode,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchPlan {
    /// How much of it.
    pub scope: BenchScope,
    /// Channels of a head.
    pub head_dim: usize,
    /// KV heads of the layer.
    pub kv_heads: usize,
    /// Query heads that read a KV head.
    pub group: usize,
    /// f16 slots of a page; other formats hold what fits in as many bytes.
    pub page_slots: usize,
    /// Page formats.
    pub formats: Vec<PageFormat>,
    /// Slots of a head, or their mean where heads are ragged.
    pub lengths: Vec<usize>,
    /// Sequences decoded at once.
    pub batches: Vec<usize>,
    /// The most bytes of pages in any case, in bytes, on a device that has the memory; larger cases are
    /// left out and listed.
    pub most_bytes: usize,
}

impl Default for BenchPlan {
    /// A layer of Llama-3.1-8B: 1k to 128k tokens, 1 to 64 sequences.
    fn default() -> Self {
        Self {
            scope: BenchScope::All,
            head_dim: 128,
            kv_heads: 8,
            group: 4,
            page_slots: 16,
            formats: crate::format::SlotFormat::ALL.iter().map(|&f| PageFormat::both(f)).collect(),
            lengths: vec![1 << 10, 4 << 10, 16 << 10, 32 << 10, 128 << 10],
            batches: vec![1, 8, 64],
            most_bytes: 40 << 30,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The device.
    pub device: DeviceInfo,
    /// The newest CUDA version that its driver supports.
    pub driver: CudaVersion,
    /// The compiler's version.
    pub nvrtc: CudaVersion,
    /// What was asked for.
    pub plan: BenchPlan,
    /// Each check that was made, before any measurement.
    pub checks: Vec<Check>,
    /// A copy on the device, bytes read and written, in GB/s: what the shares are shares of.
    pub copy_gbps: f64,
    /// Decode attention.
    pub decode: Vec<DecodeRow>,
    /// The most bytes of pages in any case: what was asked for, or what the device had free.
    pub most_bytes: usize,
    /// Cases that would not fit, and why.
    pub left_out: Vec<String>,
    /// The other kernels.
    pub movers: Vec<MoverRow>,
}

impl BenchReport {
    /// Whether every check passed.
    pub fn right(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }
}

/// Something that had to be right.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The kernels that it is about.
    pub what: &'static str,
    /// Pages, heads.
    pub case: String,
    /// Whether it was.
    pub passed: bool,
    /// The largest errors against the f64 reference, where results are not equal byte for byte.
    pub errors: Option<AttentionErrors>,
    /// What was wrong.
    pub problem: Option<String>,
}

/// One decode measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodeRow {
    /// Page format.
    pub format: PageFormat,
    /// Slots of a head, or their mean.
    pub length: usize,
    /// Sequences.
    pub batch: usize,
    /// Whether heads differ in length.
    pub ragged: bool,
    /// Whether the copy engine brings the pages.
    pub bulk: bool,
    /// Stored bytes of all slots in use, K and V with their scales.
    pub bytes: usize,
    /// Median time of a launch (decode and merge), in microseconds.
    pub micros: f64,
    /// `bytes` over that time, in GB/s.
    pub gbps: f64,
    /// Of the measured copy.
    pub share: f64,
}

/// One measurement of another kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MoverRow {
    /// The kernel.
    pub kernel: &'static str,
    /// Page format.
    pub format: PageFormat,
    /// What it worked on.
    pub case: String,
    /// Bytes that it must read and write at least once.
    pub bytes: usize,
    /// Median time of a launch, in microseconds.
    pub micros: f64,
    /// `bytes` over that time, in GB/s.
    pub gbps: f64,
    /// Of the measured copy.
    pub share: f64,
    /// Arithmetic of attention (two per multiply-add), in TFLOP/s, where it is what counts.
    pub tflops: Option<f64>,
}

/// How far the benchmark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchEvent {
    /// There are so many parts.
    Parts(usize),
    /// One of them is done.
    Done,
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The device, the driver or the compiler.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A check could not be made.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A page that cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Heads that make no shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Heads that the kernels are not made for.
    #[error("the kernels take head_dim up to {MOST_HEAD_DIM}, not {0}")]
    HeadDim(usize),
    /// A list with nothing in it, or a zero in one.
    #[error("there is nothing to measure: {0}")]
    Empty(&'static str),
}

impl From<CudaError> for BenchError {
    fn from(error: CudaError) -> Self {
        DeviceError::from(error).into()
    }
}

/// Checks, then measures, on the kernels' device.
///
/// # Errors
/// Where a check fails nothing is measured and the report says which; it is no error of this function.
pub fn bench(
    kernels: &Arc<Kernels>,
    plan: &BenchPlan,
    progress: &dyn Fn(BenchEvent),
) -> Result<BenchReport, BenchError> {
    let shape = plan.check()?;
    let context = kernels.context();
    let cases = decode::cases(plan);
    progress(BenchEvent::Parts(correct::PARTS + cases.len() + plan.formats.len()));
    let mut report = BenchReport {
        device: context.info().clone(),
        driver: context.driver_version(),
        nvrtc: kernels.nvrtc(),
        plan: plan.clone(),
        checks: Vec::new(),
        copy_gbps: 0.0,
        decode: Vec::new(),
        most_bytes: plan.most_bytes,
        left_out: Vec::new(),
        movers: Vec::new(),
    };
    if plan.scope != BenchScope::Decode {
        report.checks = correct::checks(kernels, plan, shape, progress)?;
    }
    if plan.scope == BenchScope::Checks || !report.right() {
        return Ok(report);
    }
    let stream = Stream::new(context)?;
    let mut clock = Clock::new(stream)?;
    report.copy_gbps = clock.copy_gbps()?;
    report.most_bytes = plan.most_bytes.min(page_memory(context.memory()?.0));
    for &format in &plan.formats {
        let mine = cases.iter().filter(|case| case.format == format);
        report.measure(&mut clock, kernels, format, &mine.collect::<Vec<_>>(), progress)?;
    }
    report.fill_shares();
    Ok(report)
}

impl BenchPlan {
    /// The layer's shape, if all of the plan can be measured.
    ///
    /// # Errors
    /// [`BenchError::Empty`] for a list with nothing in it or a zero in one; heads that make no shape;
    /// pages that cannot be laid out.
    pub fn check(&self) -> Result<CacheShape, BenchError> {
        if self.formats.is_empty() {
            return Err(BenchError::Empty("no format"));
        }
        for (list, what) in [(&self.lengths, "no length"), (&self.batches, "no batch")] {
            if list.is_empty() || list.contains(&0) {
                return Err(BenchError::Empty(what));
            }
        }
        if self.head_dim > MOST_HEAD_DIM {
            return Err(BenchError::HeadDim(self.head_dim));
        }
        let query_heads = self.kv_heads.saturating_mul(self.group);
        let shape = CacheShape::new(1, self.kv_heads, query_heads, self.head_dim)?;
        self.formats.iter().try_for_each(|&format| self.layout(format).map(drop))?;
        Ok(shape)
    }

    /// The layout of one format's pages.
    fn layout(&self, format: PageFormat) -> Result<PageLayout, LayoutError> {
        let f16 = PageFormat::default();
        let bytes = PageLayout::page_bytes_for(f16, self.head_dim, self.page_slots)?;
        PageLayout::new(format, self.head_dim, bytes)
    }
}

impl BenchReport {
    fn fill_shares(&mut self) {
        let copy = self.copy_gbps;
        self.decode.iter_mut().for_each(|row| row.share = row.gbps / copy);
        self.movers.iter_mut().for_each(|row| row.share = row.gbps / copy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SlotFormat;

    #[test]
    fn heads_that_are_too_wide_are_refused_before_anything_is_compiled() {
        let plan = BenchPlan { head_dim: 512, ..BenchPlan::default() };
        let error = plan.check().unwrap_err().to_string();
        assert_eq!(error, "the kernels take head_dim up to 256, not 512");
        assert!(BenchPlan { head_dim: 256, ..plan }.check().is_ok());
    }

    /// Every kernel finds its page ids in the arena, however many heads there are.
    #[test]
    fn arenas_have_the_pages_of_every_kernel() {
        for kv_heads in [1, 8, 512] {
            for format in SlotFormat::ALL.iter().map(|&format| PageFormat::both(format)) {
                let plan = BenchPlan { kv_heads, ..BenchPlan::default() };
                let layout = plan.layout(format).unwrap();
                let pages = movers::page_bytes(&layout, &plan) / layout.page_bytes;
                // A prefill reads 8,192 slots of each head.
                assert!(pages >= kv_heads * 8192usize.div_ceil(layout.slots), "{format}");
            }
        }
    }
}
