//! What a compaction says of the slots of one head table.

/// One slot's journey within a head table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotMove {
    /// The slot that is read.
    pub from: u32,
    /// The slot that is overwritten.
    pub to: u32,
}

/// Which token each slot of a head table holds.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// Slot `i` holds the token at position `i`: the head never evicted.
    Identity,
    /// The position of each slot; compaction keeps no order.
    Explicit(&'a [u32]),
}

impl Positions<'_> {
    /// The position of the token in `slot`.
    #[inline]
    pub fn of(self, slot: usize) -> u32 {
        match self {
            Self::Identity => slot as u32,
            Self::Explicit(positions) => positions[slot],
        }
    }
}

/// Compacts `slots` slots of which some are dead: how many remain, and the fewest moves that bring the
/// survivors into the slots below that. Each move fills one hole from the tail, both ascending.
pub fn compact(slots: usize, dead: impl Fn(usize) -> bool) -> (usize, Vec<SlotMove>) {
    let kept = (0..slots).filter(|&slot| !dead(slot)).count();
    let holes = (0..kept).filter(|&slot| dead(slot));
    let strays = (kept..slots).filter(|&slot| !dead(slot));
    let moves = holes.zip(strays);
    (kept, moves.map(|(to, from)| SlotMove { from: from as u32, to: to as u32 }).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn compaction_keeps_every_survivor(dead in prop::collection::vec(any::<bool>(), 0..200)) {
            let (kept, moves) = compact(dead.len(), |slot| dead[slot]);
            let mut slots: Vec<usize> = (0..dead.len()).collect();
            moves.iter().for_each(|m| slots[m.to as usize] = slots[m.from as usize]);
            slots.truncate(kept);
            slots.sort_unstable();
            let survivors: Vec<usize> = (0..dead.len()).filter(|&s| !dead[s]).collect();
            prop_assert_eq!(slots, survivors);
            prop_assert_eq!(moves.len(), (0..kept).filter(|&s| dead[s]).count());
        }
    }
}
