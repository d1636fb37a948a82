//! Who may share pages with whom, and which pages a step must copy because of it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{
    pool::{Page, PagePool, PoolError},
    sequence::Sequence,
};

/// Whether others may hold pages of a sequence, so that one that was never forked need not ask.
///
/// A fork has its source by a shared reference, hence the atomics; whoever appends or evicts has the
/// sequence to itself, and so sees every fork that was made of it. That orders all accesses (they are the
/// standard library's also where loom watches).
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// A fork was made of the sequence, or it is one. Once set, it stays.
    forked: AtomicBool,
    /// A partial last page may be shared. A granted step makes all of them private.
    tails: AtomicBool,
}

impl Sharing {
    /// Of a fork.
    pub fn of_fork() -> Self {
        Self { forked: true.into(), tails: true.into() }
    }

    /// A fork is being made.
    pub fn fork(&self) {
        self.forked.store(true, Relaxed);
        self.tails.store(true, Relaxed);
    }

    /// Whether any page may be shared.
    pub fn any(&self) -> bool {
        self.forked.load(Relaxed)
    }

    /// Whether a partial last page may be shared.
    pub fn tails(&self) -> bool {
        self.tails.load(Relaxed)
    }

    /// Says that all partial last pages are private until the next fork.
    pub fn settle(&mut self) {
        *self.tails.get_mut() = false;
    }

    /// Other pages, full or replaced ones, became the last: they may be shared if any page may.
    pub fn unsettle(&mut self) {
        *self.tails.get_mut() |= *self.forked.get_mut();
    }
}

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
