//! The host's side of a table mirror: which words of the device's page ids each table has, and which
//! of them changed.

use thiserror::Error;

use super::dirty::DirtyRanges;

/// Where a table's page ids are in the mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// First word.
    pub offset: u32,
    /// Pages.
    pub pages: u32,
}

/// What a mirror of fixed size refuses. Nothing changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MirrorError {
    /// More page ids than the mirror has words.
    #[error("{needed} page ids do not fit in a mirror of {capacity}")]
    Full {
        /// Ids of all tables together.
        needed: usize,
        /// Words of the mirror.
        capacity: usize,
    },
    /// A table beyond the mirror.
    #[error("table {table} is outside a mirror of {tables} tables")]
    NoSuchTable {
        /// The table asked for.
        table: usize,
        /// Tables of the mirror.
        tables: usize,
    },
}

/// Ragged tables in one buffer of fixed size and address, so that captured graphs stay valid.
///
/// A table has room to grow: its words are a power of two, and a table that outgrows them moves. When
/// no room of that size is left, all tables are packed anew.
#[derive(Clone, Debug)]
pub struct MirrorImage {
    words: Vec<u32>,
    tables: Vec<Room>,
    /// Free rooms by the logarithm of their size.
    free: Vec<Vec<u32>>,
    /// Words after this one were never given out.
    top: u32,
    /// Page ids of all tables together.
    used: usize,
    dirty: DirtyRanges,
}

#[derive(Clone, Copy, Debug, Default)]
struct Room {
    extent: Extent,
    /// Logarithm of the room's words; only of use if `offset` was given out, hence the option.
    class: Option<u8>,
}

/// The smallest room, as a logarithm: a table of a new sequence grows through four pages in place.
const SMALLEST: u8 = 2;

impl MirrorImage {
    /// A mirror of `tables` tables with `capacity` page ids together.
    pub fn new(tables: usize, capacity: u32) -> Self {
        Self {
            // No page has this id: the first id of every word counts as a change.
            words: vec![u32::MAX; capacity as usize],
            tables: vec![Room::default(); tables],
            free: vec![Vec::new(); 33],
            top: 0,
            used: 0,
            dirty: DirtyRanges::default(),
        }
    }

    /// How many tables it has room for.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// All words, as the device has them after the changes are copied.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Where a table is.
    pub fn extent(&self, table: usize) -> Result<Extent, MirrorError> {
        self.room(table).map(|room| room.extent)
    }

    /// What changed since it was last taken.
    pub fn dirty(&mut self) -> &mut DirtyRanges {
        &mut self.dirty
    }

    fn room(&self, table: usize) -> Result<Room, MirrorError> {
        let tables = self.tables.len();
        self.tables.get(table).copied().ok_or(MirrorError::NoSuchTable { table, tables })
    }

    /// Makes `pages` the page ids of `table`; only words that differ are marked as changed.
    pub fn set(&mut self, table: usize, pages: &[u32]) -> Result<(), MirrorError> {
        let room = self.room(table)?;
        let capacity = self.words.len();
        let needed = self.used - room.extent.pages as usize + pages.len();
        if needed > capacity {
            return Err(MirrorError::Full { needed, capacity });
        }
        let fits = room
            .class
            .is_some_and(|class| pages.len() <= (1usize << class).max(room.extent.pages as usize));
        let offset = if fits || pages.is_empty() {
            room.extent.offset
        } else {
            self.release(table);
            match self.take(class_of(pages.len())) {
                Some((offset, class)) => {
                    self.tables[table].class = Some(class);
                    offset
                }
                None => return self.pack(table, pages),
            }
        };
        self.write(offset, pages);
        self.tables[table].extent = Extent { offset, pages: pages.len() as u32 };
        self.used = needed;
        Ok(())
    }

    /// Empties a table and gives its room back.
    pub fn clear(&mut self, table: usize) -> Result<(), MirrorError> {
        self.room(table)?;
        self.release(table);
        Ok(())
    }

    fn release(&mut self, table: usize) {
        let room = std::mem::take(&mut self.tables[table]);
        self.used -= room.extent.pages as usize;
        if let Some(class) = room.class {
            self.free[class as usize].push(room.extent.offset);
        }
    }

    /// A room of that class, or a larger free one.
    fn take(&mut self, class: u8) -> Option<(u32, u8)> {
        if let Some(offset) = self.free[class as usize].pop() {
            return Some((offset, class));
        }
        let end = u64::from(self.top) + (1u64 << class);
        if end <= self.words.len() as u64 {
            let offset = self.top;
            self.top = end as u32;
            return Some((offset, class));
        }
        (class + 1..33).find_map(|larger| Some((self.free[larger as usize].pop()?, larger)))
    }

    /// Writes words, marking those that differ.
    fn write(&mut self, offset: u32, pages: &[u32]) {
        let words = &mut self.words[offset as usize..][..pages.len()];
        let mut at = 0;
        while at < pages.len() {
            let same = words[at..].iter().zip(&pages[at..]).take_while(|(a, b)| a == b).count();
            at += same;
            let changed = words[at..].iter().zip(&pages[at..]).take_while(|(a, b)| a != b).count();
            self.dirty.mark(offset + at as u32..offset + (at + changed) as u32);
            at += changed;
        }
        words.copy_from_slice(pages);
    }

    /// Lays all tables out anew, `table` with `pages`; their words together are known to fit.
    fn pack(&mut self, table: usize, pages: &[u32]) -> Result<(), MirrorError> {
        let old = self.words.clone();
        let span = |e: Extent| e.offset as usize..(e.offset + e.pages) as usize;
        let total: u64 =
            self.tables.iter().map(|r| u64::from(r.extent.pages)).sum::<u64>() + pages.len() as u64;
        // Rooms of powers of two where they fit, exact ones where only those do.
        let rounded: u64 = (0..self.tables.len())
            .map(|i| if i == table { pages.len() } else { self.tables[i].extent.pages as usize })
            .filter(|&len| len > 0)
            .map(|len| 1u64 << class_of(len))
            .sum();
        debug_assert!(total <= self.words.len() as u64);
        let roomy = rounded <= self.words.len() as u64;
        self.free.iter_mut().for_each(Vec::clear);
        self.top = 0;
        for index in 0..self.tables.len() {
            let extent = self.tables[index].extent;
            let ids = if index == table { pages } else { &old[span(extent)] };
            if ids.is_empty() {
                self.tables[index] = Room::default();
                continue;
            }
            // An exact room counts as the largest class that fits in it when it is given back.
            let class = if roomy { class_of(ids.len()) } else { ids.len().ilog2() as u8 };
            let offset = self.top;
            self.top += if roomy { 1 << class } else { ids.len() as u32 };
            self.tables[index] =
                Room { extent: Extent { offset, pages: ids.len() as u32 }, class: Some(class) };
            self.write(offset, ids);
        }
        self.used += pages.len();
        Ok(())
    }
}

/// The class of the smallest room for `pages` page ids.
fn class_of(pages: usize) -> u8 {
    (pages.next_power_of_two().ilog2() as u8).max(SMALLEST)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Grow(usize, usize),
        Shrink(usize, usize),
        Clear(usize),
        Copy,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            6 => (0usize..6, 1usize..12).prop_map(|(t, n)| Op::Grow(t, n)),
            2 => (0usize..6, 0usize..12).prop_map(|(t, n)| Op::Shrink(t, n)),
            1 => (0usize..6).prop_map(Op::Clear),
            3 => Just(Op::Copy),
        ];
        prop::collection::vec(op, 1..80)
    }

    proptest! {
        /// After its changed ranges are copied, a device that saw nothing else has every table; no two
        /// tables share a word; a mirror refuses only what cannot fit.
        #[test]
        fn changed_ranges_alone_keep_a_device_up_to_date(
            ops in ops(), capacity in 20u32..200, gap in 0u32..8,
        ) {
            let mut image = MirrorImage::new(6, capacity);
            // What uninitialised memory holds may look like a page id.
            let mut device = vec![1u32; capacity as usize];
            let mut model: Vec<Vec<u32>> = vec![Vec::new(); 6];
            let mut next = 0u32;
            let mut take_id = || { next += 1; next - 1 };
            for op in ops {
                let (table, pages) = match op {
                    Op::Grow(table, n) => {
                        let mut pages = model[table].clone();
                        pages.extend((0..n).map(|_| take_id()));
                        (table, pages)
                    }
                    Op::Shrink(table, n) => {
                        let keep = model[table].len().min(n);
                        (table, model[table][..keep].to_vec())
                    }
                    Op::Clear(table) => {
                        image.clear(table).unwrap();
                        model[table].clear();
                        continue;
                    }
                    Op::Copy => {
                        for range in image.dirty().take(gap) {
                            let range = range.start as usize..range.end as usize;
                            device[range.clone()].copy_from_slice(&image.words()[range]);
                        }
                        for (table, pages) in model.iter().enumerate() {
                            let extent = image.extent(table).unwrap();
                            let seen = &device[extent.offset as usize..][..extent.pages as usize];
                            prop_assert_eq!(seen, pages.as_slice());
                        }
                        continue;
                    }
                };
                let others: usize =
                    model.iter().enumerate().filter(|(i, _)| *i != table).map(|(_, p)| p.len()).sum();
                match image.set(table, &pages) {
                    Ok(()) => model[table] = pages,
                    Err(error) => {
                        let needed = others + pages.len();
                        let capacity = capacity as usize;
                        prop_assert!(needed > capacity);
                        prop_assert_eq!(error, MirrorError::Full { needed, capacity });
                    }
                }
                let mut spans = Vec::new();
                for (table, pages) in model.iter().enumerate() {
                    let extent = image.extent(table).unwrap();
                    let span = extent.offset as usize..(extent.offset + extent.pages) as usize;
                    prop_assert_eq!(&image.words()[span.clone()], pages.as_slice());
                    if !span.is_empty() {
                        spans.push(span);
                    }
                }
                spans.sort_by_key(|s| s.start);
                prop_assert!(spans.windows(2).all(|w| w[0].end <= w[1].start));
            }
        }
    }

    #[test]
    fn an_append_changes_one_word() {
        let mut image = MirrorImage::new(2, 64);
        image.set(0, &[5, 6]).unwrap();
        image.set(1, &[7]).unwrap();
        image.dirty().take(0);
        image.set(0, &[5, 6, 8]).unwrap();
        assert!(matches!(image.dirty().take(0)[..], [Range { start: 2, end: 3 }]));
        image.set(0, &[5, 6, 8]).unwrap();
        assert!(image.dirty().is_empty());
    }

    #[test]
    fn tables_beyond_the_mirror_are_refused() {
        let mut image = MirrorImage::new(2, 8);
        let error = image.set(2, &[1]).unwrap_err();
        assert_eq!(error.to_string(), "table 2 is outside a mirror of 2 tables");
        assert_eq!(image.clear(9).unwrap_err(), MirrorError::NoSuchTable { table: 9, tables: 2 });
        let error = image.set(0, &[1; 9]).unwrap_err();
        assert_eq!(error.to_string(), "9 page ids do not fit in a mirror of 8");
    }
}
