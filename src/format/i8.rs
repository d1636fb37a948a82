//! Signed bytes, one half-precision scale per token and group of 32 channels.
//!
//! Symmetric: `scale = max|x| / 127`, `q = round(x / scale)`. Per-token scales let a page take its
//! tokens one at a time, and 32 channels cost half a bit per value. The scale is rounded to
//! half precision *before* the values are divided by it, so its rounding adds no error.

use half::f16;

use super::{Codec, codec::BLOCK};
use crate::base::simd::Simd;

/// See [`SlotFormat::I8`](super::SlotFormat::I8).
#[derive(Clone, Copy, Debug)]
pub struct I8;

/// Channels that share a scale.
const GROUP: usize = BLOCK / 2;

impl Codec for I8 {
    const NAME: &'static str = "i8";

    fn payload_bytes(head_dim: usize) -> usize {
        head_dim
    }

    fn scale_bytes(head_dim: usize) -> usize {
        2 * head_dim.div_ceil(GROUP)
    }

    fn encode(src: &[f32], payload: &mut [u8], scales: &mut [u8]) {
        let groups = src.chunks(GROUP).zip(payload.chunks_mut(GROUP));
        for ((values, bytes), scale) in groups.zip(scales.chunks_exact_mut(2)) {
            let stored = scale_of(values);
            scale.copy_from_slice(&stored.to_le_bytes());
            let step = stored.to_f32();
            let inverse = if step > 0.0 { step.recip() } else { 0.0 };
            for (byte, value) in bytes.iter_mut().zip(values) {
                // `as` saturates, and sends NaN to 0: the NaN scale keeps such a group NaN.
                *byte = (value * inverse).round_ties_even() as i8 as u8;
            }
        }
    }

    fn decode(payload: &[u8], scales: &[u8], dst: &mut [f32]) {
        let groups = dst.chunks_mut(GROUP).zip(payload.chunks(GROUP));
        for ((values, bytes), scale) in groups.zip(scales.chunks_exact(2)) {
            let step = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value = f32::from(*byte as i8) * step;
            }
        }
    }

    fn poison(_payload: &mut [u8], scales: &mut [u8]) {
        scales.fill(0xff);
    }

    /// The scales of both halves of the block.
    type Shared<S: Simd> = [S::V; 2];

    #[inline(always)]
    unsafe fn shared<S: Simd>(
        simd: S,
        scales: *const u8,
        channel: usize,
        head_dim: usize,
    ) -> [S::V; 2] {
        let first = channel / BLOCK * 2;
        // SAFETY: the caller's slot holds a two-byte scale for each group of channels. The last block
        // of a head may have one group: then both scales are that one's.
        let bits = unsafe {
            let scales = scales.add(2 * first);
            if (first + 1) * GROUP < head_dim {
                u32::from_le_bytes(scales.cast::<[u8; 4]>().read())
            } else {
                u32::from(u16::from_le_bytes(scales.cast::<[u8; 2]>().read())) * 0x1_0001
            }
        };
        simd.splat_f16(bits)
    }

    #[inline(always)]
    unsafe fn load_block<S: Simd>(
        simd: S,
        payload: *const u8,
        channel: usize,
        scales: [S::V; 2],
    ) -> S::V {
        // SAFETY: the caller's slot holds `channel + LANES` bytes.
        let values = unsafe { simd.load_i8(payload.add(channel)) };
        // Not an index: where `channel` is no constant, that would put the vectors in memory.
        let scale = if channel % BLOCK < GROUP { scales[0] } else { scales[1] };
        simd.mul(values, scale)
    }
}

/// The stored scale: NaN if any value is not finite, else at least `max|x| / 127` up to rounding.
fn scale_of(values: &[f32]) -> f16 {
    let mut largest = 0f32;
    for value in values {
        if !value.is_finite() {
            return f16::NAN;
        }
        largest = largest.max(value.abs());
    }
    // Beyond half precision's range the values saturate at ±127 * MAX, which is still finite.
    f16::from_f32((largest / 127.0).min(f16::MAX.to_f32()))
}
