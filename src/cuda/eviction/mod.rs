//! Eviction on a device: scores at rest, what pages cost, victims and moves.
//!
//! Scores and positions live by page beside the arena ([`SlotData`]) and never leave the device.
//!
//! | when | what |
//! |---|---|
//! | after a prompt | [`pool_scores`] |
//! | each decode step | a [`Decoder`](crate::cuda::attention::Decoder) with logits, then [`StepScorer`] |
//! | every so many steps | [`Evictor::costs`]; the host picks the cheapest pages ([`cheapest_pages`](crate::evict::cheapest_pages)); [`Evictor::evict`] selects the victims and moves the survivors; [`Evictor::moves`] tells the planner |
//!
//! [`Gatherer`] decodes slots into contiguous rows, for scores that need keys.

mod args;
mod data;
mod evictor;
mod gather;
mod score;

pub use args::{CompactHead, GatherTable, PoolHead, PriceHead, SelectHead, StepHead};
pub use data::{SlotAddresses, SlotData};
pub use evictor::{Costs, Evictor, Losing};
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
