//! What is to be measured.

use serde::Serialize;

use super::error::BenchError;
use crate::{
    base::CacheShape,
    device::kernels::MOST_HEAD_DIM,
    format::{LayoutError, PageFormat, PageLayout, SlotFormat},
};

/// How much of the benchmark runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BenchScope {
    /// The checks, then everything that is measured.
    All,
    /// The checks alone.
    Checks,
    /// Decode alone, unchecked: for profilers.
    Decode,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchPlan {
    /// How much of it.
    pub scope: BenchScope,
    /// Channels of a head.
    pub head_dim: usize,
    /// KV heads of the layer.
    pub kv_heads: usize,
    /// Query heads that read a KV head.
    pub group: usize,
    /// f16 slots of a page; other formats hold what fits in as many bytes.
    pub page_slots: usize,
    /// Page formats.
    pub formats: Vec<PageFormat>,
    /// Slots of a head, or their mean where heads are ragged.
    pub lengths: Vec<usize>,
    /// Sequences decoded at once.
    pub batches: Vec<usize>,
    /// The most bytes of pages in any case, in bytes, on a device that has the memory; larger cases are
    /// left out and listed.
    pub most_bytes: usize,
}

impl Default for BenchPlan {
    /// A layer of Llama-3.1-8B: 1k to 128k tokens, 1 to 64 sequences.
    fn default() -> Self {
        Self {
            scope: BenchScope::All,
            head_dim: 128,
            kv_heads: 8,
            group: 4,
            page_slots: 16,
            formats: SlotFormat::ALL.iter().map(|&f| PageFormat::both(f)).collect(),
            lengths: vec![1 << 10, 4 << 10, 16 << 10, 32 << 10, 128 << 10],
            batches: vec![1, 8, 64],
            most_bytes: 40 << 30,
        }
    }
}

impl BenchPlan {
    /// The layer's shape, if all of the plan can be measured.
    ///
    /// # Errors
    /// [`BenchError::Empty`] for a list with nothing in it or a zero in one; heads that make no shape;
    /// pages that cannot be laid out.
    pub fn check(&self) -> Result<CacheShape, BenchError> {
        if self.formats.is_empty() {
            return Err(BenchError::Empty("no format"));
        }
        for (list, what) in [(&self.lengths, "no length"), (&self.batches, "no batch")] {
            if list.is_empty() || list.contains(&0) {
                return Err(BenchError::Empty(what));
            }
        }
        if self.head_dim > MOST_HEAD_DIM {
            return Err(BenchError::HeadDim(self.head_dim));
        }
        let query_heads = self.kv_heads.saturating_mul(self.group);
        let shape = CacheShape::new(1, self.kv_heads, query_heads, self.head_dim)?;
        self.formats.iter().try_for_each(|&format| self.layout(format).map(drop))?;
        Ok(shape)
    }

    /// The layout of one format's pages.
    pub(super) fn layout(&self, format: PageFormat) -> Result<PageLayout, LayoutError> {
        let f16 = PageFormat::default();
        let bytes = PageLayout::page_bytes_for(f16, self.head_dim, self.page_slots)?;
        PageLayout::new(format, self.head_dim, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_are_too_wide_are_refused_before_anything_is_compiled() {
        let plan = BenchPlan { head_dim: 512, ..BenchPlan::default() };
        let error = plan.check().unwrap_err().to_string();
        assert_eq!(error, "the kernels take head_dim up to 256, not 512");
        assert!(BenchPlan { head_dim: 256, ..plan }.check().is_ok());
    }
}
