//! Slots of tables in the bytes of pages: what every store shares.

use std::ops::Range;

use super::{PageStore, StoreError, TablePages};
use crate::format::{Codec, CodecVisitor, Region, SlotFormat};

/// Checks a page id.
pub fn check_page(page: u32, pages: usize) -> Result<(), StoreError> {
    if (page as usize) < pages {
        return Ok(());
    }
    Err(StoreError::NoSuchPage { page, pages })
}

/// Checks that the table is of `store` and holds slots `range`.
pub fn check_table<S: PageStore>(
    store: &S,
    table: TablePages<'_>,
    range: &Range<usize>,
) -> Result<(), StoreError> {
    let layout = table.layout;
    if layout.page_bytes != store.page_bytes() {
        let (layout, store) = (layout.page_bytes, store.page_bytes());
        return Err(StoreError::WrongLayout { layout, store });
    }
    if range.end > table.pages.len() * layout.slots {
        let (pages, slots) = (table.pages.len(), layout.slots);
        return Err(StoreError::NoSuchSlot { end: range.end, pages, slots });
    }
    let pages = range.start / layout.slots..range.end.div_ceil(layout.slots);
    table.pages[pages].iter().try_for_each(|&page| check_page(page, store.pages()))
}

/// The page and the slot in it that a table's slot is.
pub fn locate(table: TablePages<'_>, slot: usize) -> (u32, usize) {
    (table.pages[slot / table.layout.slots], slot % table.layout.slots)
}

/// How many slots `values` values are.
pub fn slots_of(what: &'static str, values: usize, head_dim: usize) -> Result<usize, StoreError> {
    if values.is_multiple_of(head_dim) {
        return Ok(values / head_dim);
    }
    let expected = values.next_multiple_of(head_dim);
    Err(StoreError::WrongLength { what, got: values, expected })
}

/// The byte ranges of a slot's payload and scales.
pub fn ranges(region: Region, slot: usize) -> (Range<usize>, Range<usize>) {
    let payload = region.payload + slot * region.payload_stride;
    let scales = region.scales + slot * region.scale_stride;
    (payload..payload + region.payload_stride, scales..scales + region.scale_stride)
}

/// Encodes `row` into slot `slot` of the page `bytes`.
pub fn encode(format: SlotFormat, region: Region, bytes: &mut [u8], slot: usize, row: &[f32]) {
    format.visit(EncodeSlot { bytes, region, slot, row });
}

/// Decodes slot `slot` of the page `bytes` into `row`.
pub fn decode(format: SlotFormat, region: Region, bytes: &[u8], slot: usize, row: &mut [f32]) {
    format.visit(DecodeSlot { bytes, region, slot, row });
}

struct EncodeSlot<'a> {
    bytes: &'a mut [u8],
    region: Region,
    slot: usize,
    row: &'a [f32],
}

impl CodecVisitor for EncodeSlot<'_> {
    type Output = ();

    fn visit<C: Codec>(self) {
        let (payload, scales) = ranges(self.region, self.slot);
        if scales.is_empty() {
            C::encode(self.row, &mut self.bytes[payload], &mut []);
        } else {
            // Scales come after all payloads of the page.
            let (front, back) = self.bytes.split_at_mut(scales.start);
            C::encode(self.row, &mut front[payload], &mut back[..scales.len()]);
        }
    }
}

struct DecodeSlot<'a> {
    bytes: &'a [u8],
    region: Region,
    slot: usize,
    row: &'a mut [f32],
}

impl CodecVisitor for DecodeSlot<'_> {
    type Output = ();

    fn visit<C: Codec>(self) {
        let (payload, scales) = ranges(self.region, self.slot);
        C::decode(&self.bytes[payload], &self.bytes[scales], self.row);
    }
}
