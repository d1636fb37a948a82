//! What can go wrong between here and a device.

use std::path::PathBuf;

use thiserror::Error;

use super::Arch;

/// Why something on the CUDA side did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CudaError {
    /// No NVRTC library in any place.
    #[error(
        "no NVRTC library found, tried {tried}; run `headwise fetch nvrtc`, or set HEADWISE_NVRTC to the folder that holds it"
    )]
    NvrtcMissing {
        /// The files and names tried, separated by commas.
        tried: String,
    },
    /// A file that was meant to be NVRTC and is not usable.
    #[error("cannot use {path} as NVRTC: {reason}", path = path.display())]
    NvrtcUnusable {
        /// The file.
        path: PathBuf,
        /// What the system's loader said.
        reason: String,
    },
    /// A call into NVRTC failed for a reason other than the source.
    #[error("{call} failed with code {code}: {text}")]
    Nvrtc {
        /// The function.
        call: &'static str,
        /// Its result.
        code: i32,
        /// NVRTC's name of the code.
        text: String,
    },
    /// The compiler refused the source or an option.
    #[error("{name} does not compile for {arch}:\n{log}")]
    Compile {
        /// The source's name.
        name: String,
        /// What it was compiled for.
        arch: Arch,
        /// What the compiler said.
        log: String,
    },
    /// A text that names no architecture.
    #[error("{0:?} is no GPU architecture; expected one like sm_80, sm_90 or sm_90a")]
    BadArch(String),
    /// A text with a zero byte, which no C string holds.
    #[error("{0} contains a zero byte")]
    ZeroByte(&'static str),
}
