//! Prompts as a prefill and an eviction leave them: per head how many slots, which positions, which
//! scores.

use crate::{
    base::{Positions, SlotMove},
    evict::{Budget, EvictError, HeadSlots, Policy, Score, plan},
};

/// How unlike heads are, and slots within a head: standard deviations of the logarithms of scores. With
/// these the longest head keeps several times the mean, as measured on real models.
const HEADS_SPREAD: f64 = 1.5;
const SLOTS_SPREAD: f64 = 2.0;

/// The same numbers on every run (SplitMix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Another `seed`, other numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Uniform from 0 up to 1.
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Of the standard normal distribution (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().max(1e-300).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// One head of a prompt.
#[derive(Clone, Debug)]
pub struct PromptHead {
    /// Slots that are kept.
    pub slots: usize,
    /// How the survivors moved.
    pub moves: Vec<SlotMove>,
    /// Which position each kept slot holds.
    pub positions: Vec<u32>,
    /// Their scores.
    pub scores: Vec<u16>,
}

/// All heads of a prompt, after an eviction by the planner.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// The heads, layer by layer.
    pub heads: Vec<PromptHead>,
}

impl Prompt {
    /// A prompt of `tokens` tokens over `heads` heads whose scores spread lognormally, compressed to
    /// one page in `rate`.
    ///
    /// # Errors
    /// A rate that cannot be met.
    pub fn new(
        tokens: usize,
        heads: usize,
        page_slots: usize,
        rate: f64,
        policy: &Policy,
        seed: u64,
    ) -> Result<Self, EvictError> {
        let mut random = Random::new(seed);
        let scores: Vec<Vec<Score>> = (0..heads)
            .map(|_| {
                let head = HEADS_SPREAD * random.normal();
                // A squared probability of an even attention is about here.
                let typical = -2.0 * (tokens.max(1) as f64).ln();
                let mut score = || {
                    let logarithm = typical + head + SLOTS_SPREAD * random.normal();
                    Score::try_from(logarithm.exp() as f32).unwrap_or(Score::ZERO)
                };
                (0..tokens).map(|_| score()).collect()
            })
            .collect();
        let slots: Vec<HeadSlots<'_>> = scores
            .iter()
            .map(|scores| HeadSlots {
                scores,
                positions: Positions::Identity,
                slots_per_page: page_slots,
            })
            .collect();
        let extents: Vec<_> = slots.iter().map(HeadSlots::extent).collect();
        let free = Budget::Ratio(rate).pages_to_free(&extents, tokens, policy)?;
        let plan = plan(&slots, tokens, policy, free)?;
        let kept = plan.heads().iter().zip(&scores).map(|(plan, scores)| {
            let mut positions: Vec<u32> = (0..tokens as u32).collect();
            let mut scores: Vec<u16> = scores.iter().map(|score| score.to_bits()).collect();
            plan.apply_to(&mut positions)?;
            plan.apply_to(&mut scores)?;
            let (slots, moves) = (plan.slots_after(), plan.moves().to_vec());
            Ok(PromptHead { slots, moves, positions, scores })
        });
        Ok(Self { tokens, heads: kept.collect::<Result<_, EvictError>>()? })
    }

    /// Pages that it holds.
    pub fn pages(&self, page_slots: usize) -> usize {
        self.heads.iter().map(|head| head.slots.div_ceil(page_slots)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_prompt_is_ragged_and_within_its_budget() {
        let policy = Policy::default();
        let prompt = Prompt::new(2000, 16, 16, 8.0, &policy, 3).unwrap();
        assert_eq!(prompt.pages(16), 16 * 125 / 8);
        let mut lengths: Vec<usize> = prompt.heads.iter().map(|head| head.slots).collect();
        lengths.sort_unstable();
        assert!(lengths[0] >= policy.floor() && lengths[15] > 3 * lengths[0], "{lengths:?}");
        for head in &prompt.heads {
            assert_eq!((head.positions.len(), head.scores.len()), (head.slots, head.slots));
            // Sinks and window are still there.
            let kept = |position| head.positions.contains(&position);
            assert!((0..4).all(kept) && (1968..2000).all(kept));
        }
        let whole = Prompt::new(100, 2, 16, 1.0, &policy, 3).unwrap();
        assert!(whole.heads.iter().all(|head| head.slots == 100 && head.moves.is_empty()));
    }
}
