//! Where the bytes of a cache are.

use std::collections::HashSet;

use half::f16;
use serde::Serialize;

use super::tally::{MemoryUse, Tally};
use crate::{
    base::CacheShape,
    cache::{CacheError, FormatMap, KvCache, KvSequence, Memory},
    plan::{PlanError, PoolStats},
};

/// Every byte of a cache at one moment, counted from pool and tables.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryReport {
    /// Layers, heads and channels of the model.
    pub shape: CacheShape,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// The pool in pages.
    pub pages: PoolStats,
    /// The pool in bytes.
    pub pool: PoolBytes,
    /// Pages that the pool counts as held and none of the reported sequences names.
    pub unlisted_pages: usize,
    /// Sum over all tokens that the sequences have seen.
    pub tokens: usize,
    /// All sequences together; a page that several share counts once.
    pub total: MemoryUse,
    /// The total by layer.
    pub layers: Vec<MemoryUse>,
    /// The total by head, layer by layer.
    pub heads: Vec<HeadMemory>,
    /// Bookkeeping beside the pages.
    pub metadata: MetadataBytes,
    /// How much less is held than without eviction. Here sharing counts as compression too.
    pub compression: CompressionRates,
    /// What the same tokens and slots would cost elsewhere, without sharing.
    pub alternatives: Alternatives,
    /// Keys and values so far that their formats could not hold, where these saturate.
    pub saturated: u64,
    /// The sequences in the order given.
    pub sequences: Vec<SequenceMemory>,
}

/// The pool's bytes: `free + held + fenced == total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PoolBytes {
    /// All pages.
    pub total: usize,
    /// Pages that can be taken.
    pub free: usize,
    /// Pages in tables.
    pub held: usize,
    /// Pages held by more than one table.
    pub shared: usize,
    /// Freed pages that a running step may still read.
    pub fenced: usize,
    /// Free bytes that no head could ever take for want of neighbours or of the right size: external
    /// fragmentation. Always 0: all pages are equal, a table takes them one by one in any order, and
    /// every page fits every format.
    pub external_fragmentation: usize,
    /// Free bytes that one new, uncompressed sequence in the cache's formats could not fill, because a
    /// token needs a slot in all heads at once and there are not enough pages for one more round. Heads
    /// of running sequences can still take them.
    pub beyond_whole_tokens: usize,
}

/// One head's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeadMemory {
    /// Layer.
    pub layer: usize,
    /// KV head within the layer.
    pub kv_head: usize,
    /// Its pages.
    #[serde(flatten)]
    pub memory: MemoryUse,
}

/// Bytes of bookkeeping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MetadataBytes {
    /// Free list, reference counts and fence of the pool; 0 for a single sequence.
    pub pool: usize,
    /// Page tables and positions.
    pub tables: usize,
    /// Scores of the slots.
    pub scores: usize,
    /// All of these.
    pub total: usize,
    /// The total as a share of the pool's bytes.
    pub share_of_pool: f64,
}

/// How much less is kept than was seen; `None` while nothing is held.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CompressionRates {
    /// Slots that no eviction would have left, by slots kept.
    pub theoretical: Option<f64>,
    /// Bytes of the pages that an unevicted sequence of these tokens in these formats would hold, by
    /// bytes held.
    pub physical: Option<f64>,
    /// Physical by theoretical: how much of the eviction became free memory. Above 1 if partial pages
    /// weigh more before the eviction than after it, or denser heads kept more.
    pub ratio: Option<f64>,
}

/// Bytes that other managers would hold for the same sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Alternatives {
    /// Slots that no eviction would have left: every token in every head, but for what has left windows.
    pub unevicted_slots: usize,
    /// Pages of the same formats with these slots.
    pub unevicted: usize,
    /// The slots kept, in pages, under one block table for all layers and heads (as in vLLM): every
    /// head holds as many slots as the longest one.
    pub table_per_sequence: usize,
    /// As before with a table per layer: every head as long as the longest of its layer.
    pub table_per_layer: usize,
    /// Contiguous f16 buffers of the logical length, the least that a cache without pages takes.
    pub contiguous_f16: usize,
}

/// One sequence. Shared pages count in each of their sequences.
#[derive(Clone, Debug, Serialize)]
pub struct SequenceMemory {
    /// Tokens seen.
    pub tokens: usize,
    /// The formats of its heads.
    pub formats: FormatMap,
    /// All heads.
    pub total: MemoryUse,
    /// By layer.
    pub layers: Vec<MemoryUse>,
    /// By head, layer by layer.
    pub heads: Vec<HeadMemory>,
    /// Its bookkeeping.
    pub metadata: MetadataBytes,
    /// How much less it holds than without eviction.
    pub compression: CompressionRates,
    /// What it would cost elsewhere.
    pub alternatives: Alternatives,
}

impl MemoryReport {
    /// Counts `sequences`, which belong to `cache` and are not in an open step: time and memory in
    /// proportion to the pool's pages. Pages of sequences that are not given are
    /// [`unlisted_pages`](Self::unlisted_pages).
    ///
    /// # Errors
    /// A sequence of another cache, listed twice, or with a forgotten step.
    pub fn of<'a, M: Memory>(
        cache: &KvCache<M>,
        sequences: impl IntoIterator<Item = &'a KvSequence>,
    ) -> Result<Self, CacheError> {
        let (shape, pages) = (cache.shape(), cache.stats());
        let page_bytes = cache.page_bytes();
        let pool_bytes = pages.total * page_bytes;
        let mut tally = Tally::new(pages.total, shape.heads());
        let mut metadata =
            MetadataBytes { pool: cache.manager().metadata_bytes(), ..Default::default() };
        let mut alternatives = Alternatives::default();
        let mut reports = Vec::new();
        let mut listed = HashSet::new();
        for sequence in sequences {
            cache.check_owner(sequence)?;
            sequence.tables().check_closed()?;
            if !listed.insert(std::ptr::from_ref(sequence)) {
                return Err(PlanError::ListedTwice.into());
            }
            for (head, table) in sequence.tables().heads().enumerate() {
                tally
                    .add(head, sequence.layouts().of(head), table.pages, table.slots)
                    .ok_or(PlanError::ForeignSequence)?;
            }
            let report = SequenceMemory::of(shape, page_bytes, pool_bytes, sequence);
            metadata.tables += report.metadata.tables;
            metadata.scores += report.metadata.scores;
            alternatives.add(&report.alternatives);
            reports.push(report);
        }
        metadata.finish(pool_bytes);
        let heads = by_head(shape, tally.heads());
        let layers = by_layer(&heads);
        let total: MemoryUse = layers.iter().copied().sum();
        let unlisted_pages =
            pages.held.checked_sub(total.pages).ok_or(PlanError::ForeignSequence)?;
        let tokens = reports.iter().map(|r| r.tokens).sum();
        Ok(Self {
            shape: shape.clone(),
            page_bytes,
            pages,
            pool: PoolBytes::of(cache, pages, page_bytes),
            unlisted_pages,
            tokens,
            compression: CompressionRates::of(&alternatives, &total),
            total,
            layers,
            heads,
            metadata,
            alternatives,
            saturated: cache.saturated()?,
            sequences: reports,
        })
    }
}

impl SequenceMemory {
    fn of(shape: &CacheShape, page_bytes: usize, pool_bytes: usize, sequence: &KvSequence) -> Self {
        let (tables, layouts) = (sequence.tables(), sequence.layouts());
        let uses = tables.heads().enumerate().map(|(head, table)| {
            MemoryUse::of_table(layouts.of(head), table.pages.len(), table.slots)
        });
        let heads = by_head(shape, uses);
        let layers = by_layer(&heads);
        let total: MemoryUse = layers.iter().copied().sum();

        let tokens = sequence.tokens();
        let longest = |heads: &[HeadMemory]| heads.iter().map(|h| h.memory.slots).max();
        let longest_of_all = longest(&heads).unwrap_or(0);
        let plan = tables.plan();
        let pages = |head: usize, slots: usize| slots.div_ceil(plan.slots_per_page(head));
        let mut alternatives = Alternatives {
            unevicted_slots: 0,
            unevicted: 0,
            table_per_sequence: plan.pages_for(longest_of_all) * page_bytes,
            table_per_layer: 0,
            contiguous_f16: 0,
        };
        for (layer, of) in shape.iter().enumerate() {
            let here = shape.layer_heads(layer);
            let slots = longest(&heads[here.clone()]).unwrap_or(0);
            let layer_pages: usize = here.clone().map(|h| pages(h, slots)).sum();
            alternatives.table_per_layer += layer_pages * page_bytes;
            alternatives.contiguous_f16 += tokens * (of.k_row() + of.v_row()) * size_of::<f16>();
            for head in here {
                let slots = plan.unevicted_slots(head, tokens);
                alternatives.unevicted += pages(head, slots) * page_bytes;
                alternatives.unevicted_slots += slots;
            }
        }

        let mut metadata = MetadataBytes { tables: tables.metadata_bytes(), ..Default::default() };
        metadata.scores = sequence.metadata_bytes() - metadata.tables;
        metadata.finish(pool_bytes);
        Self {
            tokens,
            formats: layouts.formats().clone(),
            compression: CompressionRates::of(&alternatives, &total),
            total,
            layers,
            heads,
            metadata,
            alternatives,
        }
    }
}

impl PoolBytes {
    fn of<M: Memory>(cache: &KvCache<M>, pages: PoolStats, page_bytes: usize) -> Self {
        let plan = cache.table_plan();
        // The most tokens whose pages are free: pages_for never falls as tokens rise, and a token more
        // than every slot of the free pages never fits.
        let largest = (0..plan.heads()).map(|h| plan.slots_per_page(h)).max().unwrap_or(1);
        let (mut fits, mut exceeds) = (0, pages.free * largest + 1);
        while exceeds - fits > 1 {
            let tokens = fits + (exceeds - fits) / 2;
            if plan.pages_for(tokens) <= pages.free { fits = tokens } else { exceeds = tokens }
        }
        Self {
            total: pages.total * page_bytes,
            free: pages.free * page_bytes,
            held: pages.held * page_bytes,
            shared: pages.shared * page_bytes,
            fenced: pages.fenced * page_bytes,
            external_fragmentation: 0,
            beyond_whole_tokens: (pages.free - plan.pages_for(fits)) * page_bytes,
        }
    }
}

impl MetadataBytes {
    fn finish(&mut self, pool_bytes: usize) {
        self.total = self.pool + self.tables + self.scores;
        self.share_of_pool = self.total as f64 / pool_bytes as f64;
    }
}

impl CompressionRates {
    fn of(alternatives: &Alternatives, total: &MemoryUse) -> Self {
        let rate = |whole: usize, kept: usize| (kept > 0).then(|| whole as f64 / kept as f64);
        let theoretical = rate(alternatives.unevicted_slots, total.slots);
        let physical = rate(alternatives.unevicted, total.held_bytes);
        let ratio = theoretical.zip(physical).map(|(theory, practice)| practice / theory);
        Self { theoretical, physical, ratio }
    }
}

impl Alternatives {
    fn add(&mut self, other: &Self) {
        self.unevicted_slots += other.unevicted_slots;
        self.unevicted += other.unevicted;
        self.table_per_sequence += other.table_per_sequence;
        self.table_per_layer += other.table_per_layer;
        self.contiguous_f16 += other.contiguous_f16;
    }
}

fn by_head(shape: &CacheShape, uses: impl Iterator<Item = MemoryUse>) -> Vec<HeadMemory> {
    uses.enumerate()
        .map(|(head, memory)| {
            let (layer, kv_head) = shape.locate(head);
            HeadMemory { layer, kv_head, memory }
        })
        .collect()
}

fn by_layer(heads: &[HeadMemory]) -> Vec<MemoryUse> {
    let layers = heads.chunk_by(|a, b| a.layer == b.layer);
    layers.map(|heads| heads.iter().map(|head| head.memory).sum()).collect()
}
