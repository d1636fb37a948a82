//! The cost of a page as an integer that sorts like it.

use super::score::Score;

/// What giving up one page costs, as 32 bits that sort like the cost: 8 of exponent, 24 of fraction.
///
/// Under [`Cost::MaxVictim`](super::Cost::MaxVictim) it is the score, exactly. Under
/// [`Cost::SumVictims`](super::Cost::SumVictims) it is the exact sum, cut to 25 significant bits;
/// cutting is monotone, so that the costs of a head stay non-decreasing, which a sum in floating point
/// would not promise. Sums that agree in these bits are ties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PageCost(u32);

const FRACTION_BITS: u32 = 24;
const FRACTION: u32 = (1 << FRACTION_BITS) - 1;

impl PageCost {
    /// Nothing is lost with the page.
    pub const ZERO: Self = Self(0);
    /// The page goes after all others that may go.
    pub const INFINITY: Self = Self(u32::MAX);

    /// The bit pattern, which sorts like the value.
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// The cost of a bit pattern; every one is a cost.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// A whole number of steps of 2⁻⁵⁷, cut to its 25 leading bits.
    #[inline]
    pub(super) fn of_steps(steps: u128) -> Self {
        if steps == 0 {
            return Self::ZERO;
        }
        let zeros = steps.leading_zeros();
        let fraction = ((steps << zeros) >> (127 - FRACTION_BITS)) as u32 & FRACTION;
        Self((128 - zeros) << FRACTION_BITS | fraction)
    }

    /// The value, exactly.
    pub fn to_f64(self) -> f64 {
        match self {
            Self::ZERO => 0.0,
            Self::INFINITY => f64::INFINITY,
            Self(bits) => {
                let fraction = u64::from(bits & FRACTION) << (52 - FRACTION_BITS);
                let exponent = u64::from(bits >> FRACTION_BITS) + 1023 - 57 - 1;
                f64::from_bits(exponent << 52 | fraction)
            }
        }
    }
}

/// Exact, and in the order of the scores.
impl From<Score> for PageCost {
    fn from(score: Score) -> Self {
        if score == Score::INFINITY {
            return Self::INFINITY;
        }
        let (significand, exponent) = score.significand();
        Self::of_steps(u128::from(significand) << exponent)
    }
}
