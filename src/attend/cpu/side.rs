//! K or V of one head table, as the kernels walk it.

use std::ops::Range;

use crate::{
    attend::batch::Head,
    format::{BLOCK, Region},
};

/// The K side or the V side of a head table.
pub(super) struct Side<'a> {
    bytes: &'a [u8],
    pages: &'a [u32],
    page_bytes: usize,
    page_slots: usize,
    region: Region,
}

/// Slots that are scored together, and the runs of a [`Bundle`].
///
/// Hardware prefetchers follow a stream until it leaves its 4 KiB page, and pages are little more: one
/// page after another reads at a third of the bandwidth, four side by side at most of it.
pub(super) const QUAD: usize = 4;

/// Consecutive slots of one page: pointers to the first one's.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub payload: *const u8,
    pub scales: *const u8,
    /// The payloads of as many slots that the caller will want soon. Only an address: it may lie
    /// anywhere.
    pub ahead: *const u8,
}

/// Runs to be walked side by side: a slot of each, then the next one of each. The slots of a single run
/// are dealt to four such runs, so that both look the same to a kernel.
pub(super) struct Bundle {
    runs: [Run; QUAD],
    /// Runs: [`QUAD`], or fewer than that, of one slot.
    count: usize,
    /// Slots of each run that are to be walked.
    pub steps: usize,
    /// From one of them to the next, in slots.
    pub pitch: usize,
}

impl Bundle {
    /// The runs to be walked.
    pub fn runs(&self) -> &[Run] {
        &self.runs[..self.count]
    }

    /// Slots of all runs.
    pub fn slots(&self) -> usize {
        self.count * self.steps
    }

    /// The runs of four slots of the walk from `4 * index` on, and the place of those slots in them.
    /// Where runs are fewer, the first one repeats.
    #[inline(always)]
    pub fn quad(&self, index: usize) -> (&[Run; QUAD], usize) {
        (&self.runs, index * self.pitch)
    }
}

impl<'a> Side<'a> {
    /// The side of `head` that lies in `region`, in pages that lie one after another in `bytes`.
    pub fn new(bytes: &'a [u8], head: &Head<'a>, region: Region) -> Self {
        let (pages, layout) = (head.pages, head.layout);
        let (page_bytes, page_slots) = (layout.page_bytes, layout.slots);
        Self { bytes, pages, page_bytes, page_slots, region }
    }

    /// Slots of each page.
    pub fn page_slots(&self) -> usize {
        self.page_slots
    }

    /// Payload bytes from one slot to the next.
    pub fn slot_bytes(&self) -> usize {
        self.region.payload_stride
    }

    /// Payload and scale bytes from one slot to the next.
    pub fn strides(&self) -> (usize, usize) {
        (self.region.payload_stride, self.region.scale_stride)
    }

    /// `count` slots from `at` on, all of one page.
    #[inline(always)]
    fn run(&self, at: InTable, count: usize, ahead: Option<(&Side<'a>, InTable)>) -> Run {
        let start = self.pages[at.page] as usize * self.page_bytes;
        let page = &self.bytes[start..start + self.page_bytes];
        let part = |start: usize, stride: usize| {
            page[start + at.slot * stride..][..count * stride].as_ptr()
        };
        let payload = part(self.region.payload, self.region.payload_stride);
        let scales = part(self.region.scales, self.region.scale_stride);
        // Beyond the table there is nothing to ask for but what is in the cache already.
        let ahead = ahead.and_then(|(side, distance)| side.ahead(at, distance, count));
        Run { payload, scales, ahead: ahead.unwrap_or(payload) }
    }

    /// Asks for the scales of `count` slots, `distance` from `at`; returns where the payload of the
    /// first one is, unless it is beyond the table.
    #[inline(always)]
    fn ahead(&self, at: InTable, distance: InTable, count: usize) -> Option<*const u8> {
        let (page, slot) = (at.page + distance.page, at.slot + distance.slot);
        let over = slot >= self.page_slots;
        let slot = if over { slot - self.page_slots } else { slot };
        let page = *self.pages.get(page + usize::from(over))? as usize;
        let page = self.bytes.as_ptr().wrapping_add(page * self.page_bytes);
        let region = self.region;
        let scales = page.wrapping_add(region.scales + slot * region.scale_stride);
        for line in (0..count * region.scale_stride).step_by(LINE) {
            prefetch(scales.wrapping_add(line));
        }
        Some(page.wrapping_add(region.payload + slot * region.payload_stride))
    }

    /// Where a slot of the head is.
    fn place(&self, slot: usize) -> InTable {
        InTable { page: slot / self.page_slots, slot: slot % self.page_slots }
    }
}

/// Slots of a side as bundles, in order, side by side where there are whole pages enough.
pub(super) struct Bundles<'b, 'a> {
    side: &'b Side<'a>,
    streams: bool,
    next: InTable,
    left: usize,
    ahead: Option<(&'b Side<'a>, InTable)>,
    /// Filled in place: a copy would read in vectors what was just written piece by piece.
    bundle: Bundle,
}

impl<'b, 'a> Bundles<'b, 'a> {
    /// The runs of `slots`, side by side if `streams` asks for it. `ahead` is a side and a distance:
    /// along with slot `i` comes the address of slot `i + distance` of that side.
    pub fn new(
        side: &'b Side<'a>,
        slots: Range<usize>,
        streams: bool,
        ahead: Option<(&'b Side<'a>, usize)>,
    ) -> Self {
        const NONE: *const u8 = std::ptr::null();
        let none = Run { payload: NONE, scales: NONE, ahead: NONE };
        Self {
            side,
            streams,
            // Divisions are slow, and a walk is short: none but here.
            next: side.place(slots.start),
            left: slots.len(),
            ahead: ahead.map(|(side, distance)| (side, side.place(distance))),
            bundle: Bundle { runs: [none; QUAD], count: 0, steps: 0, pitch: 1 },
        }
    }

    /// The next bundle. Its pointers are good for the slots that are to be walked.
    #[inline(always)]
    pub fn next(&mut self) -> Option<&Bundle> {
        if self.left == 0 {
            return None;
        }
        let page_slots = self.side.page_slots;
        let rest = (page_slots - self.next.slot).min(self.left);
        let pages = self.streams && self.next.slot == 0 && QUAD * page_slots <= self.left;
        let (count, steps, pitch) = if pages {
            (QUAD, rest, 1)
        } else if rest >= QUAD {
            (QUAD, rest / QUAD, QUAD)
        } else {
            (rest, 1, 1)
        };
        for (i, run) in self.bundle.runs.iter_mut().enumerate() {
            let i = if i < count { i } else { 0 };
            let (page, slot) = if pages { (i, 0) } else { (0, i) };
            let at = InTable { page: self.next.page + page, slot: self.next.slot + slot };
            *run = self.side.run(at, (steps - 1) * pitch + 1, self.ahead);
        }
        self.next.slot += if pages { page_slots } else { count * steps };
        if self.next.slot == page_slots {
            self.next = InTable { page: self.next.page + if pages { count } else { 1 }, slot: 0 };
        }
        self.left -= count * steps;
        (self.bundle.count, self.bundle.steps, self.bundle.pitch) = (count, steps, pitch);
        Some(&self.bundle)
    }
}

/// A slot by its page, an index into the table, and its place in that page.
#[derive(Clone, Copy)]
struct InTable {
    page: usize,
    slot: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// How much to ask for ahead, along with each slot.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    slot_bytes: usize,
    /// Bytes of a [`BLOCK`] of channels, and their cache lines; none if nothing is to come.
    block_bytes: usize,
    lines: usize,
}

impl Ahead {
    /// Slots of `side`, if any.
    pub fn new(side: Option<&Side<'_>>, head_dim: usize) -> Self {
        let slot_bytes = side.map_or(0, Side::slot_bytes);
        let block_bytes = slot_bytes.div_ceil(head_dim.div_ceil(BLOCK));
        Self { slot_bytes, block_bytes, lines: block_bytes.div_ceil(LINE) }
    }

    /// Asks for a block of channels, given by its first one, of the `slot`-th slot ahead of each run.
    #[inline(always)]
    pub fn prefetch<const N: usize>(self, ahead: [*const u8; N], slot: usize, channel: usize) {
        self.lines_at(ahead, slot * self.slot_bytes + channel / BLOCK * self.block_bytes);
    }

    /// For a pass over a bundle that takes only the block from `channel` on.
    #[inline(always)]
    pub fn of_tile(self, bundle: &Bundle, channel: usize) -> TileAhead {
        let block = channel / BLOCK;
        let (start, pitch) = if bundle.pitch == 1 {
            (block * bundle.steps * self.block_bytes, self.block_bytes)
        } else {
            (block * self.block_bytes, bundle.pitch * self.slot_bytes)
        };
        TileAhead { ahead: self, start, pitch }
    }

    #[inline(always)]
    fn lines_at<const N: usize>(self, ahead: [*const u8; N], start: usize) {
        let at = |line: usize| {
            for ahead in ahead {
                prefetch(ahead.wrapping_add(start + line * LINE));
            }
        };
        // Two lines are half precision, the common case.
        if self.lines == 2 {
            at(0);
            at(1);
        } else {
            (0..self.lines).for_each(at);
        }
    }
}

/// What a pass over a block of channels asks for: as many bytes of each run as the pass reads, but in
/// the order of memory, so that hardware prefetchers see streams and not every second pair of lines.
#[derive(Clone, Copy)]
pub(super) struct TileAhead {
    ahead: Ahead,
    start: usize,
    pitch: usize,
}

impl TileAhead {
    /// Asks for the share of a step of the runs.
    #[inline(always)]
    pub fn prefetch<const N: usize>(self, ahead: [*const u8; N], step: usize) {
        self.ahead.lines_at(ahead, self.start + step * self.pitch);
    }
}

/// Asks for one cache line; a hint, so any address will do. Into the first level, on its way to which
/// it comes into the second: what the first one cannot keep until it is wanted, the second one does.
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
