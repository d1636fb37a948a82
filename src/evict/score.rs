//! Sixteen bits per slot: an unsigned float whose bit pattern sorts like its value.

use super::error::EvictError;

/// How much a slot matters, at rest: 6 exponent bits, 10 mantissa bits, no sign.
///
/// ```text
///  15       10 9                 0
/// ┌───────────┬───────────────────┐
/// │ exponent  │     mantissa      │   e > 0: 2^(e−48) · (1 + m/1024)
/// └───────────┴───────────────────┘   e = 0: m · 2^−57        0xFFFF: infinity
/// ```
///
/// Normal from 2⁻⁴⁷ (7.1e-15) to 65,472, and gradually down to 2⁻⁵⁷ (6.9e-18) below: squared
/// attention probabilities and their sums over long decodes. Rounding to nearest errs by at most
/// 2⁻¹¹ of the value. Comparing two scores is comparing two integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Score(u16);

const EXPONENT_BIAS: u32 = 48;
const MANTISSA_BITS: u32 = 10;
/// f32 exponent bias minus ours: the distance between the two encodings of one value.
const F32_REBIAS: u32 = (127 - EXPONENT_BIAS) << 23;
const F64_REBIAS: u64 = (1023 - EXPONENT_BIAS as u64) << 52;
/// 2⁵⁷ and its inverse: the smallest step, as the bits of a float.
const STEPS: f32 = f32::from_bits((127 + 57) << 23);
const STEP: f32 = f32::from_bits((127 - 57) << 23);
/// 2⁻⁴⁷
const MIN_NORMAL: f32 = f32::from_bits((127 - 47) << 23);

impl Score {
    /// Nothing is lost with this slot.
    pub const ZERO: Self = Self(0);
    /// The largest finite score, 65,472. Larger finite values are held to it.
    pub const MAX: Self = Self(0xFFFE);
    /// Dies after everything else that may die.
    pub const INFINITY: Self = Self(0xFFFF);
    /// How many codes there are.
    pub(super) const CODES: usize = 1 << 16;

    /// The bit pattern, which sorts like the value.
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// The score of a bit pattern; every one is a score.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The value, exactly.
    pub fn to_f32(self) -> f32 {
        match self {
            Self::INFINITY => f32::INFINITY,
            Self(code) if code < 1 << MANTISSA_BITS => f32::from(code) * STEP,
            Self(code) => f32::from_bits((u32::from(code) << (23 - MANTISSA_BITS)) + F32_REBIAS),
        }
    }

    /// A finite value as `(significand, exponent)`: significand · 2^exponent steps of 2⁻⁵⁷, the
    /// significand below 2¹¹, the exponent below 63. A number within the same bounds if infinite.
    #[inline]
    pub(super) fn significand(self) -> (u64, u32) {
        let (exponent, mantissa) = (self.0 >> MANTISSA_BITS, self.0 & ((1 << MANTISSA_BITS) - 1));
        let normal = u16::from(exponent > 0);
        (u64::from(mantissa | normal << MANTISSA_BITS), u32::from(exponent - normal))
    }

    /// Nearest, ties to even. `value` is a number from zero up.
    fn nearest(value: f32) -> Self {
        if value == f32::INFINITY {
            return Self::INFINITY;
        }
        let code = if value < MIN_NORMAL {
            (value * STEPS).round_ties_even() as u32
        } else {
            let bits = value.to_bits() - F32_REBIAS;
            let shift = 23 - MANTISSA_BITS;
            (bits + (1 << (shift - 1)) - 1 + (bits >> shift & 1)) >> shift
        };
        Self(code.min(u32::from(Self::MAX.0)) as u16)
    }

    /// Adds `increment`, rounding up with the probability that makes the result right on average,
    /// so that increments far below one step of the format are not lost. `dither` is uniform over
    /// 32 bits and should differ from call to call: see [`dither`]. Infinity stays; a finite sum
    /// is held to [`MAX`](Self::MAX). An increment that is negative or no number adds nothing:
    /// [`accumulate`] refuses those for a whole head.
    pub fn accumulate(self, increment: f32, dither: u32) -> Self {
        if self == Self::INFINITY || increment == f32::INFINITY {
            return Self::INFINITY;
        }
        // f64 holds both terms, and 42 bits below our mantissa: 2⁻³² steps are what dither sees.
        let sum = f64::from(self.to_f32()) + f64::from(increment.max(0.0));
        let code = if sum < f64::from(MIN_NORMAL) {
            let fraction = f64::from(dither) * (1.0 / 4_294_967_296.0);
            (sum * f64::from(STEPS) + fraction) as u64
        } else {
            let dropped = 52 - MANTISSA_BITS;
            (sum.to_bits() - F64_REBIAS + (u64::from(dither) << (dropped - 32))) >> dropped
        };
        Self(code.min(u64::from(Self::MAX.0)) as u16)
    }
}

/// Nearest rounding; negatives and NaN are refused as slot 0.
impl TryFrom<f32> for Score {
    type Error = EvictError;

    fn try_from(value: f32) -> Result<Self, EvictError> {
        if value >= 0.0 {
            Ok(Self::nearest(value.abs()))
        } else {
            Err(EvictError::Score { slot: 0, value })
        }
    }
}

impl From<Score> for f32 {
    fn from(score: Score) -> Self {
        score.to_f32()
    }
}

/// Rounds the `values` of a head's slots into `scores`, each to the nearest.
///
/// # Errors
/// The slices differ in length, or a value is negative or NaN (with its slot); `scores` is then
/// unchanged.
pub fn quantize(values: &[f32], scores: &mut [Score]) -> Result<(), EvictError> {
    check(values, scores.len())?;
    for (score, &value) in scores.iter_mut().zip(values) {
        *score = Score::nearest(value.abs());
    }
    Ok(())
}

/// Adds the `increments` of decoding step `step` to the scores of head `head`
/// ([`Score::accumulate`] for each slot, with a [`dither`] of its own).
///
/// # Errors
/// As [`quantize`]: `scores` is then unchanged.
pub fn accumulate(
    scores: &mut [Score],
    increments: &[f32],
    head: usize,
    step: u64,
) -> Result<(), EvictError> {
    check(increments, scores.len())?;
    for (slot, (score, &increment)) in scores.iter_mut().zip(increments).enumerate() {
        let seed = (head as u64) << 32 | slot as u64;
        *score = score.accumulate(increment, dither(seed, step));
    }
    Ok(())
}

/// Uniform over `seed`, evenly spread over `index`.
///
/// `seed` names what accumulates (a head and slot), `index` counts its steps. Successive indices
/// walk the golden-ratio (Weyl) sequence from a hashed start, whose discrepancy over n steps is
/// O(log n / n): a score that sums n increments is off by a few steps of the format, where
/// independent dither would leave it off by √n of them.
pub fn dither(seed: u64, index: u64) -> u32 {
    ((mix(seed) >> 32) as u32).wrapping_add((index as u32).wrapping_mul(0x9E37_79B9))
}

/// The finaliser of SplitMix64 (Steele, Lea & Flood 2014), one increment in.
pub(super) fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn check(values: &[f32], expected: usize) -> Result<(), EvictError> {
    if values.len() != expected {
        return Err(EvictError::Length { what: "the head's scores", got: values.len(), expected });
    }
    match first_unlike(values, |value| value >= 0.0) {
        Some(slot) => Err(EvictError::Score { slot, value: values[slot] }),
        None => Ok(()),
    }
}

/// The index of the first value that is not `fine`.
pub(super) fn first_unlike(values: &[f32], fine: impl Fn(f32) -> bool) -> Option<usize> {
    // Counting vectorises where a search for the first offender does not.
    let count = values.iter().filter(|&&value| fine(value)).count();
    if count == values.len() { None } else { values.iter().position(|&value| !fine(value)) }
}
