//! What the planner refuses.

use thiserror::Error;

use super::pool::PoolError;

/// A call the planner did not carry out. Nothing has changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The pool's own refusal: out of pages, or a stale claim.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// More pages than the pool has, even if everything else left: those that one sequence would hold,
    /// or those that a step would take.
    #[error("{needed} pages needed, the whole pool has {total}: this can never fit")]
    NeverFits {
        /// Pages needed.
        needed: usize,
        /// Pages in the pool.
        total: usize,
    },
    /// A sequence of another manager.
    #[error("the sequence belongs to another block manager")]
    ForeignSequence,
    /// One sequence listed twice.
    #[error("the sequence is listed twice")]
    ListedTwice,
    /// A [`Step`](super::Step) or [`Rewrite`](super::Rewrite) of the sequence is open, or was forgotten
    /// (`mem::forget`) without being committed or dropped. Verbs that change a sequence take back what a
    /// forgotten guard left; those that only look at it cannot.
    #[error(
        "a step or rewrite of the sequence is neither committed nor dropped; if it was forgotten, \
         Sequence::recover takes it back"
    )]
    OpenGuard,
    /// A rewrite of the sequence was given up after its moves were handed out.
    #[error(
        "a rewrite of the sequence was given up while its slots moved: what it held is lost, drop it"
    )]
    Torn,
    /// A table plan without heads, or with more than an index holds.
    #[error("a table plan needs 1..=65536 heads, got {heads}")]
    BadTablePlan {
        /// Heads in the plan.
        heads: usize,
    },
    /// Pages without slots, or with more than an index holds.
    #[error("head {head} of a table plan has {slots} slots per page, which must be 1..=65536")]
    BadPageSlots {
        /// The first such head.
        head: usize,
        /// Its slots per page.
        slots: usize,
    },
    /// More tokens than a table's positions can count.
    #[error("{0} tokens are more than a sequence can hold ({max})", max = u32::MAX)]
    TooLong(usize),
    /// A truncation to more tokens than there are.
    #[error("cannot truncate {tokens} tokens to {to}")]
    TruncateGrows {
        /// Tokens of the sequence.
        tokens: usize,
        /// Tokens asked for.
        to: usize,
    },
    /// A truncation further back than the margin of heads with a window: what the next query would see has
    /// left.
    #[error(
        "cannot truncate {tokens} tokens to {to}: head {head} has a window, and no fewer than {least} can be left"
    )]
    PastMargin {
        /// The first such head.
        head: usize,
        /// Tokens of the sequence.
        tokens: usize,
        /// Tokens asked for.
        to: usize,
        /// The fewest that can be left of this head.
        least: usize,
    },
    /// Windows that are not one entry for each head, are empty, smaller than their sinks, or too long to
    /// count with their margin.
    #[error(
        "{windows} windows with a margin of {margin} tokens do not fit a table plan of {heads} heads"
    )]
    BadWindows {
        /// Entries given.
        windows: usize,
        /// Heads of the plan.
        heads: usize,
        /// The margin.
        margin: usize,
    },
    /// A rewrite that does not fit the tables.
    #[error("rewrite of head {head}: {problem}")]
    BadRewrite {
        /// The head's index among all heads of the sequence.
        head: usize,
        /// What does not fit.
        problem: &'static str,
    },
    /// A head that a table plan does not have.
    #[error("no head {head} in a table plan of {heads} heads")]
    NoSuchHead {
        /// The head asked for.
        head: usize,
        /// Heads of the plan.
        heads: usize,
    },
    /// Room for another number of slots than a slot mapping has.
    #[error("a slot mapping of {expected} slots does not go into {got}")]
    MappingLength {
        /// Length of what was given.
        got: usize,
        /// New tokens times heads.
        expected: usize,
    },
    /// Values that are to follow a rewrite, but are not one for each slot of the head.
    #[error("head {head} has {expected} slots, {got} values were given for them")]
    WrongValues {
        /// The head's index among all heads of the sequence.
        head: usize,
        /// Values given.
        got: usize,
        /// Slots of the head before the rewrite.
        expected: usize,
    },
}
