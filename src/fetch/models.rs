//! The models that have a name.

use std::path::PathBuf;

use super::{
    artifact::Artifact,
    cache::CacheDir,
    error::FetchError,
    joined::Joined,
    pins::{GEMMA_3_270M, MODEL},
    wheel::Event,
};

/// What who fetches Gemma must know.
pub const GEMMA_TERMS: &str = "Gemma is provided under and subject to the Gemma Terms of Use, \
    https://ai.google.dev/gemma/terms: they bind who uses, changes or passes on the model, and forbid the uses \
    that its Prohibited Use Policy lists.";

/// A model with a name: what `headwise fetch model --name` and `--model` take.
#[derive(Clone, Copy, Debug)]
pub struct NamedModel {
    /// Its name.
    pub name: &'static str,
    /// Terms of use to show when it is fetched, where it is not under an open licence. Such a model is
    /// never fetched unless it is asked for.
    pub terms: Option<&'static str>,
    source: Source,
}

/// How a model comes.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// As the only member of a wheel.
    Wheel(&'static Artifact<'static>),
    /// In parts.
    Joined(&'static Joined<'static>),
}

/// All of them; the first is the default.
pub const MODELS: [NamedModel; 2] = [
    NamedModel { name: "smollm2-135m", terms: None, source: Source::Wheel(&MODEL) },
    NamedModel {
        name: "gemma3-270m",
        terms: Some(GEMMA_TERMS),
        source: Source::Joined(&GEMMA_3_270M),
    },
];

impl NamedModel {
    /// The model of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        MODELS.iter().find(|model| model.name == name)
    }

    /// Where its file lies in the cache once fetched.
    pub fn path(&self, cache: &CacheDir) -> PathBuf {
        match self.source {
            Source::Wheel(artifact) => artifact.member_path(cache, &artifact.members[0]),
            Source::Joined(joined) => joined.path(cache),
        }
    }

    /// Path of its file, fetched where it is missing.
    pub fn fetch(
        &self,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf, FetchError> {
        match self.source {
            Source::Wheel(artifact) => drop(artifact.ensure(cache, progress)?),
            Source::Joined(joined) => drop(joined.ensure(cache, progress)?),
        }
        Ok(self.path(cache))
    }

    /// Path of its file: fetched where it is missing, unless it has terms that one must have seen.
    ///
    /// # Errors
    /// [`FetchError::NotFetched`] for a model with terms that is not in the cache; what fetching may
    /// fail with.
    pub fn open(
        &self,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf, FetchError> {
        match self.source {
            Source::Joined(joined) if self.terms.is_some() => {
                match joined.is_cached(cache, progress)? {
                    true => Ok(self.path(cache)),
                    false => Err(FetchError::NotFetched { name: self.name }),
                }
            }
            _ => self.fetch(cache, progress),
        }
    }
}
