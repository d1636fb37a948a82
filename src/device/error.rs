//! What can go wrong with K and V on a device.

use thiserror::Error;

use super::kernels::Terms;
use crate::{base::Channels, cuda::CudaError, format::PageFormat};

/// Why something did not happen on a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The driver, the compiler or cuBLAS.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A page that no format fits in.
    #[error("{0}")]
    Layout(String),
    /// Memory and kernels of different contexts.
    #[error("the store and the kernels are of different CUDA contexts")]
    OtherContext,
    /// More work than fixed buffers were made for.
    #[error("{heads} heads or rows are more than the {most} that buffers were made for")]
    TooManyHeads {
        /// Heads (or rows) of the step.
        heads: usize,
        /// What there is room for.
        most: usize,
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
    /// A decode plan that was not made for this decoder, or not by the planner.
    #[error(
        "a plan of {items} items in {lists} lists does not fit a decoder of {blocks} blocks: {problem}"
    )]
    OtherPlan {
        /// Items of the plan.
        items: usize,
        /// Its lists, one for each block that it was divided over.
        lists: usize,
        /// Blocks of the decoder.
        blocks: u32,
        /// What does not fit.
        problem: &'static str,
    },
    /// A launch with other values than the kernels were compiled to take.
    #[error("kernels for layers with {compiled} were launched for one with {given}")]
    OtherTerms {
        /// What the launch has values for.
        given: Terms,
        /// What the kernels were compiled for.
        compiled: Terms,
    },
    /// A page layout with fields that [`PageLayout::new`](crate::format::PageLayout::new) does not give.
    #[error(
        "a page layout that is not that of {format} pages of {page_bytes} bytes and {k} and {v} channels",
        k = channels.k, v = channels.v
    )]
    ForgedLayout {
        /// Its formats.
        format: PageFormat,
        /// Its channels.
        channels: Channels,
        /// Its bytes.
        page_bytes: usize,
    },
}
