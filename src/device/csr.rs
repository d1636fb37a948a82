//! Page tables for stock kernels.
//!
//! FlashInfer's paged attention takes its tables in compressed sparse rows: `indptr`, `indices` and
//! `last_page_len` (FlashInfer's page on KV-cache layouts; Ye et al., *FlashInfer*, 2025, section 3.1).
//! Heads of different length fit it when each (sequence, KV head) is a row of a batch with one KV
//! head, and its query group that row's query heads.

use serde::Serialize;
use thiserror::Error;

use crate::format::{PageLayout, SlotFormat};

/// Tables of a batch in compressed sparse rows: one row per (sequence, KV head).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CsrTables {
    /// The pages of row `i` are `indices[indptr[i]..indptr[i + 1]]`.
    pub indptr: Vec<i32>,
    /// Page ids, row after row.
    pub indices: Vec<i32>,
    /// Slots in use in each row's last page, from 1 to the page's slots; 0 for an empty row.
    pub last_page_len: Vec<i32>,
}

/// A table that does not fit the format.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CsrError {
    /// A number of pages or an id beyond 31 bits, which the kernels' integers have.
    #[error("{0} does not fit in the 31 bits of a stock kernel's index")]
    TooLarge(usize),
    /// More slots than the pages have.
    #[error("row {row} has {slots} slots in {pages} pages of {page_slots}")]
    Slots {
        /// Which row.
        row: usize,
        /// Its slots in use.
        slots: usize,
        /// Its pages.
        pages: usize,
        /// Slots of a page.
        page_slots: usize,
    },
}

impl CsrTables {
    /// Builds the tables from each row's pages and slots in use. Pages after the last one in use
    /// (reserved ones) are left out.
    pub fn new<'a>(
        rows: impl IntoIterator<Item = (&'a [u32], usize)>,
        page_slots: usize,
    ) -> Result<Self, CsrError> {
        let index = |value: usize| i32::try_from(value).map_err(|_| CsrError::TooLarge(value));
        let mut tables = Self { indptr: vec![0], ..Self::default() };
        for (row, (pages, slots)) in rows.into_iter().enumerate() {
            let used = slots.div_ceil(page_slots.max(1));
            let Some(used) = pages.get(..used).filter(|_| page_slots > 0) else {
                return Err(CsrError::Slots { row, slots, pages: pages.len(), page_slots });
            };
            for &page in used {
                tables.indices.push(index(page as usize)?);
            }
            tables.indptr.push(index(tables.indices.len())?);
            let last = slots - used.len().saturating_sub(1) * page_slots;
            tables.last_page_len.push(index(last)?);
        }
        Ok(tables)
    }
}

/// How the arena looks to a kernel that takes K and V as `[pages, slots, 1, head_dim]` with strides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StockView {
    /// How each value is stored.
    pub format: SlotFormat,
    /// Values from one page to the next.
    pub page_stride: usize,
    /// Values from one slot to the next.
    pub slot_stride: usize,
    /// Values from a page's start to its first K.
    pub k_offset: usize,
    /// Values from a page's start to its first V.
    pub v_offset: usize,
    /// Slots of a page.
    pub page_slots: usize,
}

impl StockView {
    /// The view of pages of `layout`; `None` where K and V differ in format or have scales, which
    /// stock kernels do not read.
    pub fn new(layout: &PageLayout) -> Option<Self> {
        let format = layout.format.k;
        let plain = layout.k.scale_stride == 0 && layout.v.scale_stride == 0;
        if layout.format.v != format || !plain || layout.channels.v_in_k {
            return None;
        }
        let value = layout.k.payload_stride / layout.channels.k;
        let values = |bytes: usize| bytes.is_multiple_of(value).then_some(bytes / value);
        Some(Self {
            format,
            page_stride: values(layout.page_bytes)?,
            slot_stride: values(layout.k.payload_stride)?,
            k_offset: values(layout.k.payload)?,
            v_offset: values(layout.v.payload)?,
            page_slots: layout.slots,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::PageFormat;

    proptest! {
        /// Walking the rows as FlashInfer does finds each row's slots, in order.
        #[test]
        fn rows_walk_back_to_the_tables(
            lengths in prop::collection::vec(0usize..70, 0..20),
            page_slots in 1usize..20,
            spare in 0usize..3,
        ) {
            let mut next = 0u32;
            let tables: Vec<(Vec<u32>, usize)> = lengths.iter().map(|&slots| {
                let pages = slots.div_ceil(page_slots) + spare;
                let ids = (0..pages).map(|_| { next += 7; next }).collect();
                (ids, slots)
            }).collect();
            let csr = CsrTables::new(tables.iter().map(|(p, s)| (p.as_slice(), *s)), page_slots).unwrap();
            prop_assert_eq!(csr.indptr.len(), lengths.len() + 1);
            for (row, (pages, slots)) in tables.iter().enumerate() {
                let span = csr.indptr[row] as usize..csr.indptr[row + 1] as usize;
                let walked: Vec<(u32, usize)> = span.clone().flat_map(|i| {
                    let last = i + 1 == span.end;
                    let len = if last { csr.last_page_len[row] as usize } else { page_slots };
                    let page = csr.indices[i] as u32;
                    (0..len).map(move |slot| (page, slot))
                }).collect();
                let expected: Vec<(u32, usize)> =
                    (0..*slots).map(|i| (pages[i / page_slots], i % page_slots)).collect();
                prop_assert_eq!(walked, expected);
                prop_assert_eq!(csr.last_page_len[row] == 0, *slots == 0);
            }
        }
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let error = CsrTables::new([(&[1u32][..], 5), (&[2][..], 9)], 8).unwrap_err();
        assert_eq!(error.to_string(), "row 1 has 9 slots in 1 pages of 8");
        let error = CsrTables::new([(&[u32::MAX][..], 1)], 8).unwrap_err();
        assert_eq!(error, CsrError::TooLarge(u32::MAX as usize));
        assert!(CsrTables::new([(&[][..], 1)], 0).is_err());
    }

    #[test]
    fn the_view_finds_each_value() {
        let layout = PageLayout::new(PageFormat::both(SlotFormat::F16), 64, 8192).unwrap();
        let view = StockView::new(&layout).unwrap();
        assert_eq!((view.page_stride, view.slot_stride, view.page_slots), (4096, 64, 32));
        assert_eq!((view.k_offset, view.v_offset), (0, 2048));
        let i8 = PageLayout::new(PageFormat::both(SlotFormat::I8), 64, 8192).unwrap();
        assert_eq!(StockView::new(&i8), None);
        let mixed = PageFormat { k: SlotFormat::F32, v: SlotFormat::F16 };
        assert_eq!(StockView::new(&PageLayout::new(mixed, 64, 8192).unwrap()), None);
    }
}
