//! What ends a benchmark of kernels.

use thiserror::Error;

use crate::{
    base::ShapeError,
    cuda::CudaError,
    device::{DeviceError, kernels::MOST_HEAD_DIM},
    format::LayoutError,
    measure::verify::VerifyError,
};

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The device, the driver or the compiler.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A check could not be made.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A page that cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Heads that make no shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Heads that the kernels are not made for.
    #[error("the kernels take head_dim up to {MOST_HEAD_DIM}, not {0}")]
    HeadDim(usize),
    /// A list with nothing in it, or a zero in one.
    #[error("there is nothing to measure: {0}")]
    Empty(&'static str),
}

impl From<CudaError> for BenchError {
    fn from(error: CudaError) -> Self {
        DeviceError::from(error).into()
    }
}
