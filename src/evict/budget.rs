//! How many pages a sequence may hold.

use serde::{Deserialize, Serialize};

use super::{EvictError, HeadExtent, Policy};

/// How much of a sequence is kept, over all of its layers and heads together.
///
/// Ratios are against the *uncompressed* sequence of the same logical length, so that applying a
/// budget twice changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// The pages of the uncompressed sequence divided by this (1 or more), rounded down: the
    /// physical compression is at least the ratio.
    Ratio(f64),
    /// The rate of KV-Compress: sinks and window stay whole, the tokens outside them are divided
    /// by this (1 or more); pages for the average head, rounded up.
    RatioOutsideProtected(f64),
    /// Tokens that a head keeps on average; pages for them, rounded up.
    TokensPerHead(usize),
    /// Pages of the whole sequence.
    Pages(usize),
}

impl Budget {
    /// The pages that a sequence of `logical_len` tokens with these heads may hold. It can be more
    /// than they hold.
    ///
    /// # Errors
    /// A ratio that is not a finite number from one up; a budget of no page; an average per head
    /// under what the policy has every head keep; pages of zero slots.
    pub fn target_pages(
        &self,
        heads: &[HeadExtent],
        logical_len: usize,
        policy: &Policy,
    ) -> Result<usize, EvictError> {
        for (head, extent) in heads.iter().enumerate() {
            extent.check(head)?;
        }
        let target = match *self {
            Self::Ratio(ratio) => {
                check_ratio(ratio)?;
                let full: usize =
                    heads.iter().map(|head| logical_len.div_ceil(head.slots_per_page)).sum();
                (full as f64 / ratio) as usize
            }
            Self::RatioOutsideProtected(ratio) => {
                check_ratio(ratio)?;
                let outside = policy.evictable(logical_len).len();
                let tokens = (logical_len - outside) as f64 + outside as f64 / ratio;
                pages_for(heads, tokens)
            }
            Self::TokensPerHead(tokens) => {
                let floor = policy.floor();
                if tokens > 0 && tokens < floor {
                    return Err(EvictError::BudgetUnderFloor { tokens, floor });
                }
                pages_for(heads, tokens as f64)
            }
            Self::Pages(pages) => pages,
        };
        // A sequence without tokens needs no page, whatever the budget.
        let absurd = target == 0 && (logical_len > 0 || matches!(self, Self::Pages(_)));
        if absurd || matches!(self, Self::TokensPerHead(0)) {
            return Err(EvictError::EmptyBudget);
        }
        Ok(target)
    }

    /// The pages that these heads must give up to be within the budget: none if they are.
    ///
    /// # Errors
    /// As [`target_pages`](Self::target_pages).
    pub fn pages_to_free(
        &self,
        heads: &[HeadExtent],
        logical_len: usize,
        policy: &Policy,
    ) -> Result<usize, EvictError> {
        let target = self.target_pages(heads, logical_len, policy)?;
        let held: usize = heads.iter().map(HeadExtent::pages).sum();
        Ok(held.saturating_sub(target))
    }
}

fn check_ratio(ratio: f64) -> Result<(), EvictError> {
    if ratio.is_finite() && ratio >= 1.0 { Ok(()) } else { Err(EvictError::Ratio(ratio)) }
}

/// Pages that hold `tokens` tokens of every head on average.
fn pages_for(heads: &[HeadExtent], tokens: f64) -> usize {
    heads.iter().map(|head| tokens / head.slots_per_page as f64).sum::<f64>().ceil() as usize
}
