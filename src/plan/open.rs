//! What a guard that is neither committed nor dropped has done.

use super::pool::Page;

/// What an open guard has done to a sequence.
#[derive(Debug, Default)]
pub(super) enum Open {
    /// There is no guard.
    #[default]
    Nothing,
    /// A step: the tables count these tokens already, and claims may be replaced by private copies.
    Step { tokens: usize },
    /// A rewrite took these pages. The tables know nothing of it.
    Rewrite { taken: Vec<Page> },
    /// The rewrite's moves were handed out: slots may be overwritten.
    Moves { taken: Vec<Page> },
    /// Such a rewrite was given up.
    Torn,
}

impl Open {
    /// The pages that a rewrite holds beside the tables; they are then the caller's.
    pub fn take_pages(&mut self) -> Vec<Page> {
        match self {
            Self::Rewrite { taken } | Self::Moves { taken } => std::mem::take(taken),
            Self::Nothing | Self::Step { .. } | Self::Torn => Vec::new(),
        }
    }
}
