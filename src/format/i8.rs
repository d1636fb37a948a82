//! Signed bytes, one bfloat16 scale per token and group of 32 channels.
//!
//! Symmetric: `scale = max|x| / 127` rounded to bfloat16, `q = round(x / scale)`. Per-token scales let
//! a page take its tokens one at a time, and 32 channels cost half a bit per value. The scale is rounded
//! *before* the values are divided by it, so its rounding costs at most 1/256 of the error that there is
//! anyway: `|x - q · scale| ≤ scale / 2`, where `scale ≤ max|x| / 127 · (1 + 2^-8)`.
//!
//! * bfloat16 has f32's range, so this holds from `max|x|` = 127 · 2^-126 up to [`f32::MAX`]: no scale
//!   is subnormal, below that it is 2^-126. Half precision has one bit more than the bytes need, and its
//!   range ends where values of real models begin.
//! * `max|x| / scale` is below 127.5, so that nothing saturates.
//! * Of a scale with eight bits, the f32 quotient rounds to the integer that is nearest to the exact one,
//!   ties to even: a half-integer times the scale is an f32, and its neighbours' quotients are not
//!   rounded to the half-integer. Hence the same bytes from every instruction set and device.

use half::bf16;

use super::codec::{BLOCK, Codec, saturate_to};
use crate::base::simd::{Isa, Simd};

/// See [`SlotFormat::I8`](super::SlotFormat::I8).
#[derive(Clone, Copy, Debug)]
pub struct I8;

/// Channels that share a scale.
const GROUP: usize = BLOCK / 2;

impl Codec for I8 {
    const NAME: &'static str = "i8";
    const LARGEST: f32 = f32::MAX;
    const OVERFLOW: f32 = f32::INFINITY;

    fn payload_bytes(head_dim: usize) -> usize {
        head_dim
    }

    fn scale_bytes(head_dim: usize) -> usize {
        2 * head_dim.div_ceil(GROUP)
    }

    fn encode(src: &[f32], payload: &mut [u8], scales: &mut [u8]) -> bool {
        encode_with(Isa::detect(), src, payload, scales)
    }

    fn saturate(row: &mut [f32]) -> usize {
        let finite = |group: &[f32]| {
            group.iter().filter(|x| x.is_finite()).fold(0f32, |most, x| most.max(x.abs()))
        };
        row.chunks_mut(GROUP).map(|group| saturate_to(group, finite, f32::is_finite)).sum()
    }

    fn decode(payload: &[u8], scales: &[u8], dst: &mut [f32]) {
        let groups = dst.chunks_mut(GROUP).zip(payload.chunks(GROUP));
        for ((values, bytes), scale) in groups.zip(scales.chunks_exact(2)) {
            let step = bf16::from_le_bytes([scale[0], scale[1]]).to_f32();
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
        simd.splat_bf16(bits)
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

/// [`Codec::encode`] on an instruction set.
pub(super) fn encode_with(isa: Isa, src: &[f32], payload: &mut [u8], scales: &mut [u8]) -> bool {
    isa.vectorize(
        #[inline(always)]
        || {
            let mut held = true;
            let groups = src.chunks(GROUP).zip(payload.chunks_mut(GROUP));
            for ((values, bytes), scale) in groups.zip(scales.chunks_exact_mut(2)) {
                let stored = scale_of(values);
                scale.copy_from_slice(&stored.to_le_bytes());
                held &= !stored.is_nan();
                let step = stored.to_f32();
                // Whole groups apart, so that their loop has a constant length.
                match (<&[f32; GROUP]>::try_from(values), <&mut [u8; GROUP]>::try_from(&mut *bytes))
                {
                    (Ok(values), Ok(bytes)) => quantize(values, bytes, step),
                    _ => quantize(values, bytes, step),
                }
            }
            held
        },
    )
}

/// `round(x / step)`, ties to even, of quotients within ±2^22.
#[inline(always)]
fn quantize(values: &[f32], bytes: &mut [u8], step: f32) {
    // Added to a small number, it leaves the rounded integer in the lowest bits, in two's complement.
    const SHIFT: f32 = 12_582_912.0;
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = (value / step + SHIFT).to_bits() as u8;
    }
}

/// The stored scale of a group: NaN if any value is not finite.
#[inline(always)]
fn scale_of(values: &[f32]) -> bf16 {
    // Bits order as magnitudes do, with the infinity and then NaN above all numbers.
    let magnitudes = values.iter().map(|value| value.to_bits() & !SIGN);
    let largest = magnitudes.fold(0, u32::max);
    if largest >= f32::INFINITY.to_bits() {
        return bf16::NAN;
    }
    bf16::from_f32((f32::from_bits(largest) / 127.0).max(f32::MIN_POSITIVE))
}

/// The sign of an f32.
const SIGN: u32 = 1 << 31;
