//! What was measured.

use serde::Serialize;

use super::plan::BenchPlan;
use crate::{
    cuda::{CudaVersion, DeviceInfo},
    format::PageFormat,
    measure::verify::AttentionErrors,
};

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

impl BenchReport {
    pub(super) fn fill_shares(&mut self) {
        let copy = self.copy_gbps;
        self.decode.iter_mut().for_each(|row| row.share = row.gbps / copy);
        self.movers.iter_mut().for_each(|row| row.share = row.gbps / copy);
    }
}

/// How far the benchmark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchEvent {
    /// There are so many parts.
    Parts(usize),
    /// One of them is done.
    Done,
}
