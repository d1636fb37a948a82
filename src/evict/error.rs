//! Everything that eviction refuses.

use thiserror::Error;

/// Why nothing was evicted. Whoever gets one of these finds every slot where it was.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum EvictError {
    /// A score that is not a number, or is negative.
    #[error("slot {slot} has score {value}, scores are numbers from zero up")]
    Score {
        /// The slot within its head.
        slot: usize,
        /// What it was given.
        value: f32,
    },
    /// An input of a scorer that is not a finite number, or a negative attention weight.
    #[error("{input}[{index}] is {value}, which no score can be made from")]
    Input {
        /// Which input: `keys` or `attention`.
        input: &'static str,
        /// The flat index into it.
        index: usize,
        /// What stands there.
        value: f32,
    },
    /// A scorer was not given what its [`needs`](super::Scorer::needs) ask for.
    #[error("the {scorer} scorer needs {input}, and got none")]
    Missing {
        /// The name of the scorer.
        scorer: &'static str,
        /// What is missing.
        input: &'static str,
    },
    /// Two slices that describe the same slots differ in length.
    #[error("{what} holds {got} entries where {expected} belong")]
    Length {
        /// The slice that is wrong.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length it should have.
        expected: usize,
    },
    /// A scorer that does not accumulate was asked for the increment of a decoding step.
    #[error("the {0} scorer does not accumulate over decoding steps")]
    NotCumulative(&'static str),
    /// A window without a query in it.
    #[error("a window of 0 queries says nothing of any slot")]
    NoQueries,
    /// A pooling kernel without a middle.
    #[error("a pooling kernel of {0} has no middle slot, it must be odd")]
    Kernel(usize),
    /// A name that no scorer has.
    #[error("no scorer is called {0:?}, there are: {names}", names = super::ScorerKind::NAMES.join(", "))]
    UnknownScorer(String),
    /// A page that holds no slot.
    #[error("head {0} has pages of zero slots")]
    EmptyPages(usize),
    /// A head with more slots than its sequence has tokens, or than 32 bits count.
    #[error("head {head} holds {slots} slots of a sequence of {logical_len} tokens")]
    TooManySlots {
        /// The head.
        head: usize,
        /// Slots in use.
        slots: usize,
        /// Tokens the sequence has seen.
        logical_len: usize,
    },
    /// A slot that claims a position which its sequence has not reached.
    #[error(
        "head {head}, slot {slot} holds position {position} of a sequence of {logical_len} tokens"
    )]
    Position {
        /// The head.
        head: usize,
        /// The slot within it.
        slot: usize,
        /// The position it claims.
        position: u32,
        /// Tokens the sequence has seen.
        logical_len: usize,
    },
    /// A compression ratio below one, infinite, or not a number.
    #[error("a compression ratio of {0} is not a finite number from one up")]
    Ratio(f64),
    /// A budget of no token or no page.
    #[error("the budget leaves the sequence no page")]
    EmptyBudget,
    /// A ratio that is beyond the number of a sequence's pages.
    #[error("a compression ratio of {ratio} leaves none of the sequence's {pages} pages")]
    RatioBeyondPages {
        /// The ratio.
        ratio: f64,
        /// Pages of the uncompressed sequence.
        pages: usize,
    },
    /// An average per head that does not even hold what every head must keep.
    #[error("a budget of {tokens} tokens per head is under the {floor} that every head keeps")]
    BudgetUnderFloor {
        /// Tokens per head that the budget allows on average.
        tokens: usize,
        /// The larger of sinks + window and the floor per head.
        floor: usize,
    },
    /// More pages than 32 bits count.
    #[error("{0} pages are more than one schedule counts")]
    TooManyPages(usize),
    /// More pages asked for than costs were listed for.
    #[error("cannot free {asked} pages: the heads list what {possible} of them would cost")]
    TooFewCosts {
        /// Pages that were to be freed.
        asked: usize,
        /// Pages that the heads list.
        possible: usize,
    },
    /// A head whose listed costs were all taken, of more pages that it could give up.
    #[error(
        "head {head} gives up all {listed} pages that it lists costs for and has more: list more to free \
         {asked}"
    )]
    CostsCut {
        /// The head.
        head: usize,
        /// Costs that it lists.
        listed: usize,
        /// Pages that were to be freed.
        asked: usize,
    },
    /// A list of costs that does not ascend, or is longer than the pages that its head may give up.
    #[error("head {head}: {problem}")]
    BadCosts {
        /// The head.
        head: usize,
        /// What is wrong with its list.
        problem: &'static str,
    },
    /// Prices of one eviction that name a head twice.
    #[error("head {0} is priced twice")]
    PricedTwice(usize),
    /// Prices of some heads of an eviction where those of all were needed.
    #[error("head {0} is not priced: heads are numbered from 0 on over all ranks")]
    NotPriced(usize),
    /// Prices that are not of one eviction.
    #[error("prices of {0} do not merge")]
    UnlikePrices(&'static str),
    /// More pages asked of one head than it may give up.
    #[error("head {head} cannot give up {asked} of its {held} pages, at most {possible} may go")]
    InfeasibleHead {
        /// The head.
        head: usize,
        /// Pages that it was to give up.
        asked: usize,
        /// Pages that it could give up.
        possible: usize,
        /// Pages that it holds.
        held: usize,
    },
    /// More pages asked for than may go.
    #[error(
        "cannot free {asked} pages: {held} are held, and sinks, window and floors keep {floor} of \
         them, so at most {possible} may go"
    )]
    Infeasible {
        /// Pages that were to be freed.
        asked: usize,
        /// Pages that could be freed.
        possible: usize,
        /// Pages that the heads hold.
        held: usize,
        /// Pages that must stay.
        floor: usize,
    },
}

impl EvictError {
    /// The same, of the head that `name` gives for the one it is of: for who asked about some heads only.
    pub(crate) fn with_head(mut self, name: impl FnOnce(usize) -> usize) -> Self {
        match &mut self {
            Self::EmptyPages(head)
            | Self::PricedTwice(head)
            | Self::NotPriced(head)
            | Self::TooManySlots { head, .. }
            | Self::Position { head, .. }
            | Self::CostsCut { head, .. }
            | Self::BadCosts { head, .. }
            | Self::InfeasibleHead { head, .. } => *head = name(*head),
            _ => {}
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_heads_that_callers_know() {
        let [error, of_seven] =
            [2, 7].map(|head| EvictError::InfeasibleHead { head, asked: 3, possible: 2, held: 5 });
        assert_eq!(error.with_head(|head| [1, 4, 7][head]), of_seven);
        assert_eq!(EvictError::EmptyBudget.with_head(|_| 9), EvictError::EmptyBudget);
    }
}
