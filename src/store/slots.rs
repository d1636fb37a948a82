//! Slots of tables in the bytes of pages: what every store shares.

use std::ops::Range;

use super::{PageStore, Rows, StoreError, TablePages};
use crate::{
    base::{Channels, SlotMove},
    format::{Codec, CodecVisitor, OutOfRange, Overflow, PageLayout, Region, Side, SlotFormat},
};

/// Bytes of `pages` pages of `page_bytes` bytes, if pages of that size and number can be addressed.
pub fn arena_bytes(pages: usize, page_bytes: usize) -> Result<usize, StoreError> {
    let bad = StoreError::BadSize { pages, page_bytes };
    let aligned = page_bytes.is_multiple_of(PageLayout::PAGE_ALIGN);
    if pages == 0 || page_bytes == 0 || !aligned || u32::try_from(pages).is_err() {
        return Err(bad);
    }
    pages.checked_mul(page_bytes).ok_or(bad)
}

/// Checks the rows of an append.
pub fn check_rows(k: Rows<'_>, v: Rows<'_>, channels: Channels) -> Result<(), StoreError> {
    k.check("K", channels.k)?;
    // A value that is a part of its key comes with it.
    let expected = if channels.v_in_k { 0 } else { k.count };
    if v.count != expected {
        return Err(StoreError::WrongLength { what: "V rows", got: v.count, expected });
    }
    if channels.v_in_k { Ok(()) } else { v.check("V", channels.v) }
}

/// Checks that K and V of a read are of one number of slots, which is returned.
pub fn slots_of_both(k: usize, v: usize, channels: Channels) -> Result<usize, StoreError> {
    let slots = slots_of("K", k, channels.k)?;
    let expected = slots.saturating_mul(channels.v);
    if v != expected {
        return Err(StoreError::WrongLength { what: "V", got: v, expected });
    }
    Ok(slots)
}

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
    check_layout(store, table.layout)?;
    check_slots(store, table, range)
}

/// Checks that the table is of `store` and holds both ends of every move.
pub fn check_moves<S: PageStore>(
    store: &S,
    table: TablePages<'_>,
    moves: &[SlotMove],
) -> Result<(), StoreError> {
    check_layout(store, table.layout)?;
    let mut slots = moves.iter().flat_map(|m| [m.from as usize, m.to as usize]);
    slots.try_for_each(|slot| check_slots(store, table, &(slot..slot + 1)))
}

/// `count` slots from `first` on, if there can be such slots in the table.
pub fn slots_from(
    table: TablePages<'_>,
    first: usize,
    count: usize,
) -> Result<Range<usize>, StoreError> {
    let (pages, slots) = (table.pages.len(), table.layout.slots);
    let end = first.checked_add(count);
    let end = end.ok_or(StoreError::NoSuchSlot { end: usize::MAX, pages, slots })?;
    Ok(first..end)
}

/// Checks that pages of `store` are laid out like this: offsets and strides can then be trusted.
fn check_layout<S: PageStore>(store: &S, layout: &PageLayout) -> Result<(), StoreError> {
    if layout.page_bytes != store.page_bytes() {
        let (layout, store) = (layout.page_bytes, store.page_bytes());
        return Err(StoreError::WrongLayout { layout, store });
    }
    if layout.is_genuine() { Ok(()) } else { Err(StoreError::ForgedLayout) }
}

/// Checks that the table, whose layout is, holds slots `range`.
fn check_slots<S: PageStore>(
    store: &S,
    table: TablePages<'_>,
    range: &Range<usize>,
) -> Result<(), StoreError> {
    let layout = table.layout;
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

/// How many slots `values` values are; of a layout without channels, none.
pub fn slots_of(what: &'static str, values: usize, head_dim: usize) -> Result<usize, StoreError> {
    if values.is_multiple_of(head_dim) {
        return Ok(values.checked_div(head_dim).unwrap_or(0));
    }
    let rows = values.checked_next_multiple_of(head_dim);
    Err(StoreError::WrongLength { what, got: values, expected: rows.unwrap_or(0) })
}

/// The byte ranges of a slot's payload and scales.
pub fn ranges(region: Region, slot: usize) -> (Range<usize>, Range<usize>) {
    let payload = region.payload + slot * region.payload_stride;
    let scales = region.scales + slot * region.scale_stride;
    (payload..payload + region.payload_stride, scales..scales + region.scale_stride)
}

/// Encodes row `index` of `k` and of `v` into slot `slot` of the page `bytes`; returns how many values
/// were saturated.
pub fn encode(
    layout: &PageLayout,
    bytes: &mut [u8],
    slot: usize,
    (k, v): (Rows<'_>, Rows<'_>),
    index: usize,
    overflow: Overflow,
) -> Result<usize, StoreError> {
    let channels = layout.channels;
    let key = (Side::Key, layout.format.k, layout.k, k.row(index, channels.k));
    let value = (!channels.v_in_k)
        .then(|| (Side::Value, layout.format.v, layout.v, v.row(index, channels.v)));
    let mut saturated = 0;
    for (side, format, region, row) in [Some(key), value].into_iter().flatten() {
        let encoded = format.visit(EncodeSlot { bytes: &mut *bytes, region, slot, row });
        if !encoded {
            saturated += match (overflow, OutOfRange::first_in(row, side, format)) {
                (Overflow::Refuse, Some(cause)) => {
                    return Err(StoreError::OutOfRange { row: index, cause });
                }
                _ => format.visit(EncodeSaturated { bytes: &mut *bytes, region, slot, row }),
            };
        }
    }
    Ok(saturated)
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
    type Output = bool;

    fn visit<C: Codec>(self) -> bool {
        let (payload, scales) = ranges(self.region, self.slot);
        if scales.is_empty() {
            C::encode(self.row, &mut self.bytes[payload], &mut [])
        } else {
            // Scales come after all payloads of the page.
            let (front, back) = self.bytes.split_at_mut(scales.start);
            C::encode(self.row, &mut front[payload], &mut back[..scales.len()])
        }
    }
}

/// Encodes a row whose values are not all held, and returns how many were replaced.
struct EncodeSaturated<'a> {
    bytes: &'a mut [u8],
    region: Region,
    slot: usize,
    row: &'a [f32],
}

impl CodecVisitor for EncodeSaturated<'_> {
    type Output = usize;

    #[cold]
    fn visit<C: Codec>(self) -> usize {
        let Self { bytes, region, slot, row } = self;
        let mut row = row.to_vec();
        let replaced = C::saturate(&mut row);
        EncodeSlot { bytes, region, slot, row: &row }.visit::<C>();
        replaced
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
        // Where V is a part of K, its slots are the beginnings of longer ones.
        let (channels, payload, scales) =
            (self.row.len(), &self.bytes[payload], &self.bytes[scales]);
        let payload = &payload[..C::payload_bytes(channels)];
        C::decode(payload, &scales[..C::scale_bytes(channels)], self.row);
    }
}
