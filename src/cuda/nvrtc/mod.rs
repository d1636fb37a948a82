//! The run-time compiler: CUDA C++ in, PTX or machine code and ptxas' report out.

mod api;
mod locate;
mod source;
mod usage;

use std::{
    env,
    path::PathBuf,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use thiserror::Error;

use self::api::{Api, Program};
pub use self::{
    locate::{ENV_FOLDER, Folders},
    source::Source,
    usage::KernelUsage,
};
use super::{
    arch::Arch,
    error::{CudaError, CudaVersion},
};
use crate::fetch::{self, Event, FetchError};

/// Why there is no library, although it may be fetched.
#[derive(Debug, Error)]
pub enum ObtainError {
    /// What is there is not usable.
    #[error(transparent)]
    Open(#[from] CudaError),
    /// Nothing is there, and fetching failed.
    #[error("no NVRTC library found, and fetching it failed: {0}")]
    Fetch(#[from] FetchError),
}

/// PTX of one source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The PTX text.
    pub ptx: String,
    /// Warnings, and whatever else the compiler said.
    pub log: String,
    /// How long the compiler took.
    pub compile_time: Duration,
}

/// Machine code of one source.
#[derive(Clone, Debug)]
pub struct Cubin {
    /// An ELF image that the driver loads.
    pub image: Vec<u8>,
    /// What each kernel needs, by ptxas' report.
    pub usage: Vec<KernelUsage>,
    /// Warnings and the report.
    pub log: String,
    /// How long the compiler took.
    pub compile_time: Duration,
}

/// An open NVRTC library. Opening costs a few milliseconds; it stays open for the process's life.
#[derive(Clone, Copy, Debug)]
pub struct Nvrtc {
    api: &'static Api,
}

impl Nvrtc {
    /// Opens the first library found: see [`Folders`] for where it is looked for.
    pub fn open(folders: &Folders) -> Result<Self, CudaError> {
        Ok(Self { api: locate::open(folders)? })
    }

    /// Opens the library, and [fetches](crate::fetch::nvrtc) it first where the
    /// [usual places](Folders::standard) have none. Where `HEADWISE_NVRTC` names a folder, nothing is
    /// fetched in its place.
    pub fn open_or_fetch(progress: &mut dyn FnMut(Event<'_>)) -> Result<Self, ObtainError> {
        // One download is enough for all threads of a process.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock();
        match Self::open(&Folders::standard()) {
            Err(CudaError::NvrtcMissing { .. }) if env::var_os(ENV_FOLDER).is_none() => {
                let explicit = Some(fetch::nvrtc(progress)?);
                Ok(Self::open(&Folders { explicit, cache: None })?)
            }
            result => Ok(result?),
        }
    }

    /// The library's version.
    pub fn version(&self) -> CudaVersion {
        self.api.version()
    }

    /// The file (or the name the system's loader resolved) that was opened.
    pub fn path(&self) -> PathBuf {
        self.api.path().to_owned()
    }

    /// Compiles to PTX for `arch`, which every later device of its family translates further.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the compiler's log if it refuses the source or an option.
    pub fn compile(
        &self,
        source: &Source<'_>,
        options: &[String],
        arch: Arch,
    ) -> Result<Compiled, CudaError> {
        let begin = Instant::now();
        let program = Program::new(self.api, source)?;
        let target = [format!("--gpu-architecture={}", arch.virtual_name())];
        let log = compiled(&program, source, options, &target, arch)?;
        Ok(Compiled { ptx: program.ptx()?, log, compile_time: begin.elapsed() })
    }

    /// Compiles to machine code for exactly `arch`, with the resources each kernel needs.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn cubin(
        &self,
        source: &Source<'_>,
        options: &[String],
        arch: Arch,
    ) -> Result<Cubin, CudaError> {
        let begin = Instant::now();
        let program = Program::new(self.api, source)?;
        let target =
            [format!("--gpu-architecture={}", arch.real_name()), "--ptxas-options=-v".to_owned()];
        let log = compiled(&program, source, options, &target, arch)?;
        let image = program.cubin()?;
        let usage = KernelUsage::parse(&log);
        Ok(Cubin { image, usage, log, compile_time: begin.elapsed() })
    }
}

/// Runs the compiler and returns its log, or the log as the error.
fn compiled(
    program: &Program,
    source: &Source<'_>,
    options: &[String],
    target: &[String],
    arch: Arch,
) -> Result<String, CudaError> {
    let options: Vec<&str> = target.iter().chain(options).map(String::as_str).collect();
    match program.compile(&options) {
        Ok(()) => program.log(),
        Err(error) => {
            let log = program.log()?;
            // A wrong option is refused before anything is logged: the code's name is all there is.
            let log = if log.trim().is_empty() { error.to_string() } else { log };
            Err(CudaError::Compile { name: source.name.to_owned(), arch, log })
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
