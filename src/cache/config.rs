//! How large a cache is and how its pages look.

use super::{
    error::CacheError,
    layouts::{FormatMap, HeadLayouts},
};
use crate::{
    base::CacheShape,
    format::{PageFormat, PageLayout},
};

/// What a cache is made from.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Layers, heads and channels.
    pub shape: CacheShape,
    /// Tokens of one KV head that a page holds in f16. Small pages waste less in partial pages and let
    /// eviction come closer to single tokens; large ones need fewer table entries. Other formats hold
    /// more or fewer tokens in the same bytes.
    pub block_tokens: usize,
    /// The formats of each head's pages, and what becomes of values that they cannot hold.
    pub formats: FormatMap,
    /// How much memory.
    pub capacity: Capacity,
}

/// How much memory a cache takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// This many pages.
    Pages(usize),
    /// As many pages as fit in this many bytes.
    Bytes(usize),
    /// Pages for this many tokens in every head, without eviction.
    Tokens(usize),
}

impl CacheConfig {
    /// A cache of 16-token f16 pages for `tokens` tokens.
    pub fn new(shape: CacheShape, tokens: usize) -> Self {
        Self {
            shape,
            block_tokens: 16,
            formats: FormatMap::uniform(PageFormat::default()),
            capacity: Capacity::Tokens(tokens),
        }
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> Result<usize, CacheError> {
        let default = PageFormat::default();
        Ok(PageLayout::page_bytes_for(default, self.shape.head_dim(), self.block_tokens)?)
    }

    /// Pages of the cache.
    pub(super) fn pages(&self, page_bytes: usize) -> Result<usize, CacheError> {
        let heads = self.shape.heads();
        let pages = match self.capacity {
            Capacity::Pages(pages) => pages,
            Capacity::Bytes(bytes) => bytes / page_bytes,
            Capacity::Tokens(tokens) => {
                let layouts = HeadLayouts::new(self.shape, &self.formats, page_bytes)?;
                layouts.plan().pages_for(tokens)
            }
        };
        if pages < heads {
            let bytes = pages.saturating_mul(page_bytes);
            return Err(CacheError::TooLittleMemory { bytes, pages, heads });
        }
        Ok(pages)
    }
}
