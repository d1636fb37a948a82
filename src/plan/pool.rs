//! The page pool: reference counts, generations and the step fence.

use std::collections::VecDeque;

use serde::Serialize;
use thiserror::Error;

/// A claim on a page. The generation makes a claim that outlived its page a typed error instead of a
/// claim on whoever holds the page now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// Index of the page in its store.
    pub id: u32,
    /// How often the page had been freed when this claim was made.
    pub generation: u32,
}

/// A step of the engine, counted from 0. Pages freed during a step may still be read by its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct StepId(pub u64);

/// What the pool refuses. Nothing has changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// Fewer pages are free than were asked for.
    #[error("{needed} pages needed, {free} free{}", waiting(*fenced, *enough_after))]
    OutOfPages {
        /// Pages asked for.
        needed: usize,
        /// Pages that could be taken.
        free: usize,
        /// Pages freed by steps that have not retired.
        fenced: usize,
        /// The step whose [retirement](PagePool::retire) would make enough pages free: asked again then,
        /// the call succeeds, if nobody was faster. `None`: the fenced pages are not enough, and
        /// somebody has to give pages up.
        enough_after: Option<StepId>,
    },
    /// The page was freed since this claim was made, or freed twice.
    #[error("stale claim on page {} (generation {}, now {current})", page.id, page.generation)]
    Stale {
        /// The claim.
        page: Page,
        /// The page's generation now.
        current: u32,
    },
    /// An id beyond the pool.
    #[error("page {page} is outside a pool of {pages} pages")]
    NoSuchPage {
        /// The id.
        page: u32,
        /// Pages in the pool.
        pages: usize,
    },
    /// A pool without pages, or with more than 32 bits can name.
    #[error("a pool of {0} pages: need 1..=4294967295")]
    BadSize(usize),
    /// The bookkeeping of so many pages was not granted memory.
    #[error("no memory for the bookkeeping of {0} pages")]
    OutOfMemory(usize),
}

/// What a refusal says of the pages behind the fence.
fn waiting(fenced: usize, enough_after: Option<StepId>) -> String {
    match (fenced, enough_after) {
        (0, _) => String::new(),
        (_, Some(step)) => format!(", {fenced} fenced: enough once step {} retires", step.0),
        (_, None) => format!(", {fenced} fenced: not enough even once they retire"),
    }
}

/// How the pages of a pool are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PoolStats {
    /// Pages in the pool.
    pub total: usize,
    /// Pages that can be taken.
    pub free: usize,
    /// Pages with at least one reference.
    pub held: usize,
    /// Held pages with more than one reference.
    pub shared: usize,
    /// Freed pages that a running step may still read.
    pub fenced: usize,
}

/// `N` equal pages.
///
/// Taken pages come from the top of a stack, so the page handed out is the one freed last: its bytes
/// and its bookkeeping are the likeliest to be in cache.
#[derive(Debug)]
pub struct PagePool {
    counts: Vec<Count>,
    free: Vec<u32>,
    shared: usize,
    fence: Fence,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    refs: u32,
    generation: u32,
}

/// Pages freed by steps that have not retired, oldest step first.
#[derive(Debug)]
struct Fence {
    current: StepId,
    pages: VecDeque<u32>,
    /// How many of `pages` each step freed.
    batches: VecDeque<(StepId, usize)>,
}

impl PagePool {
    /// A pool of `pages` free pages, handed out in the order of their ids.
    pub fn new(pages: usize) -> Result<Self, PoolError> {
        let count = u32::try_from(pages).ok().filter(|&n| n > 0);
        let count = count.ok_or(PoolError::BadSize(pages))?;
        let (mut counts, mut free) = (Vec::new(), Vec::new());
        counts.try_reserve_exact(pages).map_err(|_| PoolError::OutOfMemory(pages))?;
        free.try_reserve_exact(pages).map_err(|_| PoolError::OutOfMemory(pages))?;
        counts.resize(pages, Count::default());
        free.extend((0..count).rev());
        Ok(Self {
            counts,
            free,
            shared: 0,
            fence: Fence { current: StepId(0), pages: VecDeque::new(), batches: VecDeque::new() },
        })
    }

    /// Takes `count` pages with one reference each and appends them to `out`: all or none.
    pub fn take(&mut self, count: usize, out: &mut Vec<Page>) -> Result<(), PoolError> {
        let Some(rest) = self.free.len().checked_sub(count) else {
            return Err(PoolError::OutOfPages {
                needed: count,
                free: self.free.len(),
                fenced: self.fence.pages.len(),
                enough_after: self.enough_after(count),
            });
        };
        let counts = &mut self.counts;
        out.extend(self.free.drain(rest..).rev().map(|id| {
            let count = &mut counts[id as usize];
            count.refs = 1;
            Page { id, generation: count.generation }
        }));
        Ok(())
    }

    /// Adds a reference to each of `pages`: all or none.
    pub fn share(&mut self, pages: &[Page]) -> Result<(), PoolError> {
        for (i, &page) in pages.iter().enumerate() {
            if let Err(error) = self.check(page) {
                self.unshare(&pages[..i]);
                return Err(error);
            }
            let count = &mut self.counts[page.id as usize];
            count.refs += 1;
            self.shared += usize::from(count.refs == 2);
        }
        Ok(())
    }

    /// Drops a reference to each of `pages`: all or none. Pages without references left go to the
    /// fence; returns how many did. A page may stand in `pages` as often as it is referenced.
    pub fn give(&mut self, pages: &[Page]) -> Result<usize, PoolError> {
        for (i, &page) in pages.iter().enumerate() {
            if let Err(error) = self.check(page) {
                for &page in &pages[..i] {
                    let count = &mut self.counts[page.id as usize];
                    count.refs += 1;
                    self.shared += usize::from(count.refs == 2);
                }
                return Err(error);
            }
            self.drop_reference(page);
        }
        let before = self.fence.pages.len();
        for page in pages {
            let count = &mut self.counts[page.id as usize];
            // A second mention of the same page finds the generation moved on.
            if count.refs == 0 && count.generation == page.generation {
                count.generation = count.generation.wrapping_add(1);
                self.fence.pages.push_back(page.id);
            }
        }
        let freed = self.fence.pages.len() - before;
        self.fence.note(freed);
        Ok(freed)
    }

    /// How many references `page` has.
    pub fn references(&self, page: Page) -> Result<u32, PoolError> {
        self.check(page)?;
        Ok(self.counts[page.id as usize].refs)
    }

    /// Ends the running step and starts the next; returns the one that ended, which the caller
    /// [`retire`](Self::retire)s when its kernels are done.
    pub fn end_step(&mut self) -> StepId {
        let ended = self.fence.current;
        self.fence.current = StepId(ended.0 + 1);
        ended
    }

    /// Says that no kernel of `step` or of an earlier one runs any more: pages freed until then can be
    /// taken again. The running step cannot retire; it is ended first. `freed` is told each page, once
    /// all of them are free.
    pub fn retire(&mut self, step: StepId, freed: impl FnMut(u32)) {
        let before = self.free.len();
        while let Some(&(freed_in, pages)) = self.fence.batches.front()
            && freed_in <= step
            && freed_in < self.fence.current
        {
            self.fence.batches.pop_front();
            self.free.extend(self.fence.pages.drain(..pages).rev());
        }
        self.free[before..].iter().copied().for_each(freed);
    }

    /// The step after whose retirement `needed` pages can be taken, if all steps until then retire and
    /// nothing else happens. `None`: not even when all have. The running step has to be
    /// [ended](Self::end_step) first.
    pub fn enough_after(&self, needed: usize) -> Option<StepId> {
        let mut free = self.free.len();
        let enough = self.fence.batches.iter().find(|(_, pages)| {
            free += pages;
            free >= needed
        });
        enough.map(|&(step, _)| step)
    }

    /// How the pages are used now.
    pub fn stats(&self) -> PoolStats {
        let (total, free, fenced) = (self.counts.len(), self.free.len(), self.fence.pages.len());
        PoolStats { total, free, held: total - free - fenced, shared: self.shared, fenced }
    }

    /// Bytes of bookkeeping.
    pub fn metadata_bytes(&self) -> usize {
        self.counts.capacity() * size_of::<Count>()
            + (self.free.capacity() + self.fence.pages.capacity()) * size_of::<u32>()
    }

    /// Every page's state, for the audit: its reference count, and how often the free stack and the
    /// fence name it.
    pub(super) fn survey(&self) -> Vec<Survey> {
        let mut pages: Vec<Survey> = (self.counts.iter())
            .map(|c| Survey { refs: c.refs, generation: c.generation, free: 0, fenced: 0 })
            .collect();
        self.free.iter().for_each(|&id| pages[id as usize].free += 1);
        self.fence.pages.iter().for_each(|&id| pages[id as usize].fenced += 1);
        pages
    }

    fn check(&self, page: Page) -> Result<(), PoolError> {
        let pages = self.counts.len();
        let count = self.counts.get(page.id as usize);
        let count = count.ok_or(PoolError::NoSuchPage { page: page.id, pages })?;
        if count.refs == 0 || count.generation != page.generation {
            return Err(PoolError::Stale { page, current: count.generation });
        }
        Ok(())
    }

    fn drop_reference(&mut self, page: Page) {
        let count = &mut self.counts[page.id as usize];
        self.shared -= usize::from(count.refs == 2);
        count.refs -= 1;
    }

    fn unshare(&mut self, pages: &[Page]) {
        pages.iter().for_each(|&page| self.drop_reference(page));
    }
}

impl Fence {
    /// Notes that the running step freed `pages` more.
    fn note(&mut self, pages: usize) {
        if pages == 0 {
            return;
        }
        match self.batches.back_mut() {
            Some((step, count)) if *step == self.current => *count += pages,
            _ => self.batches.push_back((self.current, pages)),
        }
    }
}

/// What the pool's own lists say of one page.
#[derive(Clone)]
pub(super) struct Survey {
    pub refs: u32,
    pub generation: u32,
    pub free: u32,
    pub fenced: u32,
}
