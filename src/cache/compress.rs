//! Compression: scores, schedule, moves, freed pages.

use std::sync::Arc;

use rayon::prelude::*;

use super::{
    error::CacheError, kv_cache::KvCache, layouts::HeadLayouts, memory::Memory,
    sequence::KvSequence, watch::Watch,
};
use crate::{
    base::CacheShape,
    evict::{Budget, HeadContext, HeadExtent, HeadSlots, Policy, Score, Scorer, plan, quantize},
    plan::Rewrite,
    store::TablePages,
};

/// How a sequence is compressed.
#[derive(Clone)]
pub struct Compression {
    /// Which slots matter.
    pub scorer: Arc<dyn Scorer>,
    /// What stays whatever it scores, and how pages are chosen.
    pub policy: Policy,
    /// How much is kept.
    pub budget: Budget,
}

/// What a compression did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Pages that the plan asked for, all of which left the sequence's tables. Those that other
    /// sequences share stay held.
    pub pages_freed: usize,
    /// Slots that were dropped.
    pub slots_evicted: usize,
    /// Slots that were copied into holes.
    pub slots_moved: usize,
    /// Shared pages that were copied first.
    pub pages_copied: usize,
}

impl std::fmt::Debug for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compression")
            .field("scorer", &self.scorer.name())
            .field("policy", &self.policy)
            .field("budget", &self.budget)
            .finish()
    }
}

impl<M: Memory> KvCache<M> {
    /// Evicts whole pages until the sequence is within the budget. Heads of layers with a window take no
    /// part: the budget is that of all others.
    pub fn compress(
        &self,
        sequence: &mut KvSequence,
        compression: &Compression,
    ) -> Result<Compressed, CacheError> {
        compress(self, sequence, compression)
    }

    /// Forgets the newest tokens of a sequence, so that `tokens` are left.
    ///
    /// # Errors
    /// [`PlanError::PastMargin`](crate::plan::PlanError::PastMargin) in a shape with windows, where a page
    /// that is needed again is gone: beyond [`CacheConfig::rollback`](super::CacheConfig::rollback) at the
    /// earliest.
    pub fn truncate(&self, sequence: &mut KvSequence, tokens: usize) -> Result<(), CacheError> {
        self.check_owner(sequence)?;
        sequence.tables.recover()?;
        if let Some(watch) = &sequence.watch {
            watch.check(&sequence.tables)?;
        }
        let rewrite = self.settled(|manager| manager.truncate(&mut sequence.tables, tokens))??;
        carry_out(rewrite, &self.memory, &sequence.layouts, &mut sequence.watch)?;
        self.settle_if_it_can();
        Ok(())
    }
}

fn compress<M: Memory>(
    cache: &KvCache<M>,
    sequence: &mut KvSequence,
    compression: &Compression,
) -> Result<Compressed, CacheError> {
    let Compression { scorer, policy, budget } = compression;
    cache.check_owner(sequence)?;
    sequence.tables.recover()?;
    let tokens = sequence.tokens();
    let (evictable, extents) = sequence.extents();
    let wanted = budget.pages_to_free(&extents, tokens, policy);
    let wanted = wanted.map_err(|error| error.with_head(|head| evictable[head]))?;
    if wanted == 0 {
        let (pages_freed, slots_evicted, slots_moved, pages_copied) = (0, 0, 0, 0);
        return Ok(Compressed { pages_freed, slots_evicted, slots_moved, pages_copied });
    }
    // Whoever it was collected for, what is at rest follows the slots.
    if let Some(watch) = &sequence.watch {
        watch.check(&sequence.tables)?;
    }
    let needs = scorer.needs();
    let computed;
    let scores: &[Vec<Score>] = if needs.attention_window.is_some() || needs.decode_attention {
        let watch = sequence.watch.as_ref().filter(|watch| watch.serves(scorer));
        &watch.ok_or(CacheError::NotObserved { scorer: scorer.name() })?.scores
    } else {
        computed = score_heads(cache.shape(), &cache.memory, sequence, scorer.as_ref())?;
        &computed
    };
    let heads: Vec<HeadSlots<'_>> = (evictable.iter().zip(&extents))
        .map(|(&head, extent)| HeadSlots {
            scores: &scores[head],
            positions: sequence.tables.head(head).positions,
            slots_per_page: extent.slots_per_page,
        })
        .collect();
    let plan = plan(&heads, tokens, policy, wanted);
    let plan = plan.map_err(|error| error.with_head(|head| evictable[head]))?;
    drop(heads);
    let mut rewrites = plan.rewrites();
    rewrites.iter_mut().for_each(|rewrite| rewrite.head = evictable[rewrite.head]);

    let rewrite =
        cache.settled(|manager| manager.rewrite_sparing(&mut sequence.tables, rewrites))?;
    let rewrite = rewrite?;
    let pages_copied = rewrite.pages_copied();
    let slots_moved = carry_out(rewrite, &cache.memory, &sequence.layouts, &mut sequence.watch)?;
    if let Some(watch) = &mut sequence.watch {
        watch.scores.iter_mut().for_each(|scores| scores.shrink_to(scores.len() + 64));
    }
    cache.settle_if_it_can();
    Ok(Compressed {
        pages_freed: plan.pages_freed(),
        slots_evicted: plan.victims(),
        slots_moved,
        pages_copied,
    })
}

/// Scores of all slots from what the pages hold, head by head on all threads.
fn score_heads<M: Memory>(
    shape: &CacheShape,
    memory: &M,
    sequence: &KvSequence,
    scorer: &dyn Scorer,
) -> Result<Vec<Vec<Score>>, CacheError> {
    let tables: Vec<_> = sequence.tables.heads().enumerate().collect();
    let score = |(head, table): (usize, crate::plan::HeadTable<'_>)| {
        if sequence.tables.plan().is_windowed(head) {
            return Ok(Vec::new());
        }
        let layer = shape.layer(shape.locate(head).0);
        let mut keys = Vec::new();
        if scorer.needs().keys {
            keys.resize(table.slots * layer.k_dim(), 0.0);
            let pages = TablePages { pages: table.pages, layout: sequence.layouts.of(head) };
            memory.read_keys(pages, &mut keys)?;
        }
        let context = HeadContext {
            head,
            logical_len: sequence.tokens(),
            positions: table.positions,
            head_dim: layer.k_dim(),
            group: layer.group(),
            queries: 0,
            keys: scorer.needs().keys.then_some(&keys[..]),
            attention: None,
        };
        let mut values = vec![0.0; table.slots];
        scorer.score(&context, &mut values)?;
        let mut scores = vec![Score::ZERO; table.slots];
        quantize(&values, &mut scores)?;
        Ok(scores)
    };
    tables.into_par_iter().map(score).collect()
}

/// Makes the copies and the moves of a rewrite, of bytes and of scores, and commits it; returns how many
/// slots moved.
fn carry_out<M: Memory>(
    rewrite: Rewrite<'_>,
    memory: &M,
    layouts: &HeadLayouts,
    watch: &mut Option<Watch>,
) -> Result<usize, CacheError> {
    let moving = rewrite.begin_moves();
    let mut moved = 0;
    for pass in moving.passes() {
        let copies: Vec<(u32, u32)> = pass.copies().iter().map(|c| (c.from, c.to)).collect();
        memory.copy_pages(&copies)?;
        for head in pass.heads() {
            let pages = TablePages { pages: head.pages(), layout: layouts.of(head.head()) };
            memory.move_slots(pages, head.moves())?;
            moved += head.moves().len();
            if let Some(watch) = watch
                && !layouts.plan().is_windowed(head.head())
            {
                head.apply_to(&mut watch.scores[head.head()])?;
            }
        }
    }
    moving.commit();
    Ok(moved)
}

impl KvSequence {
    /// The heads that compete for a budget, all but those with a window, and their slots and slots per page
    /// as budgets see them.
    pub(crate) fn extents(&self) -> (Vec<usize>, Vec<HeadExtent>) {
        let plan = self.tables.plan();
        let heads = (0..plan.heads()).filter(|&head| !plan.is_windowed(head));
        heads
            .map(|head| {
                let (slots, slots_per_page) =
                    (self.tables.head(head).slots, plan.slots_per_page(head));
                (head, HeadExtent { slots, slots_per_page })
            })
            .unzip()
    }
}
