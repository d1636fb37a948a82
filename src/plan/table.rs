//! Ragged head tables: one arena of page ids with an extent per head.

use std::ops::Range;

use super::pool::Page;

/// The page tables of all heads of one sequence.
///
/// Ids and generations lie in two parallel arrays, so that a kernel gets plain `u32` ids. Each head
/// owns a stretch with room to grow; when one is full, the arena is laid out anew with room in
/// proportion to every head's length. So a page costs at most about 1.5 × 8 bytes, and amortised
/// constant time while heads are alike in length. Where evictions left them ragged it costs more, up to
/// four times the ratio of the average head to the shortest one: each time that one is full, the others
/// are copied too.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    ids: Vec<u32>,
    generations: Vec<u32>,
    extents: Vec<Extent>,
    /// Pages over all heads.
    total: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    start: u32,
    pages: u32,
    room: u32,
}

impl Extent {
    fn used(self) -> Range<usize> {
        self.start as usize..(self.start + self.pages) as usize
    }
}

impl Tables {
    pub fn new(heads: usize) -> Self {
        let extents = vec![Extent::default(); heads];
        Self { ids: Vec::new(), generations: Vec::new(), extents, total: 0 }
    }

    /// Page ids of a head in slot order.
    pub fn ids(&self, head: usize) -> &[u32] {
        &self.ids[self.extents[head].used()]
    }

    /// Pages of a head.
    pub fn len(&self, head: usize) -> usize {
        self.extents[head].pages as usize
    }

    /// The claim at `index` of a head.
    pub fn page(&self, head: usize, index: usize) -> Page {
        let at = self.extents[head].used().start + index;
        Page { id: self.ids[at], generation: self.generations[at] }
    }

    /// All claims of a head.
    pub fn pages(&self, head: usize) -> impl Iterator<Item = Page> {
        let used = self.extents[head].used();
        let generations = &self.generations[used.clone()];
        let pairs = self.ids[used].iter().zip(generations);
        pairs.map(|(&id, &generation)| Page { id, generation })
    }

    /// All claims of all heads.
    pub fn all(&self) -> impl Iterator<Item = Page> {
        (0..self.extents.len()).flat_map(|head| self.pages(head))
    }

    /// Pages over all heads.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Makes room for more pages in the heads that `due` lists, each with how many.
    pub fn make_room<I: Iterator<Item = (usize, usize)>>(&mut self, due: impl Fn() -> I) {
        let full = |(head, more): (usize, usize)| {
            let extent = self.extents[head];
            extent.pages as usize + more > extent.room as usize
        };
        if due().any(full) {
            let mut extra = vec![0; self.extents.len()];
            due().for_each(|(head, more)| extra[head] = more as u32);
            self.lay_out(|head| extra[head]);
        }
    }

    /// Appends a page to a head that has room for it.
    pub fn push(&mut self, head: usize, page: Page) {
        let extent = &mut self.extents[head];
        assert!(extent.pages < extent.room, "push without room");
        let at = (extent.start + extent.pages) as usize;
        extent.pages += 1;
        self.total += 1;
        self.ids[at] = page.id;
        self.generations[at] = page.generation;
    }

    /// Replaces a claim and returns the old one.
    pub fn replace(&mut self, head: usize, index: usize, page: Page) -> Page {
        let old = self.page(head, index);
        let at = self.extents[head].used().start + index;
        self.ids[at] = page.id;
        self.generations[at] = page.generation;
        old
    }

    /// Shortens a head to `pages` pages; the rest go to `dropped`.
    pub fn truncate(&mut self, head: usize, pages: usize, dropped: &mut Vec<Page>) {
        dropped.extend(self.pages(head).skip(pages));
        let extent = &mut self.extents[head];
        let kept = extent.pages.min(pages as u32);
        self.total -= (extent.pages - kept) as usize;
        extent.pages = kept;
    }

    /// Takes pages out of a head; those behind them move up. They go to `dropped`.
    pub fn remove(&mut self, head: usize, pages: Range<usize>, dropped: &mut Vec<Page>) {
        let used = self.extents[head].used();
        let (start, end) = (used.start + pages.start, used.start + pages.end);
        dropped.extend(
            (start..end).map(|at| Page { id: self.ids[at], generation: self.generations[at] }),
        );
        self.ids.copy_within(end..used.end, start);
        self.generations.copy_within(end..used.end, start);
        self.extents[head].pages -= pages.len() as u32;
        self.total -= pages.len();
    }

    /// Gives memory back when an eviction left the arena mostly empty.
    pub fn shrink(&mut self) {
        if self.ids.len() > 4 * self.total + 4 * self.extents.len() {
            self.lay_out(|_| 0);
        }
    }

    /// Bytes of bookkeeping.
    pub fn metadata_bytes(&self) -> usize {
        (self.ids.capacity() + self.generations.capacity()) * size_of::<u32>()
            + self.extents.capacity() * size_of::<Extent>()
    }

    fn lay_out(&mut self, extra: impl Fn(usize) -> u32) {
        let mut start = 0;
        let mut extents = Vec::with_capacity(self.extents.len());
        for (head, extent) in self.extents.iter().enumerate() {
            let needed = extent.pages + extra(head);
            let room = needed + needed / 4 + 1;
            extents.push(Extent { start, pages: extent.pages, room });
            start += room;
        }
        let (ids, generations) = (vec![0; start as usize], vec![0; start as usize]);
        let mut moved = Self { ids, generations, extents, total: self.total };
        for (old, new) in self.extents.iter().zip(&moved.extents) {
            moved.ids[new.used()].copy_from_slice(&self.ids[old.used()]);
            moved.generations[new.used()].copy_from_slice(&self.generations[old.used()]);
        }
        *self = moved;
    }
}
