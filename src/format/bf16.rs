//! bfloat16.

use half::{bf16, slice::HalfFloatSliceExt};

use super::{codec::Codec, range::holds_all};
use crate::base::simd::{Isa, Simd};

/// See [`SlotFormat::Bf16`](super::SlotFormat::Bf16).
#[derive(Clone, Copy, Debug)]
pub struct Bf16;

impl Codec for Bf16 {
    const NAME: &'static str = "bf16";
    /// 255 · 2^120.
    const LARGEST: f32 = f32::from_bits(0x7f7f_0000);
    // Halfway to the next power of two, and ties go to even.
    const OVERFLOW: f32 = f32::from_bits(0x7f7f_8000);

    fn payload_bytes(head_dim: usize) -> usize {
        2 * head_dim
    }

    fn scale_bytes(_head_dim: usize) -> usize {
        0
    }

    fn encode(src: &[f32], payload: &mut [u8], _scales: &mut [u8]) -> bool {
        // Regions start on 16 bytes and rows are whole 32-byte units, so the cast is aligned.
        bytemuck::cast_slice_mut::<u8, bf16>(payload).convert_from_f32_slice(src);
        Isa::detect().vectorize(
            #[inline(always)]
            || holds_all::<Self>(src),
        )
    }

    fn decode(payload: &[u8], _scales: &[u8], dst: &mut [f32]) {
        bytemuck::cast_slice::<u8, bf16>(payload).convert_to_f32_slice(dst);
    }

    fn poison(payload: &mut [u8], _scales: &mut [u8]) {
        payload.fill(0xff);
    }

    type Shared<S: Simd> = ();

    #[inline(always)]
    unsafe fn shared<S: Simd>(_simd: S, _scales: *const u8, _channel: usize, _head_dim: usize) {}

    #[inline(always)]
    unsafe fn load_block<S: Simd>(simd: S, payload: *const u8, channel: usize, (): ()) -> S::V {
        // SAFETY: the caller's slot holds `channel + LANES` values of two bytes.
        unsafe { simd.load_bf16(payload.add(2 * channel)) }
    }
}
