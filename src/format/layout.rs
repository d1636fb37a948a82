//! Where the slots of a page lie.

use serde::Serialize;
use thiserror::Error;

use super::{
    SlotFormat,
    codec::{Codec, CodecVisitor},
    page_format::PageFormat,
};
use crate::base::CacheShape;

/// Byte layout of a page: how many slots it holds and where each one's K and V are.
///
/// ```text
/// 0            k.payload        v.payload        k.scales       v.scales     page_bytes
/// | K payload × slots | V payload × slots | K scales × slots | V scales × slots | waste |
/// ```
///
/// Every region starts on [`PageLayout::REGION_ALIGN`] bytes. A page is
/// [`PageLayout::PAGE_ALIGN`]-aligned, so vector loads and 16-byte asynchronous copies of whole
/// payload rows are aligned too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PageLayout {
    /// What the page stores.
    pub format: PageFormat,
    /// Channels of a slot.
    pub head_dim: usize,
    /// Bytes of the page.
    pub page_bytes: usize,
    /// Slots that fit.
    pub slots: usize,
    /// Where the keys are.
    pub k: Region,
    /// Where the values are.
    pub v: Region,
}

/// Where the payloads and scales of K (or of V) lie in a page, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Region {
    /// Offset of the first slot's payload.
    pub payload: usize,
    /// Payload bytes of a slot, and the distance from one slot to the next.
    pub payload_stride: usize,
    /// Offset of the first slot's scales.
    pub scales: usize,
    /// Scale bytes of a slot, and the distance from one slot to the next.
    pub scale_stride: usize,
}

/// A page that cannot be laid out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// Not even one slot fits.
    #[error(
        "a page of {page_bytes} bytes holds no slot of head_dim {head_dim} in {format} ({needed} bytes)"
    )]
    NoSlotFits {
        /// Bytes of the page.
        page_bytes: usize,
        /// Channels of a slot.
        head_dim: usize,
        /// The formats asked for.
        format: PageFormat,
        /// Bytes of a page of one slot.
        needed: usize,
    },
    /// Pages stand one after another, so their size keeps their alignment.
    #[error("a page of {0} bytes is not a multiple of {align} bytes", align = PageLayout::PAGE_ALIGN)]
    Unaligned(usize),
    /// Channels that no cache has.
    #[error("head_dim {0} is not a multiple of {align} in {align}..={max}", align = CacheShape::HEAD_DIM_ALIGN, max = CacheShape::MAX_HEAD_DIM)]
    HeadDim(usize),
    /// A page beyond the largest.
    #[error("a page of {0} bytes is larger than {max}", max = PageLayout::MAX_PAGE_BYTES)]
    PageTooLarge(usize),
    /// Slots beyond what a page holds, or none.
    #[error("a page of {slots} slots of head_dim {head_dim} is empty or too large")]
    TooLarge {
        /// Slots asked for.
        slots: usize,
        /// Channels of a slot.
        head_dim: usize,
    },
}

impl PageLayout {
    /// Alignment of every page, in bytes.
    pub const PAGE_ALIGN: usize = 128;
    /// Alignment of every region in a page, in bytes.
    pub const REGION_ALIGN: usize = 16;
    /// The largest page, in bytes: offsets in a page stay far inside 32 bits.
    pub const MAX_PAGE_BYTES: usize = 1 << 26;

    /// Lays out as many slots as fit in `page_bytes`.
    pub fn new(
        format: PageFormat,
        head_dim: usize,
        page_bytes: usize,
    ) -> Result<Self, LayoutError> {
        if !page_bytes.is_multiple_of(Self::PAGE_ALIGN) {
            return Err(LayoutError::Unaligned(page_bytes));
        }
        if page_bytes > Self::MAX_PAGE_BYTES {
            return Err(LayoutError::PageTooLarge(page_bytes));
        }
        let sizes = Sizes::new(format, head_dim)?;
        // Region padding can only cost slots, so the sum without it bounds them from above.
        let mut slots = page_bytes / sizes.slot();
        while slots > 0 && sizes.lay_out(slots).2 > page_bytes {
            slots -= 1;
        }
        if slots == 0 {
            let needed = sizes.lay_out(1).2.next_multiple_of(Self::PAGE_ALIGN);
            return Err(LayoutError::NoSlotFits { page_bytes, head_dim, format, needed });
        }
        let (k, v, _) = sizes.lay_out(slots);
        Ok(Self { format, head_dim, page_bytes, slots, k, v })
    }

    /// The smallest page that holds `slots` slots.
    pub fn page_bytes_for(
        format: PageFormat,
        head_dim: usize,
        slots: usize,
    ) -> Result<usize, LayoutError> {
        let sizes = Sizes::new(format, head_dim)?;
        let fits = slots.checked_mul(sizes.slot()).is_some_and(|b| b <= Self::MAX_PAGE_BYTES / 2);
        if slots == 0 || !fits {
            return Err(LayoutError::TooLarge { slots, head_dim });
        }
        Ok(sizes.lay_out(slots).2.next_multiple_of(Self::PAGE_ALIGN))
    }

    /// Whether [`new`](Self::new) makes this very layout. The fields are public, so whoever follows
    /// offsets asks first.
    pub fn is_genuine(&self) -> bool {
        Self::new(self.format, self.head_dim, self.page_bytes).as_ref() == Ok(self)
    }

    /// Payload and scale bytes of one slot, K and V together: what a slot in use occupies.
    pub fn slot_bytes(&self) -> usize {
        [self.k, self.v].iter().map(|r| r.payload_stride + r.scale_stride).sum()
    }
}

/// Bytes of one slot: payload and scales of K and of V.
struct Sizes {
    k: (usize, usize),
    v: (usize, usize),
}

impl Sizes {
    fn new(format: PageFormat, head_dim: usize) -> Result<Self, LayoutError> {
        if !CacheShape::takes_head_dim(head_dim) {
            return Err(LayoutError::HeadDim(head_dim));
        }
        struct Bytes(usize);
        impl CodecVisitor for Bytes {
            type Output = (usize, usize);
            fn visit<C: Codec>(self) -> (usize, usize) {
                (C::payload_bytes(self.0), C::scale_bytes(self.0))
            }
        }
        let bytes = |format: SlotFormat| format.visit(Bytes(head_dim));
        Ok(Self { k: bytes(format.k), v: bytes(format.v) })
    }

    fn slot(&self) -> usize {
        self.k.0 + self.k.1 + self.v.0 + self.v.1
    }

    /// The regions of `slots` slots, and where the last one ends.
    fn lay_out(&self, slots: usize) -> (Region, Region, usize) {
        let mut end = 0usize;
        let mut place = |bytes: usize| {
            let start = end.next_multiple_of(PageLayout::REGION_ALIGN);
            end = start + slots * bytes;
            start
        };
        let (k, v) = (place(self.k.0), place(self.v.0));
        let (k_scales, v_scales) = (place(self.k.1), place(self.v.1));
        let region = |payload, scales, (payload_stride, scale_stride)| Region {
            payload,
            payload_stride,
            scales,
            scale_stride,
        };
        (region(k, k_scales, self.k), region(v, v_scales, self.v), end)
    }
}
