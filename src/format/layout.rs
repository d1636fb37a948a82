//! Where the slots of a page lie.

use serde::Serialize;
use thiserror::Error;

use super::{
    SlotFormat,
    codec::{Codec, CodecVisitor},
    page_format::PageFormat,
};
use crate::base::{Channels, ShapeError};

/// Byte layout of a page: how many slots it holds and where each one's K and V are.
///
/// ```text
/// 0            k.payload        v.payload        k.scales       v.scales     page_bytes
/// | K payload × slots | V payload × slots | K scales × slots | V scales × slots | waste |
/// ```
///
/// Where V is a part of K ([`Channels::v_in_k`]) there are the two regions of K only, and V's are the
/// same: a value is the beginning of its slot's key.
///
/// Every region starts on [`PageLayout::REGION_ALIGN`] bytes. A page is
/// [`PageLayout::PAGE_ALIGN`]-aligned, so vector loads and 16-byte asynchronous copies of whole
/// payload rows are aligned too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PageLayout {
    /// What the page stores.
    pub format: PageFormat,
    /// Channels of a slot.
    pub channels: Channels,
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
    /// Bytes from the payload of one slot to that of the next. A slot's own payload is as long, but
    /// where V is a part of K: there it is the first bytes of K's.
    pub payload_stride: usize,
    /// Offset of the first slot's scales.
    pub scales: usize,
    /// Bytes from the scales of one slot to those of the next.
    pub scale_stride: usize,
}

/// A page that cannot be laid out.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum LayoutError {
    /// Not even one slot fits.
    #[error(
        "a page of {page_bytes} bytes holds no slot of {k} and {v} channels in {format} ({needed} bytes)",
        k = channels.k, v = channels.v
    )]
    NoSlotFits {
        /// Bytes of the page.
        page_bytes: usize,
        /// Channels of a slot.
        channels: Channels,
        /// The formats asked for.
        format: PageFormat,
        /// Bytes of a page of one slot.
        needed: usize,
    },
    /// Pages stand one after another, so their size keeps their alignment.
    #[error("a page of {0} bytes is not a multiple of {align} bytes", align = PageLayout::PAGE_ALIGN)]
    Unaligned(usize),
    /// Channels that no cache has.
    #[error(transparent)]
    Channels(#[from] ShapeError),
    /// Values that are a part of their keys, and yet in another format.
    #[error("values that are a part of their keys are stored as these are: {0} has two formats")]
    TwoFormats(PageFormat),
    /// A page beyond the largest.
    #[error("a page of {0} bytes is larger than {max}", max = PageLayout::MAX_PAGE_BYTES)]
    PageTooLarge(usize),
    /// Slots beyond what a page holds, or none.
    #[error("a page of {slots} slots of {k} and {v} channels is empty or too large", k = channels.k, v = channels.v)]
    TooLarge {
        /// Slots asked for.
        slots: usize,
        /// Channels of a slot.
        channels: Channels,
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
        channels: impl Into<Channels>,
        page_bytes: usize,
    ) -> Result<Self, LayoutError> {
        let channels = channels.into();
        if !page_bytes.is_multiple_of(Self::PAGE_ALIGN) {
            return Err(LayoutError::Unaligned(page_bytes));
        }
        if page_bytes > Self::MAX_PAGE_BYTES {
            return Err(LayoutError::PageTooLarge(page_bytes));
        }
        let sizes = Sizes::new(format, channels)?;
        // Region padding can only cost slots, so the sum without it bounds them from above.
        let mut slots = page_bytes / sizes.slot();
        while slots > 0 && sizes.lay_out(slots).2 > page_bytes {
            slots -= 1;
        }
        if slots == 0 {
            let needed = sizes.lay_out(1).2.next_multiple_of(Self::PAGE_ALIGN);
            return Err(LayoutError::NoSlotFits { page_bytes, channels, format, needed });
        }
        let (k, v, _) = sizes.lay_out(slots);
        Ok(Self { format, channels, page_bytes, slots, k, v })
    }

    /// The smallest page that holds `slots` slots.
    pub fn page_bytes_for(
        format: PageFormat,
        channels: impl Into<Channels>,
        slots: usize,
    ) -> Result<usize, LayoutError> {
        let channels = channels.into();
        let sizes = Sizes::new(format, channels)?;
        let fits = slots.checked_mul(sizes.slot()).is_some_and(|b| b <= Self::MAX_PAGE_BYTES / 2);
        if slots == 0 || !fits {
            return Err(LayoutError::TooLarge { slots, channels });
        }
        Ok(sizes.lay_out(slots).2.next_multiple_of(Self::PAGE_ALIGN))
    }

    /// Whether [`new`](Self::new) makes this very layout. The fields are public, so whoever follows
    /// offsets asks first.
    pub fn is_genuine(&self) -> bool {
        Self::new(self.format, self.channels, self.page_bytes).as_ref() == Ok(self)
    }

    /// Payload and scale bytes of one slot, K and V together: what a slot in use occupies.
    pub fn slot_bytes(&self) -> usize {
        self.stored().map(|region| region.payload_stride + region.scale_stride).sum()
    }

    /// The regions that hold bytes of their own: V's is none where V is a part of K.
    pub fn stored(&self) -> impl Iterator<Item = Region> {
        [Some(self.k), (!self.channels.v_in_k).then_some(self.v)].into_iter().flatten()
    }
}

/// Bytes of one slot: payload and scales of K and, where it is stored, of V.
struct Sizes {
    k: (usize, usize),
    v: Option<(usize, usize)>,
}

impl Sizes {
    fn new(format: PageFormat, channels: Channels) -> Result<Self, LayoutError> {
        channels.check()?;
        if channels.v_in_k && format.k != format.v {
            return Err(LayoutError::TwoFormats(format));
        }
        struct Bytes(usize);
        impl CodecVisitor for Bytes {
            type Output = (usize, usize);
            fn visit<C: Codec>(self) -> (usize, usize) {
                (C::payload_bytes(self.0), C::scale_bytes(self.0))
            }
        }
        let bytes = |format: SlotFormat, channels| format.visit(Bytes(channels));
        let v = (!channels.v_in_k).then(|| bytes(format.v, channels.v));
        Ok(Self { k: bytes(format.k, channels.k), v })
    }

    fn slot(&self) -> usize {
        let v = self.v.unwrap_or_default();
        self.k.0 + self.k.1 + v.0 + v.1
    }

    /// The regions of `slots` slots, and where the last one ends.
    fn lay_out(&self, slots: usize) -> (Region, Region, usize) {
        let mut end = 0usize;
        let mut place = |bytes: usize| {
            let start = end.next_multiple_of(PageLayout::REGION_ALIGN);
            end = start + slots * bytes;
            start
        };
        let region = |payload, scales, (payload_stride, scale_stride)| Region {
            payload,
            payload_stride,
            scales,
            scale_stride,
        };
        let payloads = (place(self.k.0), self.v.map(|v| place(v.0)));
        let scales = (place(self.k.1), self.v.map(|v| place(v.1)));
        let k = region(payloads.0, scales.0, self.k);
        let v = match (payloads.1, scales.1, self.v) {
            (Some(payload), Some(scales), Some(bytes)) => region(payload, scales, bytes),
            _ => k,
        };
        (k, v, end)
    }
}
