//! What can go wrong between here and a device.

use std::{fmt, path::PathBuf};

use serde::Serialize;
use thiserror::Error;

use super::arch::Arch;

/// A version of CUDA, as 13.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct CudaVersion {
    /// Before the dot.
    pub major: u32,
    /// After the dot.
    pub minor: u32,
}

impl CudaVersion {
    /// The oldest driver and compiler that the kernels are made for.
    pub const OLDEST: Self = Self { major: 12, minor: 0 };
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

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
    /// A compiler older than the kernels need.
    #[error("NVRTC is of version {found}, older than {needed}")]
    NvrtcTooOld {
        /// Its version.
        found: CudaVersion,
        /// The oldest version that is supported.
        needed: CudaVersion,
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
    /// No cuBLAS library in any place.
    #[error(
        "no cuBLAS library found, tried {tried}; set HEADWISE_CUBLAS to the folder that holds it"
    )]
    CublasMissing {
        /// The files and names tried, separated by commas.
        tried: String,
    },
    /// A file that was meant to be cuBLAS and is not usable.
    #[error("cannot use {path} as cuBLAS: {reason}", path = path.display())]
    CublasUnusable {
        /// The file.
        path: PathBuf,
        /// What the system's loader said.
        reason: String,
    },
    /// A call into cuBLAS failed.
    #[error("{call} failed with code {code}: {text}")]
    Cublas {
        /// The function.
        call: &'static str,
        /// Its result, a `cublasStatus_t`.
        code: i32,
        /// cuBLAS' name of the code.
        text: String,
    },
    /// No driver library.
    #[error("no CUDA driver library found; this machine has no NVIDIA driver")]
    DriverMissing,
    /// A library that was named and does not open.
    #[error("cannot use {path} as the CUDA driver: {reason}", path = path.display())]
    DriverUnusable {
        /// The file.
        path: PathBuf,
        /// What the system's loader said.
        reason: String,
    },
    /// The library that toolkits ship for linking, without a driver behind it.
    #[error(
        "the CUDA driver library is a stub for linking; the NVIDIA driver itself is not visible here"
    )]
    DriverStub,
    /// A driver library without a function that is needed.
    #[error("the CUDA driver library has no {symbol}: it is a stub, or older than CUDA {needed}")]
    DriverIncomplete {
        /// The first function that was not found.
        symbol: &'static str,
        /// The oldest version that is supported.
        needed: CudaVersion,
    },
    /// A driver older than the kernels need.
    #[error("the CUDA driver is of version {found}, older than {needed}")]
    DriverTooOld {
        /// Its version.
        found: CudaVersion,
        /// The oldest version that is supported.
        needed: CudaVersion,
    },
    /// A driver call failed.
    #[error("{call} failed with code {code} ({name})")]
    Driver {
        /// The function.
        call: &'static str,
        /// Its result, a `CUresult`.
        code: i32,
        /// The driver's name of the code.
        name: String,
    },
    /// The driver works and sees nothing.
    #[error("the CUDA driver sees no device")]
    NoDevice,
    /// A number beyond the last device.
    #[error("there is no CUDA device {ordinal}, only {devices}")]
    NoSuchDevice {
        /// The number asked for, from 0.
        ordinal: usize,
        /// How many there are.
        devices: usize,
    },
    /// A device that lacks instructions the kernels use.
    #[error("device {name} is {arch}; the kernels need {needed} or newer")]
    DeviceTooOld {
        /// The device.
        name: String,
        /// What it is.
        arch: Arch,
        /// The oldest architecture that is supported.
        needed: Arch,
    },
    /// The device did not grant memory.
    #[error("{bytes} bytes of {memory} memory were not granted, {free} are free")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// `device`, or `pinned host`.
        memory: &'static str,
        /// Bytes of device memory that are free.
        free: usize,
    },
    /// The driver refuses the PTX's version.
    #[error(
        "the driver of CUDA {driver} does not take the PTX of this NVRTC: use NVRTC {driver} or older"
    )]
    PtxTooNew {
        /// The newest CUDA version the driver supports.
        driver: CudaVersion,
    },
    /// Values that are not as many as what they belong to.
    #[error("{what}: {got}, expected {expected}")]
    WrongLength {
        /// Of which values.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A copy outside a buffer.
    #[error("bytes {start}..{end} are outside a buffer of {len} bytes")]
    OutOfBounds {
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Bytes of the buffer.
        len: usize,
    },
    /// Memory, stream and kernels that do not belong together.
    #[error("memory, stream and kernels are of different CUDA contexts")]
    OtherContext,
    /// Work for another queue than the one it must be ordered in.
    #[error("model and cache queue their work in different streams")]
    OtherStream,
    /// Rows of a type that is not asked for.
    #[error("{what} are {got}, expected {expected}")]
    WrongElement {
        /// Of which rows.
        what: &'static str,
        /// What they are.
        got: &'static str,
        /// What they should be.
        expected: &'static str,
    },
    /// A product with a size that cuBLAS cannot be told.
    #[error("a product of size {size} is larger than cuBLAS counts to")]
    ProductTooLarge {
        /// Rows or values.
        size: usize,
    },
    /// A text with a zero byte, which no C string holds.
    #[error("{0} contains a zero byte")]
    ZeroByte(&'static str),
}
