//! K or V of one head table, as the kernels walk it.

use std::ops::Range;

use super::ops::Ops;
use crate::{
    attend::Head,
    base::simd::Simd,
    format::{Region, SlotFormat},
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

/// Consecutive slots of one page.
pub(super) struct Run<'a> {
    /// Slots.
    pub slots: usize,
    /// Their payloads, one after another.
    pub payload: &'a [u8],
    /// Their scales, one after another.
    pub scales: &'a [u8],
    /// What the caller will want soon, to bring into the cache meanwhile: the payloads of as many
    /// slots. Only an address: it may lie anywhere.
    pub ahead: *const u8,
    /// Payload bytes of a slot at `ahead`; 0 for nothing.
    pub ahead_stride: usize,
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

    /// The runs of `slots`, in order. `ahead` is a side and a distance: along with slot `i` comes the
    /// address of slot `i + distance` of that side.
    pub fn runs<'b>(
        &'b self,
        slots: Range<usize>,
        ahead: Option<(&'b Side<'a, S>, usize)>,
    ) -> impl Iterator<Item = Run<'a>> + use<'a, 'b, S> {
        let mut next = slots.start;
        std::iter::from_fn(move || {
            let (index, first) = (next / self.page_slots, next % self.page_slots);
            let count = (self.page_slots - first).min(slots.end - next);
            if count == 0 {
                return None;
            }
            let start = self.pages[index] as usize * self.page_bytes;
            let page = &self.bytes[start..start + self.page_bytes];
            let part =
                |start: usize, stride: usize| &page[start + first * stride..][..count * stride];
            let (ahead, ahead_stride) = ahead
                .and_then(|(side, distance)| side.address(next + distance))
                .unwrap_or((std::ptr::null(), 0));
            next += count;
            Some(Run {
                slots: count,
                payload: part(self.region.payload, self.region.payload_stride),
                scales: part(self.region.scales, self.region.scale_stride),
                ahead,
                ahead_stride,
            })
        })
    }

    /// Where the payload of a slot is, and its size, if the table has such a page.
    fn address(&self, slot: usize) -> Option<(*const u8, usize)> {
        let page = *self.pages.get(slot / self.page_slots)? as usize;
        let stride = self.region.payload_stride;
        let offset = page * self.page_bytes + self.region.payload + slot % self.page_slots * stride;
        Some((self.bytes.as_ptr().wrapping_add(offset), stride))
    }
}

impl Run<'_> {
    /// Asks for the lines of the `slot`-th slot ahead.
    #[inline(always)]
    pub fn prefetch(&self, slot: usize) {
        let start = self.ahead.wrapping_add(slot * self.ahead_stride);
        for line in (0..self.ahead_stride).step_by(64) {
            prefetch(start.wrapping_add(line));
        }
    }
}

/// Asks for one cache line; a hint, so any address will do.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE, and a prefetch touches no memory that the program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch touches no memory that the program can see.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
