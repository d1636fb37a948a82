//! Report files that are there whole or not at all.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use thiserror::Error;

/// A report that could not be written; what was at the path before is still there.
#[derive(Debug, Error)]
pub enum ReportError {
    /// The file system refused.
    #[error("cannot write report {}: {source}", path.display())]
    Write {
        /// The file asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The value has no JSON form.
    #[error("cannot write report {} as JSON: {source}", path.display())]
    Json {
        /// The file asked for.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Writes a file through a temporary one in the same folder, so that no reader ever sees half of it.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), ReportError> {
    let write = || -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut builder = tempfile::Builder::new();
        builder.prefix(".headwise-");
        // Temporary files are private by default; a report is as readable as any new file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| ReportError::Write { path: path.to_owned(), source })
}

/// Writes a value as indented JSON with a last newline, as [`write_atomically`] does.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ReportError> {
    let json = |source| ReportError::Json { path: path.to_owned(), source };
    let mut text = serde_json::to_vec_pretty(value).map_err(json)?;
    text.push(b'\n');
    write_atomically(path, &text)
}
