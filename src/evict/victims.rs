//! Which slots of one head die.

use std::ops::Range;

use super::{
    heads::{HeadSlots, PositionRange},
    histogram::Histogram,
    score::Score,
};
use crate::base::Positions;

/// The `count` lowest of a head's evictable slots, as a rule that tells slot by slot. Equal scores
/// die by position, the lowest first.
pub(super) struct Victims<'a> {
    scores: &'a [Score],
    positions: Positions<'a>,
    inside: PositionRange,
    /// Lower scores die, equal ones if their position is in `dying`.
    threshold: Score,
    dying: PositionRange,
}

impl<'a> Victims<'a> {
    /// `count` is from 1 to the number of evictable slots; `histogram` is empty, and is left so.
    pub fn select(
        head: &HeadSlots<'a>,
        evictable: &Range<usize>,
        count: usize,
        histogram: &mut Histogram,
    ) -> Self {
        histogram.add_head(head, evictable);
        let (code, ties) = histogram.drain_nth(count);
        let threshold = Score::from_bits(code);
        let inside = PositionRange::new(evictable);
        let last = last_dying(head, evictable, threshold, ties);
        Self {
            scores: head.scores,
            positions: head.positions,
            inside,
            threshold,
            dying: PositionRange::new(&(evictable.start..last as usize + 1)),
        }
    }

    /// Whether `slot` dies. Slots that are not there do not.
    #[inline]
    pub fn contains(&self, slot: usize) -> bool {
        let (Some(&score), Some(position)) = (self.scores.get(slot), self.positions.get(slot))
        else {
            return false;
        };
        self.inside.contains(position)
            && (score < self.threshold || score == self.threshold && self.dying.contains(position))
    }
}

/// The `nth` lowest position among the evictable slots whose score is `threshold`.
fn last_dying(head: &HeadSlots<'_>, evictable: &Range<usize>, threshold: Score, nth: usize) -> u32 {
    let appended = head.appended_range(evictable).filter(|&slot| head.scores[slot] == threshold);
    let mut appended = appended.filter_map(|slot| head.positions.get(slot));
    if head.listed().is_empty() {
        return appended.nth(nth - 1).unwrap_or(evictable.end as u32);
    }
    let inside = PositionRange::new(evictable);
    let mut tied: Vec<u32> = (head.scores.iter().zip(head.listed()))
        .filter(|&(score, &position)| *score == threshold && inside.contains(position))
        .map(|(_, &position)| position)
        .collect();
    tied.extend(appended);
    *tied.select_nth_unstable(nth - 1).1
}
