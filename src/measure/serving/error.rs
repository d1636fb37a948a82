//! What ends a serving benchmark.

use thiserror::Error;

use crate::{
    cuda::CudaError,
    device::{DeviceError, MirrorError},
    evict::EvictError,
    format::LayoutError,
    plan::PlanError,
    store::StoreError,
};

/// Why a serving benchmark has no result.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ServingError {
    /// The device, the compiler or cuBLAS.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The planner.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device's tables.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// Eviction.
    #[error(transparent)]
    Evict(#[from] EvictError),
    /// Pages that cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Page bytes that are no store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// KV memory for not even one sequence.
    #[error("{bytes} bytes of KV memory hold no sequence at {rate}x, which needs {needed}")]
    TooLittleMemory {
        /// KV memory given.
        bytes: usize,
        /// The compression rate.
        rate: f64,
        /// What one sequence needs at most.
        needed: usize,
    },
    /// Sizes that the benchmark has no kernels for.
    #[error("{0}")]
    Config(String),
}

impl From<CudaError> for ServingError {
    fn from(error: CudaError) -> Self {
        DeviceError::from(error).into()
    }
}
