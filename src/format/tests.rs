//! Every codec against its contract, every layout against its page.

mod ranges;

use proptest::prelude::*;

use super::*;
use crate::base::{
    ShapeError,
    simd::{Isa, Portable, Simd},
};

/// One slot in aligned memory.
struct Slot {
    payload: Vec<u8>,
    scales: Vec<u8>,
}

struct Encode<'a>(&'a [f32]);
impl CodecVisitor for Encode<'_> {
    type Output = Slot;
    fn visit<C: Codec>(self) -> Slot {
        let head_dim = self.0.len();
        let mut slot = Slot {
            payload: vec![0; C::payload_bytes(head_dim)],
            scales: vec![0; C::scale_bytes(head_dim)],
        };
        C::encode(self.0, &mut slot.payload, &mut slot.scales);
        slot
    }
}

struct Decode<'a>(&'a Slot, usize);
impl CodecVisitor for Decode<'_> {
    type Output = Vec<f32>;
    fn visit<C: Codec>(self) -> Vec<f32> {
        let mut values = vec![0.0; self.1];
        C::decode(&self.0.payload, &self.0.scales, &mut values);
        values
    }
}

struct Load<'a, S: Simd>(S, &'a Slot, usize);
impl<S: Simd> CodecVisitor for Load<'_, S> {
    type Output = Vec<f32>;
    fn visit<C: Codec>(self) -> Vec<f32> {
        let Self(simd, slot, head_dim) = self;
        let mut values = vec![0.0; head_dim];
        for channel in (0..head_dim).step_by(S::LANES) {
            // SAFETY: the slot was encoded with this codec for `head_dim` channels, a multiple of
            // the lanes.
            unsafe {
                let v =
                    C::load(simd, slot.payload.as_ptr(), slot.scales.as_ptr(), channel, head_dim);
                simd.store(values.as_mut_ptr().add(channel), v);
            }
        }
        values
    }
}

struct Poison<'a>(&'a mut Slot);
impl CodecVisitor for Poison<'_> {
    type Output = ();
    fn visit<C: Codec>(self) {
        C::poison(&mut self.0.payload, &mut self.0.scales);
    }
}

fn head_dims() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![16usize, 64, 80, 96, 128, 256])
}

proptest! {
    #[test]
    fn a_page_keeps_its_regions_apart(
        k in prop::sample::select(SlotFormat::ALL),
        v in prop::sample::select(SlotFormat::ALL),
        head_dim in head_dims(),
        units in 1usize..200,
    ) {
        let format = PageFormat { k, v };
        let Ok(layout) = PageLayout::new(format, head_dim, units * PageLayout::PAGE_ALIGN) else {
            return Ok(());
        };
        let mut used = vec![false; layout.page_bytes];
        let mut claim = |start: usize, len: usize| {
            for byte in &mut used[start..start + len] {
                assert!(!std::mem::replace(byte, true), "regions overlap in {layout:?}");
            }
        };
        for region in [layout.k, layout.v] {
            prop_assert_eq!(region.payload % PageLayout::REGION_ALIGN, 0);
            prop_assert_eq!(region.scales % PageLayout::REGION_ALIGN, 0);
            for slot in 0..layout.slots {
                claim(region.payload + slot * region.payload_stride, region.payload_stride);
                claim(region.scales + slot * region.scale_stride, region.scale_stride);
            }
        }
        // No slot more would have fitted.
        let more = PageLayout::page_bytes_for(format, head_dim, layout.slots + 1).unwrap();
        prop_assert!(more > layout.page_bytes);
        let same = PageLayout::page_bytes_for(format, head_dim, layout.slots).unwrap();
        prop_assert!(same <= layout.page_bytes);
    }
}

#[test]
fn vector_loads_read_what_decode_reads() {
    let values: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.173).collect();
    for &format in SlotFormat::ALL {
        let slot = format.visit(Encode(&values));
        let expected = format.visit(Decode(&slot, values.len()));
        assert_eq!(format.visit(Load(Portable, &slot, values.len())), expected);
        for isa in Isa::available() {
            let read = match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => {
                    let simd = crate::base::simd::Avx2::detect().unwrap();
                    format.visit(Load(simd, &slot, values.len()))
                }
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => {
                    let simd = crate::base::simd::Avx512::detect().unwrap();
                    format.visit(Load(simd, &slot, values.len()))
                }
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => {
                    let simd = crate::base::simd::Neon::detect().unwrap();
                    format.visit(Load(simd, &slot, values.len()))
                }
                _ => format.visit(Load(Portable, &slot, values.len())),
            };
            assert_eq!(read, expected, "{format} with {isa:?}");
        }
    }
}

#[test]
fn poisoned_slots_read_as_nan() {
    for &format in SlotFormat::ALL {
        let mut slot = format.visit(Encode(&[1.0; 80]));
        format.visit(Poison(&mut slot));
        assert!(format.visit(Decode(&slot, 80)).iter().all(|x| x.is_nan()), "{format}");
    }
}

/// What is not held is never kept; if it were, it would show.
#[test]
fn what_is_not_held_does_not_read_as_finite() {
    for &format in SlotFormat::ALL {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; 64];
            values[17] = bad;
            let slot = format.visit(Encode(&values));
            assert!(!format.visit(Decode(&slot, 64))[17].is_finite(), "{format}: {bad}");
        }
    }
}

/// The table of `docs/page-format.md`.
#[test]
fn pages_of_sixteen_f16_slots_hold_in_other_formats() {
    for head_dim in [64, 128] {
        let bytes = PageLayout::page_bytes_for(PageFormat::default(), head_dim, 16).unwrap();
        assert_eq!(bytes, 64 * head_dim);
        for (format, slots) in
            [("f32", 8), ("f16", 16), ("bf16", 16), ("k=f16,v=i8", 20), ("i8", 30)]
        {
            let layout = PageLayout::new(format.parse().unwrap(), head_dim, bytes).unwrap();
            assert_eq!(layout.slots, slots, "{format} at {head_dim}");
        }
    }
}

#[test]
fn impossible_pages_are_refused() {
    let f32 = PageFormat::both(SlotFormat::F32);
    assert!(matches!(PageLayout::new(f32, 128, 1000), Err(LayoutError::Unaligned(1000))));
    assert!(matches!(PageLayout::new(f32, 128, 0), Err(LayoutError::NoSlotFits { .. })));
    assert!(matches!(
        PageLayout::new(f32, 128, 896),
        Err(LayoutError::NoSlotFits { needed: 1024, .. })
    ));
    assert!(PageLayout::page_bytes_for(f32, 128, 0).is_err());
    assert!(PageLayout::page_bytes_for(f32, 128, usize::MAX).is_err());
    for head_dim in [0, 8, 72, 1040, usize::MAX, usize::MAX - 15] {
        let refused = LayoutError::Channels(ShapeError::Channels(head_dim));
        assert_eq!(PageLayout::new(f32, head_dim, 1024), Err(refused.clone()));
        assert_eq!(PageLayout::page_bytes_for(f32, head_dim, 16), Err(refused));
    }
    let most = PageLayout::MAX_PAGE_BYTES;
    assert!(PageLayout::new(f32, 128, most).is_ok());
    assert_eq!(PageLayout::new(f32, 128, 2 * most), Err(LayoutError::PageTooLarge(2 * most)));
}

#[test]
fn only_what_the_constructor_makes_is_genuine() {
    let layout = PageLayout::new(PageFormat::both(SlotFormat::I8), 64, 4096).unwrap();
    assert!(layout.is_genuine());
    for forge in [
        (|l| l.slots = 0) as fn(&mut PageLayout),
        |l| l.channels.k = 0,
        |l| l.channels.v = 32,
        |l| l.channels.v_in_k = true,
        |l| l.page_bytes = usize::MAX,
        |l| l.k.payload += 4096,
        |l| l.v.scale_stride = 0,
        |l| l.format.k = SlotFormat::F16,
    ] {
        let mut forged = layout;
        forge(&mut forged);
        assert!(!forged.is_genuine(), "{forged:?}");
    }
}

#[test]
fn names_parse_back() {
    for &k in SlotFormat::ALL {
        for &v in SlotFormat::ALL {
            let format = PageFormat { k, v };
            assert_eq!(format.to_string().parse(), Ok(format));
        }
    }
    assert_eq!("v=f16, k=i8".parse::<PageFormat>().unwrap().k, SlotFormat::I8);
    for bad in ["", "f8", "k=f16", "k=f16,k=f16", "q=f16,v=f16", "k=f16,v=", "k:f16,v=f16"] {
        assert!(bad.parse::<PageFormat>().is_err(), "{bad}");
    }
}
