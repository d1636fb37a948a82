//! Partial pages that others share, and which of them a step must copy.

use super::{
    pool::{Page, PagePool, PoolError},
    sequence::Sequence,
};

/// A partial last page that others hold too.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedTail {
    /// Place of the sequence among the members of the step.
    pub member: usize,
    pub head: usize,
    page: u32,
    /// Slots in use in it.
    filled: u32,
    references: u32,
}

/// The shared partial pages that a step must copy: those that members append to.
///
/// Where all who hold a page append to it, one of them need not copy: it writes in place, beyond the
/// slots of all others (so that these find theirs untouched if the step is rolled back), once the others
/// have made their copies.
pub(super) fn copied_tails<'a>(
    pool: &PagePool,
    members: impl Iterator<Item = (&'a Sequence, usize)>,
) -> Result<Vec<SharedTail>, PoolError> {
    let mut tails = Vec::new();
    for (member, (sequence, tokens)) in members.enumerate() {
        if tokens == 0 || !sequence.sharing.tails() {
            continue;
        }
        for (head, page, filled) in sequence.partial_tails() {
            let references = pool.references(page)?;
            if references > 1 {
                tails.push(SharedTail { member, head, page: page.id, filled, references });
            }
        }
    }
    // Who has most slots in a page comes last, of several the last member.
    tails.sort_unstable_by_key(|tail| (tail.page, tail.filled, tail.member));
    let mut copied = Vec::with_capacity(tails.len());
    for holders in tails.chunk_by(|a, b| a.page == b.page) {
        let all = holders.len() == holders[0].references as usize;
        copied.extend_from_slice(&holders[..holders.len() - usize::from(all)]);
    }
    copied.sort_unstable_by_key(|tail| (tail.member, tail.head));
    Ok(copied)
}

impl Sequence {
    /// The last page of every head that has free slots in it, and how many it uses.
    fn partial_tails(&self) -> impl Iterator<Item = (usize, Page, u32)> {
        (0..self.heads.len()).filter_map(|head| {
            let filled = self.slots_of(head) % self.plan.slots_per_page(head) as u32;
            (filled > 0).then(|| (head, self.tables.page(head, self.tables.len(head) - 1), filled))
        })
    }
}
