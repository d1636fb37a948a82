//! Eviction on a device: scores at rest, what pages cost, victims and moves.
//!
//! Scores and positions live by page beside the arena ([`SlotData`]). They leave the device with pages
//! that are swapped out, and are written and copied with the slots that they belong to.
//!
//! | when | what |
//! |---|---|
//! | rows of a prompt | [`Appender`](crate::device::attention::Appender) writes positions, and scores of zero |
//! | after a prompt | [`pool_scores`] |
//! | each decode step | [`StepAppender`](crate::device::attention::StepAppender) (or `Appender`), a [`Decoder`](crate::device::attention::Decoder) with logits, then [`StepScorer`] |
//! | pages are copied (a fork's tail, copy-on-compress) | [`SlotData::copy_pages`] |
//! | pages are swapped out and in | [`SlotData::read`], [`SlotData::write`] |
//! | every so many steps | [`Evictor::costs`]; the host picks the cheapest pages ([`cheapest_pages`](crate::evict::cheapest_pages)); [`Evictor::select`] finds the victims, [`Evictor::moves`] tells the planner, [`Evictor::compact`] moves the survivors; [`Evictor::evict`] does so at once where no page is shared |
//!
//! [`Gatherer`] decodes slots into contiguous rows, for scores that need keys.

mod args;
mod data;
mod evictor;
mod gather;
mod score;

pub use args::{CompactHead, GatherTable, PoolHead, PriceHead, SelectHead, StepHead};
pub use data::{SlotAddresses, SlotData};
pub use evictor::{Costs, Evictor, Losing, MovedTable};
pub use gather::Gatherer;
pub use score::{StepScorer, StepTensors, pool_scores};

/// The most blocks along y that a launch has.
const MOST_BLOCKS_Y: u32 = 65_535;

/// Launches over `heads` heads along y: the first head of each, and how many.
fn launches(heads: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..heads)
        .step_by(MOST_BLOCKS_Y as usize)
        .map(move |first| (first, MOST_BLOCKS_Y.min(heads - first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_cover_all_heads() {
        let of = |heads| launches(heads).collect::<Vec<_>>();
        assert_eq!(of(0), []);
        assert_eq!(of(65_535), [(0, 65_535)]);
        assert_eq!(of(65_536), [(0, 65_535), (65_535, 1)]);
    }
}
