//! How large a cache is and how its pages look.

use super::{
    error::CacheError,
    layouts::{FormatMap, HeadLayouts},
};
use crate::{
    base::{CacheShape, LayerShape},
    format::{PageFormat, PageLayout},
};

/// What a cache is made from.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The layers: heads, channels, windows.
    pub shape: CacheShape,
    /// Tokens of one KV head, the widest of the shape, that a page holds in f16. Small pages waste less in partial pages and let
    /// eviction come closer to single tokens; large ones need fewer table entries. Other formats hold
    /// more or fewer tokens in the same bytes.
    pub block_tokens: usize,
    /// The formats of each head's pages, and what becomes of values that they cannot hold.
    pub formats: FormatMap,
    /// Newest tokens that [`truncate`](super::KvCache::truncate) can take back in layers with a window, whose
    /// pages otherwise leave as soon as no query will see them. Beyond it truncation is refused where
    /// such a page is gone.
    pub rollback: usize,
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
    /// Pages for this many tokens in every head, without eviction, and as if no layer had a window: so that
    /// they may come in one step.
    Tokens(usize),
}

impl CacheConfig {
    /// A cache of 16-token f16 pages for `tokens` tokens.
    pub fn new(shape: CacheShape, tokens: usize) -> Self {
        Self {
            shape,
            block_tokens: 16,
            formats: FormatMap::uniform(PageFormat::default()),
            rollback: 0,
            capacity: Capacity::Tokens(tokens),
        }
    }

    /// Bytes of a page: those of [`block_tokens`](Self::block_tokens) tokens of the widest heads. All pages are
    /// equal, so narrower heads hold more tokens in each.
    pub fn page_bytes(&self) -> Result<usize, CacheError> {
        let of = |layer: &LayerShape| {
            PageLayout::page_bytes_for(PageFormat::default(), layer.channels(), self.block_tokens)
        };
        let mut most = 0;
        for layer in self.shape.iter() {
            most = most.max(of(layer)?);
        }
        Ok(most)
    }

    /// Pages of the cache.
    pub(super) fn pages(&self, page_bytes: usize) -> Result<usize, CacheError> {
        let heads = self.shape.heads();
        let pages = match self.capacity {
            Capacity::Pages(pages) => pages,
            Capacity::Bytes(bytes) => bytes / page_bytes,
            Capacity::Tokens(tokens) => {
                let layouts =
                    HeadLayouts::new(&self.shape, &self.formats, page_bytes, self.rollback)?;
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
