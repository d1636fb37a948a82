//! What a format is.

use crate::base::simd::Simd;

/// How one slot (one token of one KV head) of K or of V becomes bytes.
///
/// A slot has a *payload* (its `head_dim` values) and, in some formats, *scales*; a page keeps the
/// payloads of all its slots together, then the scales, so that kernels stream both. All sizes are
/// functions of `head_dim` alone, the channels of the side, which are a multiple of
/// [`Channels::ALIGN`](crate::base::Channels::ALIGN).
///
/// # What implementors must keep
/// * [`encode`](Self::encode) says whether the format holds every value (`|x| <` [`OVERFLOW`](Self::OVERFLOW)).
///   Then all of them decode to finite numbers, and kernels that encode on a device store the same bytes.
///   What is stored otherwise is not to be kept; it is not finite, so that keeping it would show.
/// * After [`saturate`](Self::saturate) a row can be held. Kernels that encode on a device replace values
///   in the same way.
/// * [`poison`](Self::poison) makes every value of the slot decode to NaN.
/// * The first bytes of a slot's payload and scales are those of its first channels: a slot of fewer
///   channels can be read in their place.
/// * [`load`](Self::load) returns exactly what [`decode`](Self::decode) writes.
pub trait Codec: Copy + Send + Sync + 'static {
    /// The name on command lines and in reports, in lower case.
    const NAME: &'static str;

    /// The largest magnitude that is stored.
    const LARGEST: f32;

    /// The least magnitude that is not: from here on rounding would give infinity.
    const OVERFLOW: f32;

    /// Payload bytes of one slot.
    fn payload_bytes(head_dim: usize) -> usize;

    /// Scale bytes of one slot; 0 for a format without scales.
    fn scale_bytes(head_dim: usize) -> usize;

    /// Stores the `head_dim` values of `src`; false if the format cannot hold one of them.
    fn encode(src: &[f32], payload: &mut [u8], scales: &mut [u8]) -> bool;

    /// Replaces the values of a row that the format cannot hold, as
    /// [`Overflow::Saturate`](super::Overflow::Saturate) says; returns how many.
    fn saturate(row: &mut [f32]) -> usize {
        saturate_to(row, |_| Self::LARGEST, |value| value.abs() < Self::OVERFLOW)
    }

    /// Reads the `dst.len() == head_dim` values of a slot.
    fn decode(payload: &[u8], scales: &[u8], dst: &mut [f32]);

    /// Overwrites a slot so that every value of it reads as NaN.
    fn poison(payload: &mut [u8], scales: &mut [u8]);

    /// What the values of a block of [`BLOCK`] channels share, as vectors want it: nothing, or scales.
    type Shared<S: Simd>: Copy;

    /// What the block of `channel` shares.
    ///
    /// # Safety
    /// `scales` points at a whole slot's `scale_bytes`, and `channel < head_dim`.
    unsafe fn shared<S: Simd>(
        simd: S,
        scales: *const u8,
        channel: usize,
        head_dim: usize,
    ) -> Self::Shared<S>;

    /// Reads values `channel .. channel + S::LANES` of a slot, given what their block shares.
    ///
    /// # Safety
    /// `payload` points at a whole slot of `payload_bytes`, `channel` is a multiple of `S::LANES`, and
    /// `channel + S::LANES <= head_dim`.
    unsafe fn load_block<S: Simd>(
        simd: S,
        payload: *const u8,
        channel: usize,
        shared: Self::Shared<S>,
    ) -> S::V;

    /// Reads values `channel .. channel + S::LANES` of a slot.
    ///
    /// # Safety
    /// `payload` and `scales` point at a whole slot of `payload_bytes` and `scale_bytes`,
    /// `channel` is a multiple of `S::LANES`, and `channel + S::LANES <= head_dim`.
    #[inline(always)]
    unsafe fn load<S: Simd>(
        simd: S,
        payload: *const u8,
        scales: *const u8,
        channel: usize,
        head_dim: usize,
    ) -> S::V {
        // SAFETY: the caller's slot and channels.
        unsafe {
            let shared = Self::shared(simd, scales, channel, head_dim);
            Self::load_block(simd, payload, channel, shared)
        }
    }
}

/// Replaces the values of `row` that `holds` does not take: NaN by zero, others by `largest(row)`.
pub(super) fn saturate_to(
    row: &mut [f32],
    largest: impl Fn(&[f32]) -> f32,
    holds: impl Fn(f32) -> bool,
) -> usize {
    let largest = largest(row);
    let mut replaced = 0;
    for value in row.iter_mut().filter(|value| !holds(**value)) {
        *value = if value.is_nan() { 0.0 } else { largest.copysign(*value) };
        replaced += 1;
    }
    replaced
}

/// Channels whose values share what [`Codec::shared`] returns: blocks start at multiples of it.
pub const BLOCK: usize = 64;

/// A computation that is generic over the codec; see
/// [`SlotFormat::visit`](super::SlotFormat::visit).
pub trait CodecVisitor {
    /// What the computation returns.
    type Output;
    /// Runs it for codec `C`.
    fn visit<C: Codec>(self) -> Self::Output;
}
