//! The report as text.

use std::fmt;

use super::{
    plan::BenchScope,
    report::{BenchReport, DecodeRow},
};

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        let (name, arch, driver, nvrtc) = (&device.name, device.arch, self.driver, self.nvrtc);
        writeln!(f, "{name} ({arch}), driver of CUDA {driver}, NVRTC {nvrtc}\n")?;
        self.checks(f)?;
        if !self.right() {
            return writeln!(f, "\nNothing was measured: results are wrong.");
        }
        if self.plan.scope == BenchScope::Checks {
            return Ok(());
        }
        writeln!(f, "\ncopy on the device, read + written: {:.0} GB/s", self.copy_gbps)?;
        self.decode(f)?;
        if self.movers.is_empty() { Ok(()) } else { self.movers(f) }
    }
}

impl BenchReport {
    fn checks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let verdict = if check.passed { "right" } else { "WRONG" };
            write!(f, "{verdict}  {:<30} {}", check.what, check.case)?;
            if let Some(errors) = &check.errors {
                let (out, lse, scores) = (errors.out, errors.lse, errors.scores);
                write!(f, ": out {out:.1e}, lse {lse:.1e}, scores {scores:.1e}")?;
            }
            match &check.problem {
                Some(problem) => writeln!(f, ": {problem}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }

    /// A line per (format, batch, length): both ways to bring pages, and what raggedness costs.
    fn decode(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        let (heads, group, dim) = (plan.kv_heads, plan.group, plan.head_dim);
        let slots = plan.page_slots;
        writeln!(
            f,
            "\ndecode, {heads} KV heads, group {group}, head_dim {dim}, pages of {slots} f16 slots"
        )?;
        writeln!(
            f,
            "{:<10} {:>5} {:>7} {:>9} {:>8} {:>7} {:>8} {:>8} {:>7} {:>8} {:>7}",
            "format",
            "batch",
            "slots",
            "MB",
            "GB/s",
            "of copy",
            "ragged",
            "bulk",
            "of copy",
            "ragged",
            "f16 ="
        )?;
        let even = self.decode.iter().filter(|row| !row.ragged && !row.bulk);
        for row in even {
            let of = |ragged, bulk| self.like(row, ragged, bulk);
            let gbps = |row: Option<&DecodeRow>| match row {
                Some(row) => format!("{:.0}", row.gbps),
                None => "-".to_owned(),
            };
            let ratio = |row: Option<&DecodeRow>, to: Option<&DecodeRow>| match (row, to) {
                (Some(row), Some(to)) => {
                    // Times per byte: ragged heads are a few slots more or less in all.
                    format!("{:.2}x", to.gbps / row.gbps)
                }
                _ => "-".to_owned(),
            };
            let share = |row: Option<&DecodeRow>| match row {
                Some(row) => format!("{:.0}%", 100.0 * row.share),
                None => "-".to_owned(),
            };
            let f16 = self.decode.iter().find(|other| {
                other.format == Default::default()
                    && (other.length, other.batch) == (row.length, row.batch)
                    && !other.ragged
                    && other.bulk == row.bulk
            });
            let speed = f16.map_or("-".to_owned(), |f16| format!("{:.2}", f16.micros / row.micros));
            writeln!(
                f,
                "{:<10} {:>5} {:>7} {:>9.1} {:>8} {:>7} {:>8} {:>8} {:>7} {:>8} {:>7}",
                row.format.to_string(),
                row.batch,
                row.length,
                row.bytes as f64 / 1e6,
                gbps(Some(row)),
                share(Some(row)),
                ratio(of(true, false), Some(row)),
                gbps(of(false, true)),
                share(of(false, true)),
                ratio(of(true, true), of(false, true)),
                speed,
            )?;
        }
        for case in &self.left_out {
            writeln!(f, "left out: {case}")?;
        }
        Ok(())
    }

    /// The row of the same case but for these two.
    fn like(&self, row: &DecodeRow, ragged: bool, bulk: bool) -> Option<&DecodeRow> {
        self.decode.iter().find(|other| {
            (other.format, other.length, other.batch) == (row.format, row.length, row.batch)
                && (other.ragged, other.bulk) == (ragged, bulk)
        })
    }

    fn movers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nother kernels, bytes that must be read and written at least once")?;
        writeln!(
            f,
            "{:<12} {:<10} {:>10} {:>8} {:>7} {:>8}  on",
            "kernel", "format", "us", "GB/s", "of copy", "TFLOP/s"
        )?;
        for row in &self.movers {
            let tflops = row.tflops.map_or("-".to_owned(), |tflops| format!("{tflops:.0}"));
            writeln!(
                f,
                "{:<12} {:<10} {:>10.1} {:>8.0} {:>6.0}% {:>8}  {}",
                row.kernel,
                row.format.to_string(),
                row.micros,
                row.gbps,
                100.0 * row.share,
                tflops,
                row.case,
            )?;
        }
        Ok(())
    }
}
