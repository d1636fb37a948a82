//! What a format is.

use crate::base::simd::Simd;

/// How one slot (one token of one KV head) of K or of V becomes bytes.
///
/// A slot has a *payload* (its `head_dim` values) and, in some formats, *scales*; a page keeps the
/// payloads of all its slots together, then the scales, so that kernels stream both. All sizes are
/// functions of `head_dim` alone, which is a multiple of
/// [`CacheShape::HEAD_DIM_ALIGN`](crate::base::CacheShape::HEAD_DIM_ALIGN).
///
/// # What implementors must keep
/// * `decode(encode(x))` is finite for every `x` up to the largest number of the format, and non-finite
///   values do not become finite ones. What lies between that and the end of f32 either saturates (i8)
///   or overflows to infinity as an IEEE conversion does (f16 from 65,520 on, bf16 from about 3.396e38
///   on): the kernels that encode on a device convert that way, and both must store the same bytes.
/// * [`poison`](Self::poison) makes every value of the slot decode to NaN.
/// * [`load`](Self::load) returns exactly what [`decode`](Self::decode) writes.
pub trait Codec: Copy + Send + Sync + 'static {
    /// The name on command lines and in reports, in lower case.
    const NAME: &'static str;

    /// Payload bytes of one slot.
    fn payload_bytes(head_dim: usize) -> usize;

    /// Scale bytes of one slot; 0 for a format without scales.
    fn scale_bytes(head_dim: usize) -> usize;

    /// Stores the `head_dim` values of `src`.
    fn encode(src: &[f32], payload: &mut [u8], scales: &mut [u8]);

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
