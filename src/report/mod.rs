//! What the memory is doing: exact reports of a live cache.
//!
//! [`MemoryReport`] counts where every byte of a [`KvCache`](crate::cache::KvCache) is; it prints as
//! text and serialises as JSON. With the feature `report`, [`html`] lays numbers out as one
//! self-contained page, and files are written whole or not at all.

#[cfg(feature = "report")]
mod destination;
#[cfg(feature = "report")]
mod error;
#[cfg(feature = "report")]
mod file;
#[cfg(feature = "report")]
pub mod html;
mod memory;
mod tally;
mod text;

#[cfg(feature = "report")]
pub use destination::{Destination, Identity};
#[cfg(feature = "report")]
pub use error::ReportError;
#[cfg(feature = "report")]
pub use file::{json, write_atomically, write_json};
pub use memory::{
    Alternatives, CompressionRates, HeadMemory, MemoryReport, MetadataBytes, PoolBytes,
    SequenceMemory,
};
pub use tally::MemoryUse;
pub use text::Bytes;

#[cfg(test)]
mod tests;
