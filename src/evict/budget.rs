//! How many pages a sequence may hold.

use serde::{Deserialize, Serialize};

use super::{error::EvictError, heads::HeadExtent, policy::Policy};

/// How much of a sequence is kept, over all of its layers and heads together.
///
/// A budget is a number of whole pages of the *uncompressed* sequence of the same logical length:
/// never more than that sequence takes, so that a budget at or above its length frees nothing, and
/// the same however often it is applied. Tokens become pages head by head, each rounded up, as
/// tables do: a head that is to keep a token keeps its page.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// The pages of the uncompressed sequence divided by this (1 or more), rounded down: the
    /// physical compression is at least the ratio.
    Ratio(f64),
    /// The rate of KV-Compress: sinks and window stay whole, the tokens outside them are divided
    /// by this (1 or more). The pages of a sequence of so many tokens, rounded up.
    RatioOutsideProtected(f64),
    /// The pages of a sequence of this many tokens (1 or more): room for them in every head, or in
    /// the average one where heads compete for pages. What a partial last page leaves empty in a
    /// head that gives up none counts as kept.
    TokensPerHead(usize),
    /// Pages of the whole sequence (1 or more).
    Pages(usize),
}

impl Budget {
    /// Refuses what contradicts itself or `policy`, whatever the sequence: for settings that are
    /// checked before there is one.
    ///
    /// # Errors
    /// A ratio that is not a finite number from one up; a budget of no token or no page; an average
    /// per head under what the policy has every head keep.
    pub fn check(&self, policy: &Policy) -> Result<(), EvictError> {
        self.check_number()?;
        match *self {
            Self::TokensPerHead(tokens) if tokens < policy.floor() => {
                Err(EvictError::BudgetUnderFloor { tokens, floor: policy.floor() })
            }
            _ => Ok(()),
        }
    }

    /// The pages that a sequence of `logical_len` tokens with these heads may hold: at most those of
    /// the uncompressed sequence, which can be more than the heads hold, and none if
    /// [`Ratio`](Self::Ratio) is beyond their number.
    ///
    /// # Errors
    /// A ratio that is not a finite number from one up; a budget of no token or no page; pages of
    /// zero slots.
    pub fn target_pages(
        &self,
        heads: &[HeadExtent],
        logical_len: usize,
        policy: &Policy,
    ) -> Result<usize, EvictError> {
        self.check_number()?;
        for (head, extent) in heads.iter().enumerate() {
            extent.check(head)?;
        }
        let full = pages_for(heads, logical_len);
        Ok(match *self {
            Self::Ratio(ratio) => (full as f64 / ratio) as usize,
            Self::RatioOutsideProtected(ratio) => {
                let outside = policy.evictable(logical_len).len();
                let kept = (outside as f64 / ratio).ceil() as usize;
                pages_for(heads, logical_len - outside + kept)
            }
            Self::TokensPerHead(tokens) => pages_for(heads, tokens.min(logical_len)),
            Self::Pages(pages) => pages.min(full),
        })
    }

    /// The pages that these heads must give up to be within the budget: none if they are.
    ///
    /// # Errors
    /// As [`target_pages`](Self::target_pages); and where pages must go, a ratio beyond their number,
    /// or what [`check`](Self::check) refuses. Whether so many may go,
    /// [`schedule`](super::schedule()) says.
    pub fn pages_to_free(
        &self,
        heads: &[HeadExtent],
        logical_len: usize,
        policy: &Policy,
    ) -> Result<usize, EvictError> {
        let target = self.target_pages(heads, logical_len, policy)?;
        let held: usize = heads.iter().map(HeadExtent::pages).sum();
        if held <= target {
            return Ok(0);
        }
        self.check(policy)?;
        match *self {
            Self::Ratio(ratio) if target == 0 => {
                let pages = pages_for(heads, logical_len);
                Err(EvictError::RatioBeyondPages { ratio, pages })
            }
            _ => Ok(held - target),
        }
    }

    /// Refuses numbers that are no budget.
    fn check_number(&self) -> Result<(), EvictError> {
        match *self {
            Self::Ratio(ratio) | Self::RatioOutsideProtected(ratio) => {
                let fine = ratio.is_finite() && ratio >= 1.0;
                if fine { Ok(()) } else { Err(EvictError::Ratio(ratio)) }
            }
            Self::TokensPerHead(0) | Self::Pages(0) => Err(EvictError::EmptyBudget),
            Self::TokensPerHead(_) | Self::Pages(_) => Ok(()),
        }
    }
}

/// Pages of heads that hold `tokens` tokens each, saturated.
fn pages_for(heads: &[HeadExtent], tokens: usize) -> usize {
    let pages = heads.iter().map(|head| tokens.div_ceil(head.slots_per_page));
    pages.fold(0, usize::saturating_add)
}
