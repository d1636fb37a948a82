//! Counts of 16-bit codes: what replaces sorting.

use std::ops::{ControlFlow, Range};

use super::{
    heads::{HeadSlots, PositionRange},
    score::Score,
};

/// Bins that are looked at together: one cache line of counts.
const LINE: usize = 16;
/// Equal codes in a row that are counted by one addition.
const RUN: usize = 4;

/// One count per 16-bit code, 256 KiB, reused from head to head.
pub(super) struct Histogram {
    bins: Box<[u32; Score::CODES]>,
}

impl Histogram {
    pub const BYTES: usize = Score::CODES * size_of::<u32>();

    pub fn new() -> Self {
        let bins = vec![0; Score::CODES].into_boxed_slice();
        Self { bins: bins.try_into().expect("the vector has one bin per code") }
    }

    /// Counts one code.
    #[inline]
    pub fn add(&mut self, code: u16) {
        self.bins[usize::from(code)] += 1;
    }

    /// Counts the scores of those slots of `head` whose positions are in `evictable`.
    pub fn add_head(&mut self, head: &HeadSlots<'_>, evictable: &Range<usize>) {
        let inside = PositionRange::new(evictable);
        for (score, &position) in head.scores.iter().zip(head.listed()) {
            self.bins[usize::from(score.to_bits())] += u32::from(inside.contains(position));
        }
        self.add_scores(&head.scores[head.appended_range(evictable)]);
    }

    fn add_scores(&mut self, scores: &[Score]) {
        let (runs, rest) = scores.as_chunks::<RUN>();
        for run in runs {
            // Incrementing one bin over and over waits for its own last store: where scores tie,
            // as zeros and saturated scores do, count the run at once.
            if run.iter().all(|score| *score == run[0]) {
                self.bins[usize::from(run[0].to_bits())] += RUN as u32;
            } else {
                run.iter().for_each(|score| self.add(score.to_bits()));
            }
        }
        rest.iter().for_each(|score| self.add(score.to_bits()));
    }

    /// Calls `visit` with every code that was counted and its count, ascending, until it breaks;
    /// then forgets all counts.
    #[inline]
    pub fn drain(&mut self, mut visit: impl FnMut(u16, u32) -> ControlFlow<()>) {
        let mut done = false;
        for (line, bins) in self.bins.as_chunks_mut::<LINE>().0.iter_mut().enumerate() {
            if bins.iter().fold(0, |any, count| any | count) == 0 {
                continue;
            }
            for (i, count) in bins.iter().enumerate() {
                if !done && *count > 0 {
                    done = visit((line * LINE + i) as u16, *count).is_break();
                }
            }
            *bins = [0; LINE];
        }
    }

    /// The code of the `n`-th smallest that was counted (1 is the smallest), and how many of the
    /// `n` have that very code; then forgets all counts. `n` is at most the number counted.
    pub fn drain_nth(&mut self, n: usize) -> (u16, usize) {
        let mut left = n;
        let mut found = (0, 0);
        self.drain(|code, count| {
            if left <= count as usize {
                found = (code, left);
                return ControlFlow::Break(());
            }
            left -= count as usize;
            ControlFlow::Continue(())
        });
        found
    }
}
