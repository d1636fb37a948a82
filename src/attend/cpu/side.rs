//! K or V of one head table, as the kernels walk it.

use std::ops::Range;

use super::ops::Ops;
use crate::{
    attend::Head,
    base::simd::Simd,
    format::{BLOCK, Region, SlotFormat},
};

/// The K side or the V side of a head table.
pub(super) struct Side<'a, S: Simd> {
    bytes: &'a [u8],
    pages: &'a [u32],
    page_bytes: usize,
    page_slots: usize,
    region: Region,
    pub ops: Ops<S>,
}

/// The most runs of a [`Bundle`].
///
/// Hardware prefetchers follow a stream until it leaves its 4 KiB page, and pages are little more: one
/// page after another reads at a third of the bandwidth, eight side by side at nearly all of it.
pub(super) const STREAMS: usize = 8;

/// Consecutive slots of one page.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// Their payloads, one after another.
    pub payload: &'a [u8],
    /// Their scales, one after another.
    pub scales: &'a [u8],
    /// The payloads of as many slots that the caller will want soon. Only an address: it may lie
    /// anywhere.
    ahead: *const u8,
}

/// Runs of equal length, to be walked side by side: the first slot of each, then the second of each.
pub(super) struct Bundle<'a> {
    /// Slots of each run.
    pub slots: usize,
    runs: [Run<'a>; STREAMS],
    count: usize,
}

impl<'a> Bundle<'a> {
    /// One run, or a multiple of four.
    pub fn runs(&self) -> &[Run<'a>] {
        &self.runs[..self.count]
    }
}

impl<'a, S: Simd> Side<'a, S> {
    /// The side of `head` that `region` and `format` describe, in pages that lie one after another
    /// in `bytes`.
    pub fn new(bytes: &'a [u8], head: &Head<'a>, region: Region, format: SlotFormat) -> Self {
        let (pages, layout) = (head.pages, head.layout);
        let (page_bytes, page_slots) = (layout.page_bytes, layout.slots);
        Self { bytes, pages, page_bytes, page_slots, region, ops: Ops::new(format) }
    }

    /// Slots of each page.
    pub fn page_slots(&self) -> usize {
        self.page_slots
    }

    /// Payload bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.region.payload_stride
    }

    /// The runs of `slots`, in order, side by side where there are whole pages enough and `streams`
    /// asks for it. `ahead` is a side and a distance: along with slot `i` comes the address of slot
    /// `i + distance` of that side.
    pub fn bundles<'b>(
        &'b self,
        slots: Range<usize>,
        streams: bool,
        ahead: Option<(&'b Side<'a, S>, usize)>,
    ) -> impl Iterator<Item = Bundle<'a>> + use<'a, 'b, S> {
        let mut next = slots.start;
        std::iter::from_fn(move || {
            let first = next % self.page_slots;
            let slots_each = (self.page_slots - first).min(slots.end - next);
            if slots_each == 0 {
                return None;
            }
            let whole_pages = if first == 0 { (slots.end - next) / self.page_slots } else { 0 };
            let count = match whole_pages {
                _ if !streams => 1,
                0..4 => 1,
                4..8 => 4,
                _ => STREAMS,
            };
            let run = self.run(next, slots_each, ahead);
            let mut runs = [run; STREAMS];
            for (i, run) in runs[..count].iter_mut().enumerate().skip(1) {
                *run = self.run(next + i * slots_each, slots_each, ahead);
            }
            next += count * slots_each;
            Some(Bundle { slots: slots_each, runs, count })
        })
    }

    /// `count` slots from `slot` on, all of one page.
    fn run(&self, slot: usize, count: usize, ahead: Option<(&Side<'a, S>, usize)>) -> Run<'a> {
        let (index, first) = (slot / self.page_slots, slot % self.page_slots);
        let start = self.pages[index] as usize * self.page_bytes;
        let page = &self.bytes[start..start + self.page_bytes];
        let part = |start: usize, stride: usize| &page[start + first * stride..][..count * stride];
        let payload = part(self.region.payload, self.region.payload_stride);
        let scales = part(self.region.scales, self.region.scale_stride);
        // Beyond the table there is nothing to ask for but what is in the cache already.
        let ahead = ahead.and_then(|(side, distance)| side.ahead(slot + distance, count));
        Run { payload, scales, ahead: ahead.unwrap_or(payload.as_ptr()) }
    }

    /// Asks for the scales of `count` slots; returns where the payload of the first one is, unless it
    /// is beyond the table.
    fn ahead(&self, slot: usize, count: usize) -> Option<*const u8> {
        let (page, first) = (self.page(slot / self.page_slots)?, slot % self.page_slots);
        let region = self.region;
        let scales = page.wrapping_add(region.scales + first * region.scale_stride);
        for line in (0..count * region.scale_stride).step_by(LINE) {
            prefetch(scales.wrapping_add(line));
        }
        Some(page.wrapping_add(region.payload + first * region.payload_stride))
    }

    /// Where page `index` of the table starts.
    fn page(&self, index: usize) -> Option<*const u8> {
        let page = *self.pages.get(index)? as usize;
        Some(self.bytes.as_ptr().wrapping_add(page * self.page_bytes))
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// How much to ask for ahead, along with each slot.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    slot_bytes: usize,
    /// Bytes of a [`BLOCK`] of channels; none if nothing is to come.
    block_bytes: usize,
}

impl Ahead {
    /// Slots of `side`, if any.
    pub fn new<S: Simd>(side: Option<&Side<'_, S>>, head_dim: usize) -> Self {
        let slot_bytes = side.map_or(0, Side::slot_bytes);
        Self { slot_bytes, block_bytes: (slot_bytes * BLOCK).div_ceil(head_dim) }
    }
}

impl Run<'_> {
    /// Asks for a block of channels, given by its first one, of the `slot`-th slot ahead.
    #[inline(always)]
    pub fn prefetch(&self, ahead: Ahead, slot: usize, channel: usize) {
        let start = slot * ahead.slot_bytes + channel / BLOCK * ahead.block_bytes;
        let start = self.ahead.wrapping_add(start);
        let mut line = 0;
        while line < ahead.block_bytes {
            prefetch(start.wrapping_add(line));
            line += LINE;
        }
    }
}

/// Asks for one cache line in the second-level cache; a hint, so any address will do. The first level
/// is too small for what is wanted soon, and its few outstanding misses are for the loads themselves.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE, and a prefetch touches no memory that the program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch touches no memory that the program can see.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
