//! What ends a command.

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;

#[cfg(feature = "cuda")]
use crate::cuda::{CudaError, nvrtc::ObtainError};
#[cfg(feature = "measure")]
use crate::measure::{
    bench::BenchError, report::ReportError as KernelsReportError, serving::ServingError,
};
use crate::{
    cache::CacheError,
    engine::{EngineError, ModelError, SamplingError, TokenizerError},
    evict::EvictError,
    fetch::FetchError,
    format::PageFormat,
    report::ReportError,
};

/// One line for the user. Exit code 2.
#[derive(Debug, Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A request that could not go on.
    #[error(transparent)]
    Request(Arc<EngineError>),
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Evict(#[from] EvictError),
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Found at the end: devices saturate without asking.
    #[error(
        "{count} keys or values were more than {format} pages hold, and the results are of saturated ones; \
         --saturate accepts that"
    )]
    Saturated { count: u64, format: PageFormat },
    /// A device asked of a build that knows none.
    #[cfg(not(feature = "cuda"))]
    #[error("--device {0}: this build has no CUDA; build it with `--features cuda`")]
    NoCuda(String),
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Nvrtc(#[from] ObtainError),
    #[cfg(feature = "measure")]
    #[error(transparent)]
    Kernels(#[from] KernelsReportError),
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[cfg(feature = "measure")]
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[cfg(feature = "measure")]
    #[error("the device's results are wrong; see the checks above")]
    WrongResults,
    #[cfg(feature = "measure")]
    #[error(transparent)]
    Serving(#[from] ServingError),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} {reason}", path.display())]
    NotText { path: PathBuf, reason: String },
    #[error("cannot write to standard output: {0}")]
    Stdout(io::Error),
    #[error("cannot write to standard error: {0}")]
    Stderr(io::Error),
    #[error("{0}")]
    Usage(String),
}

/// A message of several lines in one.
pub(super) fn one_line(message: &impl std::fmt::Display) -> String {
    let message = message.to_string();
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}
