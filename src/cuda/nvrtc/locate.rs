//! Where NVRTC is.

use std::{
    collections::HashMap,
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use parking_lot::Mutex;

use super::api::Api;
use crate::{
    cuda::error::CudaError,
    fetch::{CacheDir, NVRTC},
};

/// The environment variable that names NVRTC's folder.
pub const ENV_FOLDER: &str = "HEADWISE_NVRTC";

/// The folders to look for NVRTC in.
///
/// `explicit` if given, else the folder that [`ENV_FOLDER`] names, else the libraries the system's
/// loader knows, else `cache`. A folder that was asked for and holds no NVRTC is an error: nothing
/// else is tried in its place.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    /// The folder that the user named.
    pub explicit: Option<PathBuf>,
    /// The folder that `headwise fetch nvrtc` fills.
    pub cache: Option<PathBuf>,
}

impl Folders {
    /// Where [`fetch::nvrtc`](crate::fetch::nvrtc) puts it, after what the user and the system have.
    pub fn standard() -> Self {
        let cache = CacheDir::from_env().ok().map(|cache| NVRTC.folder(&cache));
        Self { explicit: None, cache }
    }
}

#[cfg(windows)]
mod names {
    pub const SYSTEM: &[&str] = &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
    pub const LIBRARY: &str = "nvrtc64_";
    pub const BUILTINS: &str = "nvrtc-builtins64_";
    pub const EXPECTED: &str = "nvrtc64_130_0.dll";
}

#[cfg(not(windows))]
mod names {
    pub const SYSTEM: &[&str] = &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
    pub const LIBRARY: &str = "libnvrtc.so";
    pub const BUILTINS: &str = "libnvrtc-builtins.so";
    pub const EXPECTED: &str = "libnvrtc.so.13";
}

/// Opens the library that `folders` leads to, once per process and file.
pub fn open(folders: &Folders) -> Result<&'static Api, CudaError> {
    let named = folders.explicit.clone().or_else(|| env::var_os(ENV_FOLDER).map(PathBuf::from));
    if let Some(folder) = named {
        return open_folder(&folder)
            .unwrap_or_else(|| Err(missing(&[folder.join(names::EXPECTED)])));
    }
    for name in names::SYSTEM {
        // Not being found by name is the ordinary case; the error that counts lists all places.
        if let Ok(api) = open_once(OsStr::new(name), &[]) {
            return Ok(api);
        }
    }
    let mut tried: Vec<PathBuf> = names::SYSTEM.iter().map(PathBuf::from).collect();
    if let Some(folder) = &folders.cache {
        if let Some(result) = open_folder(folder) {
            return result;
        }
        tried.push(folder.join(names::EXPECTED));
    }
    Err(missing(&tried))
}

fn missing(tried: &[PathBuf]) -> CudaError {
    let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
    CudaError::NvrtcMissing { tried: tried.join(", ") }
}

/// Opens the library in `folder`, or nothing if there is none.
fn open_folder(folder: &Path) -> Option<Result<&'static Api, CudaError>> {
    // Relative paths would be searched for in the loader's own places.
    let folder = folder.canonicalize().ok()?;
    let library = newest(&folder, names::LIBRARY)?;
    let builtins: Vec<PathBuf> = newest(&folder, names::BUILTINS).into_iter().collect();
    Some(open_once(library.as_os_str(), &builtins))
}

/// The file whose name starts with `prefix` and sorts last: the newest version.
fn newest(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let named = entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
    named.map(|entry| entry.path()).filter(|path| path.is_file()).max()
}

fn open_once(file: &OsStr, before: &[PathBuf]) -> Result<&'static Api, CudaError> {
    // A library that was used stays open: NVRTC keeps threads and registrations of its own.
    static OPEN: LazyLock<Mutex<HashMap<PathBuf, &'static Api>>> = LazyLock::new(Mutex::default);
    let mut open = OPEN.lock();
    if let Some(api) = open.get(Path::new(file)) {
        return Ok(api);
    }
    let api: &'static Api = Box::leak(Box::new(Api::open(file, before)?));
    open.insert(PathBuf::from(file), api);
    Ok(api)
}
