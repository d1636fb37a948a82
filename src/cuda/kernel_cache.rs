//! Compiled kernels on disk.
//!
//! An entry's name is the BLAKE3 hash of everything that decides what the compiler makes: source,
//! headers, options, architecture, and the compiler's version. An entry starts with the hash of its
//! content: one that a crash or a full disk cut short, or that anything else changed, is compiled
//! again.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    arch::Arch,
    error::CudaError,
    nvrtc::{Compiled, Cubin, KernelUsage, Nvrtc, Source},
};
use crate::fetch::CacheDir;

/// Changes when the form of entries does.
const FORM: &str = "headwise kernel cache 1";

/// Where a result came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Origin {
    /// The cache.
    Cache,
    /// The compiler; the cache has it now.
    Compiler,
    /// The compiler; the cache could not take it, and why.
    NotKept(String),
}

/// A folder of compiled kernels. Any number of processes may share it.
#[derive(Clone, Debug)]
pub struct KernelCache {
    folder: PathBuf,
}

/// What goes before the code in an entry.
#[derive(Serialize, Deserialize)]
struct Meta {
    log: String,
    usage: Vec<KernelUsage>,
    compile_micros: u64,
}

impl KernelCache {
    /// A cache in `folder`, which is made when the first entry is.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder `kernels` of headwise's own cache folder.
    pub fn within(cache: &CacheDir) -> Self {
        Self::new(cache.path().join("kernels"))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// PTX from the cache, or [compiled](Nvrtc::compile) and kept. The compile time is that of the
    /// compiler's run, also when it was an earlier one.
    pub fn ptx(
        &self,
        nvrtc: &Nvrtc,
        source: &Source<'_>,
        options: &[String],
        arch: Arch,
    ) -> Result<(Compiled, Origin), CudaError> {
        let key = key("ptx", nvrtc, source, options, arch);
        if let Some((meta, code)) = self.read(&key)
            && let Ok(ptx) = String::from_utf8(code)
        {
            let compile_time = Duration::from_micros(meta.compile_micros);
            return Ok((Compiled { ptx, log: meta.log, compile_time }, Origin::Cache));
        }
        let made = nvrtc.compile(source, options, arch)?;
        let meta = Meta {
            log: made.log.clone(),
            usage: Vec::new(),
            compile_micros: made.compile_time.as_micros() as u64,
        };
        let origin = self.keep(&key, &meta, made.ptx.as_bytes());
        Ok((made, origin))
    }

    /// Machine code from the cache, or [compiled](Nvrtc::cubin) and kept.
    pub fn cubin(
        &self,
        nvrtc: &Nvrtc,
        source: &Source<'_>,
        options: &[String],
        arch: Arch,
    ) -> Result<(Cubin, Origin), CudaError> {
        let key = key("cubin", nvrtc, source, options, arch);
        if let Some((meta, image)) = self.read(&key) {
            let Meta { log, usage, compile_micros } = meta;
            let compile_time = Duration::from_micros(compile_micros);
            return Ok((Cubin { image, usage, log, compile_time }, Origin::Cache));
        }
        let made = nvrtc.cubin(source, options, arch)?;
        let meta = Meta {
            log: made.log.clone(),
            usage: made.usage.clone(),
            compile_micros: made.compile_time.as_micros() as u64,
        };
        let origin = self.keep(&key, &meta, &made.image);
        Ok((made, origin))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(key)
    }

    /// An entry that is whole, or nothing.
    fn read(&self, key: &str) -> Option<(Meta, Vec<u8>)> {
        let entry = fs::read(self.path(key)).ok()?;
        let (checksum, content) = entry.split_first_chunk::<{ blake3::OUT_LEN }>()?;
        if blake3::hash(content) != *checksum {
            return None;
        }
        let (len, rest) = content.split_first_chunk::<8>()?;
        let (meta, code) = rest.split_at_checked(u64::from_le_bytes(*len) as usize)?;
        Some((serde_json::from_slice(meta).ok()?, code.to_vec()))
    }

    /// Writes an entry. A cache that cannot be written costs time and nothing else.
    fn keep(&self, key: &str, meta: &Meta, code: &[u8]) -> Origin {
        let write = || -> std::io::Result<()> {
            let meta = serde_json::to_vec(meta)?;
            let mut content = (meta.len() as u64).to_le_bytes().to_vec();
            content.extend_from_slice(&meta);
            content.extend_from_slice(code);
            fs::create_dir_all(&self.folder)?;
            // Readers see the whole entry or none: it gets its name when it is complete.
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            file.write_all(blake3::hash(&content).as_bytes())?;
            file.write_all(&content)?;
            file.persist(self.path(key))?;
            Ok(())
        };
        match write() {
            Ok(()) => Origin::Compiler,
            Err(error) => Origin::NotKept(format!("{}: {error}", self.folder.display())),
        }
    }
}

/// The name of an entry: parts are hashed with their lengths, so that none runs into the next.
fn key(kind: &str, nvrtc: &Nvrtc, source: &Source<'_>, options: &[String], arch: Arch) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    let (version, arch) = (nvrtc.version().to_string(), arch.to_string());
    for text in [FORM, kind, &version, &arch, source.name, source.text] {
        part(text.as_bytes());
    }
    part(&(source.headers.len() as u64).to_le_bytes());
    for (name, text) in source.headers {
        part(name.as_bytes());
        part(text.as_bytes());
    }
    for option in options {
        part(option.as_bytes());
    }
    format!("{}.{kind}", hasher.finalize().to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::nvrtc::tests::nvrtc;

    const SOURCE: Source<'_> = Source {
        name: "probe.cu",
        text: "#include \"n.cuh\"\nextern \"C\" __global__ void probe(int* x) { *x = N; }",
        headers: &[("n.cuh", "#define N 3")],
    };

    fn entries(cache: &KernelCache) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> =
            fs::read_dir(cache.folder()).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    }

    #[test]
    fn the_second_compilation_is_read() {
        let Some(nvrtc) = nvrtc() else { return };
        let folder = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(folder.path().join("deep/er"));
        let arch: Arch = "sm_90".parse().unwrap();
        let (made, origin) = cache.ptx(&nvrtc, &SOURCE, &[], arch).unwrap();
        assert_eq!(origin, Origin::Compiler);
        let (read, origin) = cache.ptx(&nvrtc, &SOURCE, &[], arch).unwrap();
        assert_eq!((origin, &read.ptx, &read.log), (Origin::Cache, &made.ptx, &made.log));
        let (made, origin) = cache.cubin(&nvrtc, &SOURCE, &[], arch).unwrap();
        assert_eq!(origin, Origin::Compiler);
        let (read, origin) = cache.cubin(&nvrtc, &SOURCE, &[], arch).unwrap();
        assert_eq!((origin, read.image, read.usage), (Origin::Cache, made.image, made.usage));
        assert_eq!(entries(&cache).len(), 2);
    }

    #[test]
    fn whatever_decides_the_code_decides_the_name() {
        let Some(nvrtc) = nvrtc() else { return };
        let arch: Arch = "sm_90".parse().unwrap();
        let options = ["-DA".to_owned(), "-DB".to_owned()];
        let base = key("ptx", &nvrtc, &SOURCE, &options, arch);
        let joined = ["-DA-DB".to_owned()];
        let header = Source { headers: &[("n.cuh", "#define N 4")], ..SOURCE };
        let moved = Source { headers: &[("n.cuh#define N ", "3")], ..SOURCE };
        let others = [
            key("cubin", &nvrtc, &SOURCE, &options, arch),
            key("ptx", &nvrtc, &SOURCE, &joined, arch),
            key("ptx", &nvrtc, &SOURCE, &[], arch),
            key("ptx", &nvrtc, &SOURCE, &options, "sm_90a".parse().unwrap()),
            key("ptx", &nvrtc, &header, &options, arch),
            key("ptx", &nvrtc, &moved, &options, arch),
            key("ptx", &nvrtc, &Source { text: "", ..SOURCE }, &options, arch),
        ];
        assert_eq!(base, key("ptx", &nvrtc, &SOURCE, &options, arch));
        assert!(others.iter().all(|other| *other != base), "{others:?}");
    }

    /// Cut short or changed in any byte, an entry is compiled again and replaced.
    #[test]
    fn a_damaged_entry_is_compiled_again() {
        let Some(nvrtc) = nvrtc() else { return };
        let folder = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(folder.path());
        let arch: Arch = "sm_90".parse().unwrap();
        let (made, _) = cache.ptx(&nvrtc, &SOURCE, &[], arch).unwrap();
        let path = entries(&cache).remove(0);
        let whole = fs::read(&path).unwrap();
        let damaged = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        let cuts = [0, 10, 35, 41, whole.len() - 1].map(|len| whole[..len].to_vec());
        let flips = [0, 33, 39, 45, whole.len() - 1].map(damaged);
        for bytes in cuts.into_iter().chain(flips) {
            fs::write(&path, &bytes).unwrap();
            let (again, origin) = cache.ptx(&nvrtc, &SOURCE, &[], arch).unwrap();
            assert_eq!((origin, &again.ptx), (Origin::Compiler, &made.ptx));
            let (_, origin) = cache.ptx(&nvrtc, &SOURCE, &[], arch).unwrap();
            assert_eq!(origin, Origin::Cache);
        }
        assert_eq!(entries(&cache).len(), 1, "no temporary file is left behind");
    }

    #[test]
    fn a_cache_that_cannot_be_written_still_compiles() {
        let Some(nvrtc) = nvrtc() else { return };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = KernelCache::new(file.join("cache"));
        let (made, origin) = cache.ptx(&nvrtc, &SOURCE, &[], "sm_80".parse().unwrap()).unwrap();
        assert!(made.ptx.contains("probe"));
        assert!(matches!(origin, Origin::NotKept(why) if why.contains("cache")));
    }
}
