//! Bytes that are hashed on their way.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::error::FetchError;

/// Whether the file at `path` is there with this length and SHA-256. `report` is told the bytes that
/// are hashed.
pub(super) fn is_whole(
    path: &Path,
    bytes: u64,
    sha256: &str,
    report: &mut dyn FnMut(u64),
) -> Result<bool, FetchError> {
    let unusable = |source| FetchError::Cache { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(unusable(error)),
    };
    if file.metadata().map_err(unusable)?.len() != bytes {
        return Ok(false);
    }
    match copy_hashed(file, &mut io::sink(), bytes, report) {
        Ok((_, found)) => Ok(found == sha256),
        Err(CopyError::Read(error) | CopyError::Write(error)) => Err(unusable(error)),
    }
}

/// A temporary file that becomes as readable as any new file: the cache folder may be shared.
pub(super) fn new_file_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Which side of a copy failed.
pub(super) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies at most one byte more than `expected`, and returns the bytes copied and their SHA-256.
pub(super) fn copy_hashed(
    reader: impl Read,
    writer: &mut impl Write,
    expected: u64,
    report: &mut dyn FnMut(u64),
) -> Result<(u64, String), CopyError> {
    let mut reader = reader.take(expected.saturating_add(1));
    let mut buffer = vec![0; 1 << 20];
    let mut hash = Sha256::new();
    let mut done = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        hash.update(&buffer[..count]);
        writer.write_all(&buffer[..count]).map_err(CopyError::Write)?;
        done += count as u64;
        report(done);
    }
    Ok((done, format!("{:x}", hash.finalize())))
}
