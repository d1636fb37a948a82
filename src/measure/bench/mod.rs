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
mod error;
mod measure;
mod movers;
mod plan;
mod report;
mod scores;
mod table;

use std::sync::Arc;

use self::{clock::Clock, measure::page_memory};
pub use self::{
    error::BenchError,
    plan::{BenchPlan, BenchScope},
    report::{BenchEvent, BenchReport, Check, DecodeRow, MoverRow},
};
use crate::{cuda::driver::Stream, device::Kernels};

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
        report.checks = correct::checks(kernels, plan, &shape, progress)?;
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
