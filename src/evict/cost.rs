//! What each page of a head costs, as integers that sort like the costs.

use std::ops::{ControlFlow, Range};

use super::{
    heads::HeadSlots, histogram::Histogram, page_cost::PageCost, policy::Cost, score::Score,
};

/// A page's cost as 32 bits that sort like it: the code of the score for [`Cost::MaxVictim`], the bits
/// of a [`PageCost`] for [`Cost::SumVictims`].
pub(super) type CostKey = u32;

/// The cost that a key stands for.
pub(super) fn page_cost(cost: Cost, key: CostKey) -> PageCost {
    match cost {
        Cost::MaxVictim => Score::from_bits(key as u16).into(),
        Cost::SumVictims => PageCost::from_bits(key),
    }
}

/// [`page_cost`] as a number.
pub(super) fn cost_of(cost: Cost, key: CostKey) -> f64 {
    match cost {
        Cost::MaxVictim => Score::from_bits(key as u16).to_f32().into(),
        Cost::SumVictims => PageCost::from_bits(key).to_f64(),
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
    // Scores of one exponent are summed as their significands, which 64 bits hold: 11 bits each,
    // 32 bits of them.
    let (mut exponent, mut significands) = (0, 0u64);
    histogram.drain(|code, count| {
        let score = Score::from_bits(code);
        let (significand, own_exponent) = score.significand();
        if own_exponent != exponent {
            sum += u128::from(significands) << exponent;
            (exponent, significands) = (own_exponent, 0);
        }
        let mut count = count as usize;
        while count >= room {
            sum += u128::from(significands + significand * room as u64) << exponent;
            let infinite = score == Score::INFINITY;
            let cost = if infinite { PageCost::INFINITY } else { PageCost::of_steps(sum) };
            emit(cost.to_bits());
            left -= 1;
            if left == 0 {
                return ControlFlow::Break(());
            }
            count -= room;
            (room, sum, significands) = (rest, 0, 0);
        }
        significands += significand * count as u64;
        room -= count;
        ControlFlow::Continue(())
    });
}
