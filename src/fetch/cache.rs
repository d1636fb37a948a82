//! Where fetched artefacts live.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::error::FetchError;

/// The cache folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDir(PathBuf);

impl CacheDir {
    /// A cache in the given folder, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// `HEADWISE_CACHE`, else `XDG_CACHE_HOME/headwise`, else `~/.cache/headwise`.
    pub fn from_env() -> Result<Self, FetchError> {
        Self::resolve(|name| env::var_os(name))
    }

    fn resolve(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, FetchError> {
        let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // The XDG base directory specification: relative paths are invalid and to be ignored.
        let xdg = || path("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        path("HEADWISE_CACHE")
            .or_else(|| xdg().map(|path| path.join("headwise")))
            .or_else(|| path("HOME").map(|path| path.join(".cache").join("headwise")))
            .map(Self)
            .ok_or(FetchError::NoCacheDir)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(variables: &[(&str, &str)]) -> Option<PathBuf> {
        let find = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        CacheDir::resolve(find).ok().map(|cache| cache.0)
    }

    #[test]
    fn the_most_specific_variable_wins() {
        let all = [("HEADWISE_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(resolve(&all), Some("/a".into()));
        assert_eq!(resolve(&all[1..]), Some("/b/headwise".into()));
        assert_eq!(resolve(&all[2..]), Some("/c/.cache/headwise".into()));
        assert_eq!(resolve(&[]), None);
    }

    #[test]
    fn empty_and_relative_variables_do_not_count() {
        let variables = [("HEADWISE_CACHE", ""), ("XDG_CACHE_HOME", "b"), ("HOME", "/c")];
        assert_eq!(resolve(&variables), Some("/c/.cache/headwise".into()));
    }
}
