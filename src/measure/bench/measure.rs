//! What is measured of one format, and what the device has no memory for.

use super::{
    arena::Arena,
    clock::Clock,
    decode,
    error::BenchError,
    movers,
    plan::BenchScope,
    report::{BenchEvent, BenchReport},
};
use crate::{
    cuda::CudaError,
    device::{DeviceError, Kernels},
    format::PageFormat,
    measure::verify::VerifyError,
};

/// Of `free` bytes of device memory, what pages may take: the rest is for scores and positions beside
/// them, for rows and for partial results.
pub(super) fn page_memory(free: usize) -> usize {
    const ROWS: usize = 2 << 30;
    (free - free / 8).saturating_sub(ROWS)
}

impl BenchReport {
    /// Times decode in the cases of one format, then the other kernels on its pages.
    pub(super) fn measure(
        &mut self,
        clock: &mut Clock,
        kernels: &Kernels,
        format: PageFormat,
        cases: &[&decode::Case],
        progress: &dyn Fn(BenchEvent),
    ) -> Result<(), BenchError> {
        let plan = self.plan.clone();
        let layout = plan.layout(format)?;
        let bytes_of = |case: &&decode::Case| case.page_bytes(&layout, &plan);
        let movers = movers::page_bytes(&layout, &plan);
        let all = plan.scope == BenchScope::All;
        let fits = |bytes: usize| bytes <= self.most_bytes;
        let decoded = cases.iter().map(bytes_of).filter(|&bytes| fits(bytes)).max().unwrap_or(0);
        let bytes = decoded.max(if all && fits(movers) { movers } else { 0 });
        let arena = kept(Arena::new(clock, layout, bytes).map_err(BenchError::from))?;
        let over = format!("over {} of device memory", gibibytes(self.most_bytes));
        for case in cases {
            let measured = match &arena {
                Ok(arena) if bytes_of(case) <= self.most_bytes => {
                    kept(decode::measure(clock, kernels, arena, &plan, case))?
                }
                Ok(_) => Err(over.clone()),
                Err(reason) => Err(reason.clone()),
            };
            match measured {
                Ok(rows) => self.decode.extend(rows),
                Err(reason) => self.left_out.push(format!("{case}: {reason}")),
            }
            progress(BenchEvent::Done);
        }
        if all {
            let measured = match &arena {
                Ok(arena) if movers <= self.most_bytes => {
                    kept(movers::measure(clock, kernels, arena, &plan, format))?
                }
                Ok(_) => Err(over),
                Err(reason) => Err(reason.clone()),
            };
            match measured {
                Ok(rows) => self.movers.extend(rows),
                Err(reason) => self.left_out.push(format!("{format}, other kernels: {reason}")),
            }
        }
        progress(BenchEvent::Done);
        Ok(())
    }
}

/// The rows of a measurement, or why the device had no memory for it.
fn kept<T>(result: Result<T, BenchError>) -> Result<Result<T, String>, BenchError> {
    match result {
        Ok(rows) => Ok(Ok(rows)),
        Err(BenchError::Device(DeviceError::Cuda(error @ CudaError::OutOfMemory { .. })))
        | Err(BenchError::Verify(VerifyError::Device(DeviceError::Cuda(
            error @ CudaError::OutOfMemory { .. },
        )))) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

fn gibibytes(bytes: usize) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_leave_room_for_what_stands_beside_them() {
        assert_eq!(page_memory(1 << 30), 0);
        assert_eq!(page_memory(8 << 30), 5 << 30);
        assert_eq!(page_memory(64 << 30), 54 << 30);
    }
}
