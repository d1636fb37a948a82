//! Results: a table on stdout, JSON in a file.

use std::{
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use super::{args::JsonArgs, error::CliError};

impl JsonArgs {
    /// Writes the result where `--json` says, whole or not at all.
    pub fn write(&self, result: &impl Serialize) -> Result<(), CliError> {
        let Some(path) = &self.json else { return Ok(()) };
        let fail = |source| CliError::Write { path: path.clone(), source };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
        serde_json::to_writer_pretty(&mut file, result).map_err(|e| fail(e.into()))?;
        file.write_all(b"\n").map_err(fail)?;
        file.persist(path).map_err(|e| fail(e.error))?;
        Ok(())
    }
}

/// Prints to stdout; a closed pipe is an error, not a panic.
pub(super) fn print(text: impl AsRef<str>) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref().as_bytes()).and_then(|()| out.flush()).map_err(CliError::Stdout)
}

/// A table with right-aligned columns; the first row is the heading.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Bytes for people: binary units, three digits.
pub(super) fn bytes(count: usize) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 2 };
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        assert_eq!([0, 1023, 1024, 1536 << 10, 300 << 20].map(bytes), [
            "0 B", "1023 B", "1.00 KiB", "1.50 MiB", "300 MiB"
        ]);
    }

    #[test]
    fn tables_align() {
        let rows = [["a", "bb"], ["cc", "d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "a   bb\ncc   d\n");
    }
}
