//! What keeps a report from being written.

use std::{io, path::PathBuf};

use thiserror::Error;

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
