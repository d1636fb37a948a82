//! IEEE single precision.

use super::{codec::Codec, range::holds_all};
use crate::base::simd::{Isa, Simd};

/// See [`SlotFormat::F32`](super::SlotFormat::F32).
#[derive(Clone, Copy, Debug)]
pub struct F32;

impl Codec for F32 {
    const NAME: &'static str = "f32";
    const LARGEST: f32 = f32::MAX;
    const OVERFLOW: f32 = f32::INFINITY;

    fn payload_bytes(head_dim: usize) -> usize {
        4 * head_dim
    }

    fn scale_bytes(_head_dim: usize) -> usize {
        0
    }

    fn encode(src: &[f32], payload: &mut [u8], _scales: &mut [u8]) -> bool {
        payload.copy_from_slice(bytemuck::must_cast_slice(src));
        Isa::detect().vectorize(
            #[inline(always)]
            || holds_all::<Self>(src),
        )
    }

    fn decode(payload: &[u8], _scales: &[u8], dst: &mut [f32]) {
        bytemuck::must_cast_slice_mut(dst).copy_from_slice(payload);
    }

    fn poison(payload: &mut [u8], _scales: &mut [u8]) {
        payload.fill(0xff);
    }

    type Shared<S: Simd> = ();

    #[inline(always)]
    unsafe fn shared<S: Simd>(_simd: S, _scales: *const u8, _channel: usize, _head_dim: usize) {}

    #[inline(always)]
    unsafe fn load_block<S: Simd>(simd: S, payload: *const u8, channel: usize, (): ()) -> S::V {
        // SAFETY: the caller's slot holds `channel + LANES` values of four bytes.
        unsafe { simd.load(payload.add(4 * channel).cast()) }
    }
}
