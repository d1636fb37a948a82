//! Page bytes: where they live, and how slots get in, out and about.
//!
//! A store moves bytes and decides nothing: which page belongs to whom is the planner's knowledge.
//! [`PageStore`] is what every memory offers; [`HostStore`] keeps pages in one host arena.

mod arena;
mod host;
pub(crate) mod slots;

use thiserror::Error;

pub use host::HostStore;

use crate::{
    base::SlotMove,
    format::{OutOfRange, Overflow, PageLayout},
};

/// The pages of one head table and how they are laid out.
#[derive(Clone, Copy, Debug)]
pub struct TablePages<'a> {
    /// Page ids in slot order: slot `i` is slot `i % layout.slots` of page `i / layout.slots`.
    pub pages: &'a [u32],
    /// Layout of each of these pages.
    pub layout: &'a PageLayout,
}

/// f32 rows of one KV head within the K or V of all heads: row `i` starts at `i * stride` and has
/// a value for each channel.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// From the first value of the first row to the last value of the last one, or more.
    pub values: &'a [f32],
    /// Values from one row to the next; at least the channels.
    pub stride: usize,
    /// Rows.
    pub count: usize,
}

impl<'a> Rows<'a> {
    /// Rows one after another, `width` values each. Stores refuse a rest that is no whole row, which
    /// counts as one, and rows of no values.
    pub fn dense(values: &'a [f32], width: usize) -> Self {
        Self { values, stride: width, count: values.len().div_ceil(width.max(1)) }
    }

    /// Refuses rows that overlap or that `values` does not hold.
    pub(crate) fn check(&self, what: &'static str, channels: usize) -> Result<(), StoreError> {
        let before_last = self.count.saturating_sub(1).checked_mul(self.stride);
        let expected = match self.count {
            0 => Some(0),
            _ => before_last.and_then(|start| start.checked_add(channels)),
        };
        let (got, expected) = (self.values.len(), expected.unwrap_or(usize::MAX));
        if self.stride < channels || got < expected {
            return Err(StoreError::WrongLength { what, got, expected });
        }
        Ok(())
    }

    /// No rows: V, where it is a part of K.
    pub fn none() -> Self {
        Self { values: &[], stride: 0, count: 0 }
    }

    pub(crate) fn row(&self, index: usize, channels: usize) -> &'a [f32] {
        &self.values[index * self.stride..][..channels]
    }
}

/// What a store refuses. Nothing was written when one of these is returned, but for
/// [`OutOfRange`](Self::OutOfRange), after which the slots to append are undefined, and
/// [`Device`](Self::Device).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// A page id beyond the store.
    #[error("page {page} is outside a store of {pages} pages")]
    NoSuchPage {
        /// The id asked for.
        page: u32,
        /// Pages in the store.
        pages: usize,
    },
    /// Slots beyond the pages of the table.
    #[error("slots up to {end} do not fit in {pages} pages of {slots} slots")]
    NoSuchSlot {
        /// One past the last slot asked for.
        end: usize,
        /// Pages of the table.
        pages: usize,
        /// Slots of each page.
        slots: usize,
    },
    /// A layout made for pages of another size.
    #[error("a layout for pages of {layout} bytes in a store of {store}-byte pages")]
    WrongLayout {
        /// Page bytes of the layout.
        layout: usize,
        /// Page bytes of the store.
        store: usize,
    },
    /// A layout that [`PageLayout::new`] does not make.
    #[error("the layout's regions are not those of its format and size")]
    ForgedLayout,
    /// Rows that are not a whole number of slots, or K and V of different lengths.
    #[error("{what} has {got} values, expected {expected}")]
    WrongLength {
        /// Which argument.
        what: &'static str,
        /// Its length in values.
        got: usize,
        /// The length that fits.
        expected: usize,
    },
    /// A value that its format cannot hold. The slots that were to be appended are undefined, all others
    /// as they were.
    #[error("row {row}: {cause}")]
    OutOfRange {
        /// Which of the rows to append.
        row: usize,
        /// The value.
        cause: OutOfRange,
    },
    /// The memory was not granted.
    #[error("{bytes} bytes of page memory were not granted: {reason}")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// What the system said.
        reason: String,
    },
    /// The device that the pages are on failed; what it wrote before is undefined.
    #[error("page memory on the device: {0}")]
    Device(String),
    /// No page, or a page size that breaks alignment.
    #[error("a store of {pages} pages of {page_bytes} bytes: need at least one page, and a multiple of {align} bytes", align = PageLayout::PAGE_ALIGN)]
    BadSize {
        /// Pages asked for.
        pages: usize,
        /// Bytes of each.
        page_bytes: usize,
    },
}

/// Memory made of equal pages.
///
/// Rows are f32 with a value per channel: wherever [`Rows`] says for those that are appended, one
/// slot after another for those that are read. Where V is a part of K, none of it is appended
/// ([`Rows::none`]), and it is read like any other. Every method checks its layout, page ids and slots before
/// it touches a byte.
pub trait PageStore {
    /// Bytes of each page.
    fn page_bytes(&self) -> usize;

    /// Pages in the store.
    fn pages(&self) -> usize;

    /// Encodes `k.count` slots, starting at slot `first`. `overflow` says what becomes of values that the
    /// formats cannot hold; returns how many were saturated.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] if such a value is to be refused; besides bad input.
    fn append_with(
        &mut self,
        table: TablePages<'_>,
        first: usize,
        k: Rows<'_>,
        v: Rows<'_>,
        overflow: Overflow,
    ) -> Result<usize, StoreError>;

    /// Encodes `k.count` slots, starting at slot `first`; refuses values that the formats cannot hold.
    fn append(
        &mut self,
        table: TablePages<'_>,
        first: usize,
        k: Rows<'_>,
        v: Rows<'_>,
    ) -> Result<(), StoreError> {
        self.append_with(table, first, k, v, Overflow::Refuse).map(drop)
    }

    /// Decodes `k.len() / channels.k` slots, starting at slot `first`.
    fn read(
        &self,
        table: TablePages<'_>,
        first: usize,
        k: &mut [f32],
        v: &mut [f32],
    ) -> Result<(), StoreError>;

    /// Decodes only the keys of `k.len() / channels.k` slots, starting at slot `first`.
    fn read_keys(
        &self,
        table: TablePages<'_>,
        first: usize,
        k: &mut [f32],
    ) -> Result<(), StoreError>;

    /// Copies slots within a table, bit for bit, in the order given.
    fn move_slots(&mut self, table: TablePages<'_>, moves: &[SlotMove]) -> Result<(), StoreError>;

    /// Copies whole pages, bit for bit: `(from, to)`.
    fn copy_pages(&mut self, copies: &[(u32, u32)]) -> Result<(), StoreError>;

    /// Marks the slots of freed pages so that a stray read shows: every value reads as NaN. Debug
    /// builds of the cache call it for each page that is freed.
    fn poison(&mut self, pages: &[u32]) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests;
