//! Report files that are there whole or not at all.

use std::path::Path;

use serde::Serialize;

use super::{destination::Destination, error::ReportError};

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
