//! Downloading one wheel with the machine's own pip.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::error::FetchError;

/// The Python whose pip downloads: its configured index, proxy and certificates are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Python {
    executable: PathBuf,
}

impl Default for Python {
    /// `python3` from the search path.
    fn default() -> Self {
        Self::new("python3")
    }
}

/// Parts of pip's messages that say that the index was not reached, rather than that it refused.
const NETWORK_SIGNS: [&str; 8] = [
    "Failed to establish a new connection",
    "NewConnectionError",
    "NameResolutionError",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
];

impl Python {
    /// The Python at `executable`.
    pub fn new(executable: impl Into<PathBuf>) -> Self {
        Self { executable: executable.into() }
    }

    /// Downloads the wheel of `requirement` into `folder`, which is empty, and returns its path.
    pub(super) fn download(&self, requirement: &str, folder: &Path) -> Result<PathBuf, FetchError> {
        let output = Command::new(&self.executable)
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"])
            .args(["--disable-pip-version-check", "-d"])
            .arg(folder)
            .arg(requirement)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| FetchError::PythonMissing {
                python: self.executable.clone(),
                source,
            })?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(self.failure(requirement, output.status, &stderr));
        }
        let wheel = fs::read_dir(folder)
            .map_err(|source| FetchError::Cache { path: folder.to_path_buf(), source })?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension() == Some(OsStr::new("whl")));
        wheel.ok_or_else(|| FetchError::NoWheel { requirement: requirement.to_owned() })
    }

    fn failure(
        &self,
        requirement: &str,
        status: std::process::ExitStatus,
        stderr: &str,
    ) -> FetchError {
        if stderr.contains("No module named pip") {
            return FetchError::PipMissing { python: self.executable.clone() };
        }
        let requirement = requirement.to_owned();
        let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
        // pip ends with "no matching distribution" also when it never reached the index.
        let sign = lines().find(|line| NETWORK_SIGNS.iter().any(|sign| line.contains(sign)));
        match sign {
            Some(line) => FetchError::Network { requirement, line: line.to_owned() },
            None => {
                let line = lines().next_back().unwrap_or("no message").to_owned();
                FetchError::Pip { requirement, status, line }
            }
        }
    }
}
