//! What each page of a head costs, as integers that sort like the costs.

use std::ops::{ControlFlow, Range};

use super::histogram::Histogram;
use super::{Cost, HeadSlots, Score};

/// A page's cost as 32 bits that sort like it.
///
/// [`Cost::MaxVictim`]: the code of the score. [`Cost::SumVictims`]: the exact sum, cut to 25
/// significant bits; cutting is monotone, so that the costs of a head stay non-decreasing, which
/// a sum in floating point would not promise.
pub(super) type CostKey = u32;

const INFINITE: CostKey = CostKey::MAX;
const FRACTION_BITS: u32 = 24;

/// The key of a sum in units of 2⁻⁵⁷.
#[inline]
fn sum_key(steps: u128) -> CostKey {
    if steps == 0 {
        return 0;
    }
    let zeros = steps.leading_zeros();
    let fraction = ((steps << zeros) >> (127 - FRACTION_BITS)) as u32 & ((1 << FRACTION_BITS) - 1);
    (128 - zeros) << FRACTION_BITS | fraction
}

/// The cost that a key stands for.
pub(super) fn cost_of(cost: Cost, key: CostKey) -> f64 {
    match cost {
        Cost::MaxVictim => Score::from_bits(key as u16).to_f32().into(),
        Cost::SumVictims if key == INFINITE => f64::INFINITY,
        Cost::SumVictims if key == 0 => 0.0,
        Cost::SumVictims => {
            let fraction = u64::from(key & ((1 << FRACTION_BITS) - 1)) << (52 - FRACTION_BITS);
            let exponent = u64::from(key >> FRACTION_BITS) - 1 + 1023 - 57;
            f64::from_bits(exponent << 52 | fraction)
        }
    }
}

/// Hands the costs of the first `pages` pages of `head` to `emit`, in the order in which they would
/// be given up: non-decreasing. `histogram` is empty, and is left so.
pub(super) fn page_costs(
    head: &HeadSlots<'_>,
    evictable: &Range<usize>,
    cost: Cost,
    pages: usize,
    histogram: &mut Histogram,
    emit: impl FnMut(CostKey),
) {
    if pages == 0 {
        return;
    }
    histogram.add_head(head, evictable);
    let extent = head.extent();
    let (first, rest) = (extent.last_page_slots(), extent.slots_per_page);
    match cost {
        Cost::MaxVictim => emit_max(histogram, first, rest, pages, emit),
        Cost::SumVictims => emit_sum(histogram, first, rest, pages, emit),
    }
}

fn emit_max(
    histogram: &mut Histogram,
    first: usize,
    rest: usize,
    pages: usize,
    mut emit: impl FnMut(CostKey),
) {
    let (mut left, mut room) = (pages, first);
    histogram.drain(|code, count| {
        let mut count = count as usize;
        while count >= room {
            emit(code.into());
            left -= 1;
            if left == 0 {
                return ControlFlow::Break(());
            }
            count -= room;
            room = rest;
        }
        room -= count;
        ControlFlow::Continue(())
    });
}

fn emit_sum(
    histogram: &mut Histogram,
    first: usize,
    rest: usize,
    pages: usize,
    mut emit: impl FnMut(CostKey),
) {
    let (mut left, mut room, mut sum) = (pages, first, 0u128);
    histogram.drain(|code, count| {
        let score = Score::from_bits(code);
        let steps = score.steps();
        let mut count = count as usize;
        while count >= room {
            sum += steps * room as u128;
            emit(if score == Score::INFINITY { INFINITE } else { sum_key(sum) });
            left -= 1;
            if left == 0 {
                return ControlFlow::Break(());
            }
            count -= room;
            (room, sum) = (rest, 0);
        }
        sum += steps * count as u128;
        room -= count;
        ControlFlow::Continue(())
    });
}
