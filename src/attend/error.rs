//! What attention refuses.

use thiserror::Error;

use crate::{
    base::{Channels, simd::Isa},
    store::StoreError,
};

/// Bad input to [`Attention::attend`](super::Attention::attend). Nothing was written to the output
/// when one of these is returned, [`Store`](Self::Store) excepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AttendError {
    /// A buffer whose length does not fit the batch.
    #[error("{what} has {got} values, expected {expected}")]
    WrongLength {
        /// Which buffer.
        what: &'static str,
        /// Its length in values.
        got: usize,
        /// The length that fits.
        expected: usize,
    },
    /// Token counts whose product with the shape overflows.
    #[error("a batch of {tokens} tokens is too large")]
    TooLarge {
        /// Σ tokens, saturated.
        tokens: usize,
    },
    /// A span that has not one head table for each KV head.
    #[error("span {span} has {got} head tables, expected {expected}")]
    WrongHeads {
        /// Index of the span in the batch.
        span: usize,
        /// Head tables of the span.
        got: usize,
        /// KV heads of the shape.
        expected: usize,
    },
    /// A layout made for heads of other channels.
    #[error("span {span}, head {head}: a layout of {layout:?} in a layer of {layer:?}")]
    WrongChannels {
        /// Index of the span in the batch.
        span: usize,
        /// KV head.
        head: usize,
        /// Channels of the layout.
        layout: Channels,
        /// Channels of the layer.
        layer: Channels,
    },
    /// A layout made for pages of another size.
    #[error(
        "span {span}, head {head}: a layout for pages of {layout} bytes in a store of {store}-byte pages"
    )]
    WrongPageBytes {
        /// Index of the span in the batch.
        span: usize,
        /// KV head.
        head: usize,
        /// Page bytes of the layout.
        layout: usize,
        /// Page bytes of the store.
        store: usize,
    },
    /// A layout that [`PageLayout::new`](crate::format::PageLayout::new) does not make.
    #[error("span {span}, head {head}: the layout's regions are not those of its format and size")]
    ForgedLayout {
        /// Index of the span in the batch.
        span: usize,
        /// KV head.
        head: usize,
    },
    /// More slots than the pages of the table hold.
    #[error("span {span}, head {head}: {slots} slots do not fit in {pages} pages of {page_slots}")]
    TooFewPages {
        /// Index of the span in the batch.
        span: usize,
        /// KV head.
        head: usize,
        /// Slots in use.
        slots: usize,
        /// Pages of the table.
        pages: usize,
        /// Slots of each page.
        page_slots: usize,
    },
    /// A page id beyond the store.
    #[error("span {span}, head {head}: page {page} is outside a store of {pages} pages")]
    NoSuchPage {
        /// Index of the span in the batch.
        span: usize,
        /// KV head.
        head: usize,
        /// The id.
        page: u32,
        /// Pages in the store.
        pages: usize,
    },
    /// A layer with something that this backend does not compute.
    #[error("this attention has no {0}")]
    Unsupported(&'static str),
    /// An instruction set this machine lacks.
    #[error("this machine has no {0:?} instructions")]
    NoSuchIsa(Isa),
    /// The store failed to read slots that were checked.
    #[error(transparent)]
    Store(#[from] StoreError),
}
