//! What the members of a step need beside private copies.

use super::{admission::Admission, pool::PagePool, sequence::Sequence};

/// What the members of a step need beside private copies.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Growth {
    /// Pages over all members.
    pub pages: usize,
    /// Pages of the member that will hold the most.
    largest: usize,
    /// Whether a member may append to a page that others hold.
    pub shares: bool,
}

impl Growth {
    pub fn of<'a>(members: impl IntoIterator<Item = (&'a Sequence, usize)>) -> Self {
        let mut growth = Self::default();
        for (sequence, tokens) in members {
            let pages = sequence.growth(tokens);
            growth.pages += pages;
            growth.largest = growth.largest.max(sequence.pages() + pages);
            growth.shares |= tokens > 0 && sequence.sharing.tails();
        }
        growth
    }

    /// Pages without which the step can never be granted: freeing what others hold helps with neither
    /// the step's own pages nor those of its largest member. (Copies are not needed once others left.)
    pub fn least(&self) -> usize {
        self.pages.max(self.largest)
    }

    pub fn admission(&self, copies: usize, pool: &PagePool) -> Admission {
        let stats = pool.stats();
        if self.least() > stats.total {
            return Admission::Never { needed: self.least(), total: stats.total };
        }
        let needed = self.pages.saturating_add(copies);
        match needed.saturating_sub(stats.free) {
            0 => Admission::Now,
            missing => Admission::Later { missing, enough_after: pool.enough_after(needed) },
        }
    }
}
