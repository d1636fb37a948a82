//! Which parts of a mirrored buffer changed.

use std::ops::Range;

/// Changed element ranges, kept until they are copied.
#[derive(Clone, Debug, Default)]
pub struct DirtyRanges {
    ranges: Vec<Range<u32>>,
}

impl DirtyRanges {
    /// Marks `range` as changed.
    pub fn mark(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        // Tables are written front to back: most marks extend the one before.
        if let Some(last) = self.ranges.last_mut()
            && last.start <= range.start
            && range.start <= last.end
        {
            last.end = last.end.max(range.end);
            return;
        }
        self.ranges.push(range);
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Takes all ranges, ascending and disjoint; ranges at most `gap` apart are joined, because a few
    /// unchanged elements cost less than another copy.
    pub fn take(&mut self, gap: u32) -> Vec<Range<u32>> {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end.saturating_add(gap) => {
                    last.end = last.end.max(range.end);
                }
                _ => joined.push(range),
            }
        }
        joined
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn taken_ranges_cover_every_mark_and_little_else(
            marks in prop::collection::vec((0u32..200, 0u32..20), 0..30),
            gap in 0u32..10,
        ) {
            let mut dirty = DirtyRanges::default();
            let mut model = [false; 220];
            for &(start, len) in &marks {
                dirty.mark(start..start + len);
                model[start as usize..(start + len) as usize].fill(true);
            }
            prop_assert_eq!(dirty.is_empty(), !model.contains(&true));
            let ranges = dirty.take(gap);
            prop_assert!(dirty.is_empty() && dirty.take(gap).is_empty());
            prop_assert!(ranges.windows(2).all(|w| w[0].end + gap < w[1].start));
            let mut taken = [false; 220];
            for range in &ranges {
                let range = range.start as usize..range.end as usize;
                prop_assert!(model[range.start] && model[range.end - 1]);
                // No run of unchanged elements longer than the gap is copied.
                let clean = model[range.clone()].split(|&m| m).map(<[bool]>::len).max();
                prop_assert!(clean.unwrap_or(0) <= gap as usize);
                taken[range].fill(true);
            }
            prop_assert!(model.iter().zip(&taken).all(|(&m, &t)| !m || t));
        }
    }
}
