//! The report as text.

use std::fmt;

use super::{KernelReport, KernelsReport};

impl fmt::Display for KernelsReport {
    /// The tables, as plain text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.driver, &self.no_devices) {
            (_, Some(reason)) => writeln!(f, "devices: none ({reason})")?,
            (Some(driver), None) => writeln!(f, "devices, driver for CUDA {driver}:")?,
            (None, None) => writeln!(f, "devices:")?,
        }
        for d in &self.devices {
            writeln!(
                f,
                "  {} {}: {}, {} multiprocessors, {:.1} GiB",
                d.ordinal,
                d.name,
                d.arch,
                d.multiprocessors,
                d.memory_bytes as f64 / (1u64 << 30) as f64
            )?;
        }
        let shape = &self.shape;
        writeln!(
            f,
            "kernels for {}, NVRTC {}: head_dim {}, group {}, {} slots a page, {} queries, {}",
            self.arch,
            self.nvrtc,
            shape.head_dim,
            shape.group,
            shape.page_slots,
            shape.io,
            shape.terms
        )?;
        let width = |text: fn(&KernelReport) -> String, title: &str| {
            self.kernels.iter().map(|k| text(k).len()).max().unwrap_or(0).max(title.len())
        };
        let (kernel, format) =
            (width(|k| k.kernel.clone(), "kernel"), width(|k| k.format.to_string(), "format"));
        writeln!(
            f,
            "{:kernel$}  {:format$}  threads  registers  static  dynamic  stack  spills  blocks/SM  bound by   PTX bytes  compile ms",
            "kernel", "format"
        )?;
        for k in &self.kernels {
            writeln!(
                f,
                "{:kernel$}  {:format$}  {:>7}  {:>9}  {:>6}  {:>7}  {:>5}  {:>6}  {:>9}  {:9}  {:>9}  {:>10.1}{}",
                k.kernel,
                k.format.to_string(),
                k.threads,
                k.registers,
                k.static_shared_bytes,
                k.dynamic_shared_bytes,
                k.stack_bytes,
                k.spill_stores + k.spill_loads,
                k.blocks_per_multiprocessor,
                k.bound_by.to_string(),
                k.ptx_bytes,
                k.compile_ms,
                if k.cached { " (cached)" } else { "" }
            )?;
        }
        write!(f, "{} bytes spilled at most", self.spilled_bytes())
    }
}
