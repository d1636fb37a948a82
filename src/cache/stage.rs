//! Sequences out of the cache's memory, and in again.

use std::{fmt, sync::Arc};

use super::{
    error::CacheError, kv_cache::KvCache, layouts::HeadLayouts, memory::Memory,
    sequence::KvSequence, watch::Watch,
};
use crate::plan::Parked;

/// A sequence that holds no page: its bytes, tables and scores in host memory.
///
/// Bytes are as they are in pages, so nothing is lost or rounded on the way, and a sequence that was
/// staged out of one kind of memory can be staged into another.
#[derive(Clone)]
pub struct Staged {
    tables: Parked,
    layouts: Arc<HeadLayouts>,
    watch: Option<Watch>,
    /// Page after page, head after head.
    bytes: Vec<u8>,
}

impl Staged {
    /// Tokens seen.
    pub fn tokens(&self) -> usize {
        self.tables.tokens()
    }

    /// Pages that [`KvCache::stage_in`] needs.
    pub fn pages(&self) -> usize {
        self.tables.pages()
    }

    /// Bytes of the pages.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged")
            .field("tokens", &self.tokens())
            .field("pages", &self.pages())
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}

impl<M: Memory> KvCache<M> {
    /// Copies a sequence out of the cache's memory, pages that others share included, and gives its pages
    /// back. Waits for a device. What a forgotten step left is taken back first.
    ///
    /// # Errors
    /// A sequence of another cache, and what a device says; the sequence is dropped then.
    pub fn stage_out(&self, mut sequence: KvSequence) -> Result<Staged, CacheError> {
        self.check_owner(&sequence)?;
        sequence.recover()?;
        let tables = sequence.tables.park()?;
        let pages: Vec<u32> =
            sequence.tables.heads().flat_map(|table| table.pages).copied().collect();
        let mut bytes = vec![0; pages.len() * self.page_bytes()];
        self.memory.read_pages(&pages, &mut bytes)?;
        let (layouts, watch) = (Arc::clone(&sequence.layouts), sequence.watch.clone());
        Ok(Staged { tables, layouts, watch, bytes })
    }

    /// Brings a sequence back, into pages of its own.
    ///
    /// # Errors
    /// A full pool, and [`CacheError::OtherPages`] for pages of another size, and layers of other heads,
    /// channels, windows or another margin; what is staged stays as it is.
    pub fn stage_in(&self, staged: &Staged) -> Result<KvSequence, CacheError> {
        let alike = staged.layouts.fit(self.layouts());
        if !alike {
            return Err(CacheError::OtherPages { page_bytes: self.page_bytes() });
        }
        let tables = self.settled(|manager| manager.unpark(&staged.tables))??;
        let pages: Vec<u32> = tables.heads().flat_map(|table| table.pages).copied().collect();
        self.memory.write_pages(&pages, &staged.bytes)?;
        let mut sequence = KvSequence::new(tables, Arc::clone(&staged.layouts));
        sequence.watch = staged.watch.clone();
        Ok(sequence)
    }
}
