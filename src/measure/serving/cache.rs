//! The KV side of a decode loop: planner, tables, work, launches. One plan serves several steps.

use std::sync::Arc;

use rayon::prelude::*;

use super::{
    error::ServingError,
    phases::{Phase, Phases},
    prompt::Prompt,
    shape::ModelShape,
};
use crate::{
    base::HeadRewrite,
    cuda::{
        Growing, Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{
        Kernels, StepFence, TableMirror,
        attention::{DecodeHead, DecodePlan, Decoder, Scoring, StepAppender, StepRows, Tensors},
        eviction::{Evictor, SlotAddresses, SlotData, StepHead, StepScorer, StepTensors},
        kernels::Specialisation,
    },
    format::{PageLayout, SlotFormat},
    plan::{Audit, AuditError, BlockManager, PlanError, Sequence, TablePlan},
};

/// Page memory, and what is known of its slots.
#[derive(Debug)]
pub struct Memory {
    /// The pages, one after another.
    pub arena: DeviceBuffer,
    /// Scores and positions.
    pub data: SlotData,
    /// Pages in the arena.
    pub pages: usize,
}

/// What tables sequences have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// One for all heads of all layers, as without eviction.
    Shared,
    /// One per head, with or without scores.
    PerHead {
        /// Scores at rest are kept, of one in so many steps, each of which counts for so many.
        scores: Option<u32>,
    },
}

/// What a cache is made for.
#[derive(Clone, Copy, Debug)]
pub struct CacheSetup {
    /// The model.
    pub shape: ModelShape,
    /// Its pages.
    pub layout: PageLayout,
    /// Its tables.
    pub tables: Tables,
}

/// The launches of one layer, or of all layers where they share tables.
#[derive(Debug)]
struct Work {
    decoder: Decoder,
    appender: StepAppender,
    scorer: Option<StepScorer>,
}

/// What a layer's plan is made of.
struct Planned {
    decode: DecodePlan,
    heads: Vec<StepHead>,
    logits: usize,
}

/// The sequences of a decode loop.
#[derive(Debug)]
pub struct Cache {
    pub(super) shape: ModelShape,
    pub(super) layout: PageLayout,
    pub(super) tables: Tables,
    pub(super) manager: BlockManager,
    pub(super) sequences: Vec<Sequence>,
    pub(super) mirror: TableMirror,
    pub(super) fence: StepFence,
    pub(super) evictor: Option<Evictor>,
    pub(super) arena: u64,
    pub(super) data: SlotAddresses,
    works: Vec<Work>,
    tokens: DeviceBuffer,
    lse: DeviceBuffer,
    logits: Growing,
    logits_at: u64,
}

impl Cache {
    /// Sequences of `prompts`, whose rows the pages are taken to hold already. `memory`'s pages are the
    /// pool's; nothing else uses them.
    pub fn new(
        kernels: &Kernels,
        memory: &mut Memory,
        setup: CacheSetup,
        prompts: &[&Prompt],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<Self, ServingError> {
        let CacheSetup { shape, layout, tables } = setup;
        let context = kernels.context();
        let batch = prompts.len();
        let (heads, rows) = (shape.heads(), batch * shape.kv_heads);
        let (pool, table_heads, layers) = match tables {
            Tables::Shared => (memory.pages / heads, 1, 1),
            Tables::PerHead { .. } => (memory.pages, heads, shape.layers),
        };
        let scores = matches!(tables, Tables::PerHead { scores: Some(_) });
        let manager = BlockManager::new(pool).map_err(PlanError::from)?;
        let plan = Arc::new(TablePlan::new(vec![layout.slots; table_heads])?);
        let sequences: Vec<Sequence> = prompts
            .iter()
            .map(|prompt| admit(&manager, &plan, prompt, tables))
            .collect::<Result<_, _>>()?;
        if scores {
            let (scores, positions) = data_of(memory.pages, &layout, &sequences, prompts);
            memory.data.upload(&scores, &positions, staging, stream)?;
        }
        let specialisation =
            Specialisation { io: SlotFormat::F16, ..Specialisation::new(layout, shape.group()) };
        let with_logits = Specialisation { logits: scores, ..specialisation };
        let works = (0..layers)
            .map(|_| {
                Ok(Work {
                    decoder: Decoder::new(kernels, with_logits, rows, stream)?,
                    appender: StepAppender::new(kernels, &specialisation, rows, stream)?,
                    scorer: match scores {
                        true => Some(StepScorer::new(kernels, &specialisation, rows, stream)?),
                        false => None,
                    },
                })
            })
            .collect::<Result<_, ServingError>>()?;
        let most_ids = match tables {
            Tables::Shared => pool * shape.kv_heads,
            Tables::PerHead { .. } => pool,
        };
        // Room for tables that grow by doubling, and for what they leave behind.
        let words = (3 * most_ids + 8 * layers * rows).min(u32::MAX as usize) as u32;
        let mut tokens = DeviceBuffer::new(context, batch * size_of::<u32>())?;
        let seen: Vec<u32> = prompts.iter().map(|prompt| prompt.tokens as u32).collect();
        staging.upload(stream, &mut tokens, [(0, bytemuck::cast_slice(&seen))])?;
        let results = batch * shape.qkv() / shape.head_dim;
        Ok(Self {
            shape,
            layout,
            tables,
            manager,
            sequences,
            mirror: TableMirror::new(context, layers * rows, words)?,
            fence: StepFence::new(context),
            evictor: match scores {
                true => Some(Evictor::new(kernels, &specialisation, stream)?),
                false => None,
            },
            arena: memory.arena.address(),
            data: if scores { memory.data.addresses() } else { SlotAddresses::NONE },
            works,
            tokens,
            lse: DeviceBuffer::new(context, results * size_of::<f32>())?,
            logits: Growing::default(),
            logits_at: 0,
        })
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// The sequences' tables.
    pub fn tables(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Where the tokens that each sequence has seen are.
    pub fn tokens(&self) -> u64 {
        self.tokens.address()
    }

    /// Accounts for every page of the pool.
    ///
    /// # Errors
    /// A page that is held by nobody, or by two.
    pub fn audit(&self) -> Result<Audit, AuditError> {
        self.manager.audit(&self.sequences)
    }

    /// Keys and values of all steps so far that the pages' formats could not hold, and that were saturated.
    /// Waits for what is queued in `stream`.
    pub fn saturated(&self, staging: &mut Staging, stream: &Stream) -> Result<u64, ServingError> {
        let counts = self.works.iter().map(|work| work.appender.saturated(staging, stream));
        Ok(counts.sum::<Result<u64, _>>()?)
    }

    /// Bytes of pages that the sequences hold.
    pub fn held_bytes(&self) -> usize {
        let pages: usize = self.sequences.iter().map(Sequence::pages).sum();
        let heads = if self.tables == Tables::Shared { self.shape.heads() } else { 1 };
        pages * heads * self.layout.page_bytes
    }

    /// Where the device's table of a (layer, sequence, KV head) is in the mirror.
    pub(super) fn table(&self, layer: usize, sequence: usize, head: usize) -> usize {
        (layer * self.sequences.len() + sequence) * self.shape.kv_heads + head
    }

    /// Takes the pages of the next `steps` steps, brings the device's tables up to date and divides the
    /// work. The last plan's steps are all queued.
    pub fn plan(
        &mut self,
        steps: usize,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), ServingError> {
        if let Some(step) = self.fence.poll()? {
            self.manager.retire(step);
        }
        self.manager.reserve(self.sequences.iter_mut().map(|s| (s, steps)))?.commit();
        self.mirror_tables()?;
        self.mirror.sync(staging, stream)?;
        let planned: Vec<Planned> = (0..self.works.len())
            .into_par_iter()
            .map(|layer| self.plan_layer(layer, steps))
            .collect::<Result<_, _>>()?;
        let logits = planned.iter().map(|planned| planned.logits).max().unwrap_or(0);
        if self.works.iter().any(|work| work.scorer.is_some()) {
            let bytes = logits * self.shape.group() * size_of::<f32>();
            self.logits_at = self.logits.reserve(staging.context(), bytes)?.address();
        }
        for (work, planned) in self.works.iter_mut().zip(planned) {
            work.appender.plan(&planned.decode.ends, staging, stream)?;
            work.decoder.upload(planned.decode, staging, stream)?;
            if let Some(scorer) = &mut work.scorer {
                scorer.plan(&planned.heads, staging, stream)?;
            }
        }
        Ok(())
    }

    fn mirror_tables(&mut self) -> Result<(), ServingError> {
        let (kv_heads, heads) = (self.shape.kv_heads, self.shape.heads());
        let mut ids = Vec::new();
        for (s, sequence) in self.sequences.iter().enumerate() {
            match self.tables {
                Tables::PerHead { .. } => {
                    for (index, table) in sequence.heads().enumerate() {
                        let (layer, head) = (index / kv_heads, index % kv_heads);
                        let at = (layer * self.sequences.len() + s) * kv_heads + head;
                        self.mirror.set(at, table.pages)?;
                    }
                }
                // A block has a page for each head of each layer; a layer's launch starts at its own.
                Tables::Shared => {
                    for head in 0..kv_heads {
                        ids.clear();
                        let blocks = sequence.head(0).pages.iter();
                        ids.extend(blocks.map(|&block| block * heads as u32 + head as u32));
                        self.mirror.set(s * kv_heads + head, &ids)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn plan_layer(&self, layer: usize, steps: usize) -> Result<Planned, ServingError> {
        let ModelShape { kv_heads, .. } = self.shape;
        let (group, rows) = (self.shape.group(), self.shape.qkv() / self.shape.head_dim);
        let count = self.sequences.len() * kv_heads;
        let (mut decode, mut heads) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut logits = 0;
        for (s, sequence) in self.sequences.iter().enumerate() {
            for h in 0..kv_heads {
                let head = layer * kv_heads + h;
                let table = sequence.head(if self.tables == Tables::Shared { 0 } else { head });
                // The planner counts the steps to come already.
                let slots = (table.slots - steps) as u32;
                let pages = self.mirror.extent(self.table(layer, s, h))?.offset;
                let query = (s * rows + h * group) as u32;
                let at = logits as u32;
                logits += table.slots;
                decode.push(DecodeHead { query, pages, slots, logits: at });
                let (head, sequence) = (head as u32, s as u32);
                heads.push(StepHead { pages, slots, logits: at, row: query, head, sequence });
            }
        }
        let decoder = &self.works[layer].decoder;
        let decode = DecodePlan::new(&decode, decoder.specialisation(), decoder.blocks());
        Ok(Planned { decode, heads, logits })
    }

    /// Queues a layer's append, attention and scores: rows of q, k and v in, outputs out, both
    /// [`ModelShape::qkv`] values apart. `scored`: the step adds to the scores, if any are kept.
    ///
    /// # Safety
    /// The last [`plan`](Self::plan) has a step left; the addresses cover a row for each sequence, until
    /// the stream is done.
    pub unsafe fn attend(
        &self,
        layer: usize,
        [qkv, out]: [u64; 2],
        scored: bool,
        stream: &Stream,
        phases: &mut Phases,
    ) -> Result<(), ServingError> {
        let ModelShape { query_heads, kv_heads, head_dim, .. } = self.shape;
        let (work, arena, advance) = match self.tables {
            Tables::PerHead { .. } => (&self.works[layer], self.arena, true),
            Tables::Shared => {
                let before = layer * kv_heads * self.layout.page_bytes;
                (&self.works[0], self.arena + before as u64, layer == 0)
            }
        };
        let values = |heads: usize| (heads * head_dim * size_of::<half::f16>()) as u64;
        let rows = StepRows {
            keys: qkv + values(query_heads),
            values: qkv + values(query_heads + kv_heads),
            stride: self.shape.qkv() as u32,
            heads: kv_heads as u32,
        };
        let page_ids = self.mirror.address();
        let score_heads = work.scorer.as_ref().map_or(0, StepScorer::heads);
        let weight = match self.tables {
            Tables::PerHead { scores: Some(every) } => every as f32,
            _ => 1.0,
        };
        let scorer = work.scorer.as_ref().filter(|_| scored);
        let items = work.decoder.items();
        let addresses = [arena, page_ids, items, self.tokens.address(), score_heads];
        let tensors = Tensors {
            pages: arena,
            page_ids,
            queries: qkv,
            out,
            lse: self.lse.address(),
            logits: if scorer.is_some() { self.logits_at } else { 0 },
            scoring: Scoring::scaled(1.0 / (head_dim as f32).sqrt()),
        };
        phases.mark(Phase::Append, stream)?;
        // SAFETY: plan, tables, items and heads were made together and name pages of this arena, with
        // room for every step of the plan; the caller vouches for the rows.
        unsafe {
            work.appender.launch(addresses, &rows, self.data, advance, stream)?;
            phases.mark(Phase::Attention, stream)?;
            work.decoder.launch(&tensors, stream)?;
            if let Some(scorer) = scorer {
                phases.mark(Phase::Score, stream)?;
                let (tokens, lse) = (self.tokens.address(), self.lse.address());
                let read = StepTensors { page_ids, tokens, logits: self.logits_at, lse };
                scorer.launch(&read, self.data, weight, stream)?;
            }
        }
        Ok(())
    }
}

/// A sequence with a prompt's tables.
fn admit(
    manager: &BlockManager,
    plan: &Arc<TablePlan>,
    prompt: &Prompt,
    tables: Tables,
) -> Result<Sequence, ServingError> {
    let mut sequence = manager.sequence(Arc::clone(plan));
    manager.reserve([(&mut sequence, prompt.tokens)])?.commit();
    if tables != Tables::Shared {
        let evicted = prompt.heads.iter().enumerate().filter(|(_, h)| h.slots < prompt.tokens);
        let rewrites = evicted.map(|(head, kept)| {
            let (slots_after, moves) = (kept.slots, kept.moves.clone());
            HeadRewrite { head, slots_after, moves }
        });
        manager.rewrite(&mut sequence, rewrites.collect())?.begin_moves().commit();
        // Nothing on the device has seen these pages.
        manager.retire(manager.end_step());
    }
    Ok(sequence)
}

/// Scores and positions of all pages, as the prompts' heads have them.
fn data_of(
    pages: usize,
    layout: &PageLayout,
    sequences: &[Sequence],
    prompts: &[&Prompt],
) -> (Vec<u16>, Vec<u32>) {
    let mut scores = vec![0u16; pages * layout.slots];
    let mut positions = vec![0u32; pages * layout.slots];
    for (sequence, prompt) in sequences.iter().zip(prompts) {
        for (table, head) in sequence.heads().zip(&prompt.heads) {
            let rows = head.scores.chunks(layout.slots).zip(head.positions.chunks(layout.slots));
            for (&page, (of_scores, of_positions)) in table.pages.iter().zip(rows) {
                let at = page as usize * layout.slots;
                scores[at..at + of_scores.len()].copy_from_slice(of_scores);
                positions[at..at + of_positions.len()].copy_from_slice(of_positions);
            }
        }
    }
    (scores, positions)
}
