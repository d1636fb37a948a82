//! What a compaction says of the slots of one head table.

use std::ops::Range;

/// One slot's journey within a head table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotMove {
    /// The slot that is read.
    pub from: u32,
    /// The slot that is overwritten.
    pub to: u32,
}

/// What an eviction or a truncation does to one head: its slots below `slots_after` are kept or
/// overwritten by `moves`, all others are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadRewrite {
    /// The head, among all heads of the sequence.
    pub head: usize,
    /// Slots in use afterwards.
    pub slots_after: usize,
    /// Survivors from the tail into holes, ascending in both.
    pub moves: Vec<SlotMove>,
}

/// Which token of the sequence each slot of a head table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions<'a> {
    /// Slot `i` holds position `i`: a head that never evicted.
    Identity,
    /// Slot `i` holds position `positions[i]`, in any order: compaction does not keep it.
    Explicit(&'a [u32]),
    /// A head that evicted and went on: the first slots hold the positions of `list`, in any order, and
    /// those after them, which were appended since, hold `run`, `run + 1` and so on.
    Appended {
        /// Positions of the slots that the last compaction left.
        list: &'a [u32],
        /// The position of the first slot after those.
        run: u32,
    },
}

impl<'a> Positions<'a> {
    /// The position that `slot` holds, if the slot is there.
    #[inline]
    pub fn get(&self, slot: usize) -> Option<u32> {
        match *self {
            Self::Identity => u32::try_from(slot).ok(),
            Self::Explicit(positions) => positions.get(slot).copied(),
            Self::Appended { list, run } => match list.get(slot) {
                Some(&position) => Some(position),
                None => u32::try_from(slot - list.len()).ok()?.checked_add(run),
            },
        }
    }

    /// The positions of the first `slots` slots in two parts: those of the first slots one by one, then
    /// the run that the slots after them hold. Together they are as many as there are, at most `slots`.
    #[inline]
    pub fn split(&self, slots: usize) -> (&'a [u32], Range<usize>) {
        match *self {
            Self::Identity => (&[], 0..slots),
            Self::Explicit(list) => (&list[..slots.min(list.len())], 0..0),
            Self::Appended { list, run } => {
                let (list, run) = (&list[..slots.min(list.len())], run as usize);
                (list, run..run.saturating_add(slots - list.len()))
            }
        }
    }

    /// The positions of the first `slots` slots, in slot order; at most as many as there are.
    pub fn to_vec(&self, slots: usize) -> Vec<u32> {
        let (list, run) = self.split(slots);
        let appended = run.map_while(|position| u32::try_from(position).ok());
        list.iter().copied().chain(appended).collect()
    }
}

/// Compacts `slots` slots of which some are dead: how many remain, and the fewest moves that bring the
/// survivors into the slots below that. Each move fills one hole from the tail, both ascending.
pub fn compact(slots: usize, dead: impl Fn(usize) -> bool) -> (usize, Vec<SlotMove>) {
    let kept = (0..slots).filter(|&slot| !dead(slot)).count();
    (kept, close_gaps(slots, kept, dead))
}

/// The moves of [`compact`], for a caller that knows how many of the `slots` slots are `kept`.
pub(crate) fn close_gaps(slots: usize, kept: usize, dead: impl Fn(usize) -> bool) -> Vec<SlotMove> {
    let holes = (0..kept).filter(|&slot| dead(slot));
    let strays = (kept..slots).filter(|&slot| !dead(slot));
    let moves = holes.zip(strays);
    moves.map(|(to, from)| SlotMove { from: from as u32, to: to as u32 }).collect()
}

/// Does to `values`, one for each slot, what a compaction to `kept` slots does to the slots.
pub(crate) fn apply_moves<T: Copy>(values: &mut Vec<T>, moves: &[SlotMove], kept: usize) {
    for m in moves {
        values[m.to as usize] = values[m.from as usize];
    }
    values.truncate(kept);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// All three ways to say which positions slots hold agree with a plain list of them.
        #[test]
        fn positions_are_a_list(
            list in prop::collection::vec(0u32..50, 0..9),
            run in prop_oneof![0u32..50, Just(u32::MAX - 2)],
            slots in 0usize..20,
        ) {
            let identity: Vec<u32> = (0..slots as u32).collect();
            let explicit: Vec<u32> = list.iter().copied().take(slots).collect();
            let appended = list.iter().copied().map(u64::from).chain(u64::from(run)..);
            let appended: Vec<u32> =
                appended.take(slots).map_while(|position| u32::try_from(position).ok()).collect();
            for (positions, plain) in [
                (Positions::Identity, identity),
                (Positions::Explicit(&list), explicit),
                (Positions::Appended { list: &list, run }, appended),
            ] {
                let got: Vec<u32> = (0..slots).map_while(|slot| positions.get(slot)).collect();
                prop_assert_eq!(&got, &plain);
                prop_assert_eq!(positions.to_vec(slots), plain);
            }
        }

        #[test]
        fn compaction_keeps_every_survivor(dead in prop::collection::vec(any::<bool>(), 0..200)) {
            let (kept, moves) = compact(dead.len(), |slot| dead[slot]);
            let mut slots: Vec<usize> = (0..dead.len()).collect();
            apply_moves(&mut slots, &moves, kept);
            slots.sort_unstable();
            let survivors: Vec<usize> = (0..dead.len()).filter(|&s| !dead[s]).collect();
            prop_assert_eq!(slots, survivors);
            prop_assert_eq!(moves.len(), (0..kept).filter(|&s| dead[s]).count());
        }
    }
}
