//! The report as text.

use std::fmt;

use super::{
    memory::{CompressionRates, MemoryReport},
    tally::MemoryUse,
};

/// A number of bytes, shown in the binary unit that leaves at most four digits before the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        // A value that rounds to 100 needs no decimal either.
        let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
        f.pad(&format!("{value:.decimals$} {}", UNITS[unit]))
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pool, total) = (&self.pool, &self.total);
        let percent = |part: usize, whole: usize| match whole {
            0 => 0.0,
            _ => 100.0 * part as f64 / whole as f64,
        };
        let mut line = |name: &str, bytes: usize, whole: usize, note: &str| {
            let share = percent(bytes, whole);
            writeln!(f, "{name:<26}{:>12}{share:>8.2}%  {note}", Bytes(bytes))
        };
        let pages = format!("{} pages of {}", self.pages.total, Bytes(self.page_bytes));
        line("pool", pool.total, pool.total, &pages)?;
        line("  free", pool.free, pool.total, "")?;
        line("  fenced", pool.fenced, pool.total, "")?;
        line("  held", pool.held, pool.total, "")?;
        line("    in shared pages", pool.shared, pool.total, "")?;
        let unlisted = self.unlisted_pages * self.page_bytes;
        line("    by other sequences", unlisted, pool.total, "")?;
        let listed = format!("{} sequences, {} tokens", self.sequences.len(), self.tokens);
        line("sequences hold", total.held_bytes, total.held_bytes, &listed)?;
        let slots = format!("{} slots", total.slots);
        line("  slots in use", total.used_bytes, total.held_bytes, &slots)?;
        line("  tail waste", total.tail_waste_bytes, total.held_bytes, "free slots of last pages")?;
        line("  layout waste", total.layout_waste_bytes, total.held_bytes, "alignment, remainder")?;
        let equal = "all pages are equal";
        line("external fragmentation", pool.external_fragmentation, pool.total, equal)?;
        line("metadata", self.metadata.total, pool.total, "of the pool")?;
        let CompressionRates { theoretical, physical, ratio } = self.compression;
        if let (Some(theoretical), Some(physical), Some(ratio)) = (theoretical, physical, ratio) {
            writeln!(
                f,
                "compression {physical:.3}x physical, {theoretical:.3}x theoretical, ratio {ratio:.3}"
            )?;
        }
        let other = &self.alternatives;
        for (name, bytes) in [
            ("table per layer", other.table_per_layer),
            ("one table for all heads", other.table_per_sequence),
            ("without eviction", other.unevicted),
            ("contiguous f16", other.contiguous_f16),
        ] {
            let times = bytes as f64 / total.held_bytes.max(1) as f64;
            writeln!(f, "{name:<26}{:>12}{times:>8.2}x  what is held", Bytes(bytes))?;
        }
        writeln!(
            f,
            "\n{:>8}{:>9}{:>9}{:>11}{:>12}{:>12}{:>10}{:>10}",
            "sequence", "tokens", "pages", "slots", "held", "used", "physical", "ratio"
        )?;
        for (index, sequence) in self.sequences.iter().enumerate() {
            let MemoryUse { pages, slots, held_bytes, used_bytes, .. } = sequence.total;
            let rate = |rate: Option<f64>| rate.map_or("–".to_owned(), |r| format!("{r:.3}"));
            writeln!(
                f,
                "{index:>8}{:>9}{pages:>9}{slots:>11}{:>12}{:>12}{:>10}{:>10}",
                sequence.tokens,
                Bytes(held_bytes),
                Bytes(used_bytes),
                rate(sequence.compression.physical),
                rate(sequence.compression.ratio),
            )?;
        }
        Ok(())
    }
}
