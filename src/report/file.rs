//! Report files that are there whole or not at all.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Serialize;
use thiserror::Error;

use super::destination::Destination;

/// A report that could not be written; what was at the path before is still there.
#[derive(Debug, Error)]
pub enum ReportError {
    /// The file system refused.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The value has no JSON form.
    #[error("cannot write the result as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Writes to where a path leads, as [`Destination`] does: a file whole or not at all.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), ReportError> {
    Destination::at(path)?.write(content)
}

/// Writes a value as [`json`], as [`write_atomically`] does.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ReportError> {
    write_atomically(path, &json(value)?)
}

/// A value as indented JSON with a last newline.
pub fn json(value: &impl Serialize) -> Result<Vec<u8>, ReportError> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}
