//! Which slots of a head a query sees.

use std::ops::Range;

use crate::base::Window;

/// The slots of a head that one query sees: the first `sinks`, and those of `recent`.
///
/// Without a window these are all slots up to the query's own. In a windowed layer the slots of a head
/// are consecutive tokens, but for a gap behind its first ones where pages have left: so the window is
/// the newest slots, and the sinks are the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    /// First slots that are seen; no more than `recent.start`, and none where `recent` has them.
    pub sinks: usize,
    /// The slots that the window covers.
    pub recent: Range<usize>,
}

impl Visible {
    /// What a query sees whose own slot is the last of the first `end`.
    pub fn of(window: Option<Window>, end: usize) -> Self {
        let Some(Window { tokens, sinks }) = window else {
            return Self { sinks: 0, recent: 0..end };
        };
        match end.saturating_sub(tokens) {
            start if start <= sinks => Self { sinks: 0, recent: 0..end },
            start => Self { sinks, recent: start..end },
        }
    }

    /// Both parts, in slot order.
    pub fn parts(&self) -> [Range<usize>; 2] {
        [0..self.sinks, self.recent.clone()]
    }

    /// Both parts, without the newest `skip` slots.
    pub fn skipping(&self, skip: usize) -> [Range<usize>; 2] {
        let Range { start, end } = self.recent;
        let kept = end.saturating_sub(skip);
        // A skip longer than the window goes on before the gap.
        let sinks = if kept < start { self.sinks.min(kept) } else { self.sinks };
        [0..sinks, start..kept.max(start)]
    }

    /// Slots that are seen.
    pub fn len(&self) -> usize {
        self.sinks + self.recent.len()
    }

    /// Whether nothing is seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Slot `i` holds position `i`: what is seen is what the window's definition says.
        #[test]
        fn is_what_the_window_says(
            end in 0usize..60,
            tokens in 1usize..40,
            sinks in 0usize..40,
            skip in 0usize..70,
        ) {
            let window = Window { tokens, sinks: sinks.min(tokens) };
            let visible = Visible::of(Some(window), end);
            let said = |slot: usize| slot + tokens >= end || slot < window.sinks;
            let want: Vec<usize> = (0..end).filter(|&slot| said(slot)).collect();
            let got: Vec<usize> = visible.parts().into_iter().flatten().collect();
            prop_assert_eq!(&got, &want);
            prop_assert_eq!(visible.len(), want.len());
            let want: Vec<usize> = want.into_iter().filter(|slot| slot + skip < end).collect();
            let got: Vec<usize> = visible.skipping(skip).into_iter().flatten().collect();
            prop_assert_eq!(got, want);
        }
    }
}
