//! What a cache refuses.

use thiserror::Error;

use crate::{
    attend::AttendError,
    evict::EvictError,
    format::{LayoutError, OutOfRange},
    plan::{AuditError, PlanError},
    store::StoreError,
};

/// A call the cache did not carry out; every page is where it was.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CacheError {
    /// The planner refused.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A page format and a page size do not fit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Attention refused.
    #[error(transparent)]
    Attend(#[from] AttendError),
    /// Eviction refused.
    #[error(transparent)]
    Evict(#[from] EvictError),
    /// Pages are not accounted for: the sequences listed are not all there are, each once and closed, or
    /// it is a [defect](AuditError::Defect) of this library.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Memory for less than one page of every head.
    #[error(
        "{bytes} bytes of KV memory hold {pages} pages, one page for each of {heads} heads is the least"
    )]
    TooLittleMemory {
        /// Bytes offered.
        bytes: usize,
        /// Pages that fit in them.
        pages: usize,
        /// KV heads over all layers.
        heads: usize,
    },
    /// A format map with the wrong number of heads, or an index beyond it.
    #[error("no head {head} in a cache of {heads} KV heads over all layers")]
    NoSuchHead {
        /// The index asked for, among all heads; or the heads of a map for another shape.
        head: usize,
        /// KV heads over all layers of the shape.
        heads: usize,
    },
    /// A layer out of order, or one more than the shape has.
    #[error("layer {got} given to a step {}", turn(*expected, *layers))]
    LayerOrder {
        /// The layer given.
        got: usize,
        /// The layer whose turn it is; `layers`, if all were given.
        expected: usize,
        /// Layers of the shape.
        layers: usize,
    },
    /// A step committed before all of its layers were given. It is rolled back.
    #[error("{given} of {layers} layers were given to a step that was to be committed")]
    MissingLayers {
        /// Layers given: the first ones.
        given: usize,
        /// Layers of the shape.
        layers: usize,
    },
    /// A key or a value that the page format of its head cannot hold, or that is no number. Nothing of
    /// the layer is kept: the step can be given the layer again, with other rows, or be dropped.
    /// [`FormatMap::on_overflow`](super::FormatMap::on_overflow) has such values stored as the largest
    /// that the format holds.
    #[error("layer {layer}, KV head {kv_head}, token {token}: {cause}")]
    OutOfRange {
        /// The sequence, by its place in the step.
        member: usize,
        /// The layer.
        layer: usize,
        /// The KV head within the layer.
        kv_head: usize,
        /// The token's position in its sequence.
        token: usize,
        /// The value, its channel, and the format.
        cause: OutOfRange,
    },
    /// K, V, queries or output of the wrong length.
    #[error("{what} has {got} values, expected {expected}")]
    WrongLength {
        /// Which argument.
        what: &'static str,
        /// Its length in values.
        got: usize,
        /// The length that fits.
        expected: usize,
    },
    /// A staged sequence whose pages are of another size, or whose heads are of another shape.
    #[error("what is staged does not fit heads and pages of {page_bytes} bytes of this cache")]
    OtherPages {
        /// Bytes of the cache's pages.
        page_bytes: usize,
    },
    /// A tensor on a device that its kernels cannot take.
    #[error("kernels cannot take {what}: {problem}")]
    BadTensor {
        /// Which argument.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A shape with something that this memory's attention does not compute.
    #[error("this memory's attention has no {0}")]
    Unsupported(&'static str),
    /// A sequence that another step, or another thread, has at the moment.
    #[error("sequence {member} of the step is locked elsewhere")]
    Busy {
        /// Its place in the step.
        member: usize,
    },
    /// A scorer asked for attention of a sequence that collected none for it: it observed nothing, or
    /// for another scorer, or for this one with other settings.
    #[error(
        "the {scorer} scorer with these settings needs attention, which the sequence did not observe for it"
    )]
    NotObserved {
        /// The scorer's name.
        scorer: &'static str,
    },
}

/// Whose turn it is, in words.
fn turn(expected: usize, layers: usize) -> String {
    if expected < layers {
        format!("that expects layer {expected} of 0..{layers}")
    } else {
        format!("that has all of its {layers} layers")
    }
}
