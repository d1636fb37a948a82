//! Results: a table on stdout, JSON in a file.

use std::{
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use super::{args::JsonArgs, error::CliError};
use crate::report::write_json;

impl JsonArgs {
    /// Refuses a path that cannot be written, before any work is done for it.
    pub fn check(&self) -> Result<(), CliError> {
        self.json.as_deref().map_or(Ok(()), check_writable)
    }

    /// Writes the result where `--json` says, whole or not at all.
    pub fn write(&self, result: &impl Serialize) -> Result<(), CliError> {
        match &self.json {
            Some(path) => Ok(write_json(path, result)?),
            None => Ok(()),
        }
    }
}

/// Whether a result can be put at `path`, whole, when it is there. What is there now is not touched.
pub(super) fn check_writable(path: &Path) -> Result<(), CliError> {
    let write = || match path.metadata() {
        Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(there) if !there.is_file() => Err(io::Error::other("not a regular file")),
        // "", ".." and the like, and "folder/" where there is no folder.
        _ if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") => {
            Err(io::Error::other("no name of a file"))
        }
        _ => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            tempfile::tempfile_in(folder.unwrap_or(Path::new("."))).map(drop)
        }
    };
    write().map_err(|source| CliError::Write { path: path.to_owned(), source })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = [["a", "bb"], ["cc", "d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "a   bb\ncc   d\n");
    }
}
