//! A step: append and attend, layer by layer.

use std::sync::Arc;

use super::{CacheError, HeadLayouts, KvCache, KvSequence, sequence::Watch};
use crate::{
    attend::{Attention, Batch, Head, Output, Reduce, SlotScores, Span},
    base::CacheShape,
    evict::{HeadContext, Score, accumulate, quantize},
    plan::{Sequence, Step},
    store::{PageStore, Rows, TablePages},
};

/// One iteration of the engine over some sequences, whose pages are reserved.
///
/// Dropped without [`commit`](Self::commit), it leaves the sequences as they were.
#[derive(Debug)]
#[must_use = "a step that is dropped is rolled back"]
pub struct CacheStep<'a> {
    cache: &'a mut KvCache,
    step: Option<Step<'a>>,
    members: Vec<Member>,
    watches: Vec<Option<&'a mut Watch>>,
    next_layer: usize,
}

/// What a step needs of a sequence beside its tables.
#[derive(Debug)]
struct Member {
    layouts: Arc<HeadLayouts>,
    tokens: usize,
    wish: Wish,
}

/// Buffers kept from step to step.
#[derive(Debug)]
pub(super) struct Scratch {
    lse: Vec<f32>,
    window: SlotScores,
    decode: SlotScores,
    values: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            lse: Vec::new(),
            window: SlotScores::new(0, Reduce::PerQueryHead),
            decode: SlotScores::new(1, Reduce::Group),
            values: Vec::new(),
        }
    }
}

pub(super) fn begin<'a>(
    cache: &'a mut KvCache,
    sequences: Vec<(&'a mut KvSequence, usize)>,
) -> Result<CacheStep<'a>, CacheError> {
    let mut members = Vec::with_capacity(sequences.len());
    let mut watches = Vec::with_capacity(sequences.len());
    let mut tables = Vec::with_capacity(sequences.len());
    for (sequence, tokens) in sequences {
        let (layouts, wish) =
            (Arc::clone(&sequence.layouts), Wish::of(sequence.watch.as_ref(), tokens));
        members.push(Member { layouts, tokens, wish });
        watches.push(sequence.watch.as_mut());
        tables.push((&mut sequence.tables, tokens));
    }
    let step = cache.manager.reserve(tables)?;
    let copies: Vec<(u32, u32)> = step.copies().iter().map(|c| (c.from, c.to)).collect();
    cache.store.copy_pages(&copies)?;
    Ok(CacheStep { cache, step: Some(step), members, watches, next_layer: 0 })
}

impl CacheStep<'_> {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.members.iter().map(|m| m.tokens).sum()
    }

    /// Appends `k` and `v` of `layer` to every sequence, then attends causally with `q`.
    ///
    /// `q` and `out` are `[Σ tokens][query_heads][head_dim]`, `k` and `v` are
    /// `[Σ tokens][kv_heads][head_dim]`, sequences one after another in the order of the step. Layers
    /// come in order, each once.
    pub fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &mut [f32],
    ) -> Result<(), CacheError> {
        let shape = self.cache.shape;
        let (expected, layers) = (self.next_layer, shape.layers());
        if layer != expected || layer >= layers {
            return Err(CacheError::LayerOrder { got: layer, expected, layers });
        }
        let queries = self.tokens() * shape.query_heads() * shape.head_dim();
        let rows = self.tokens() * shape.row();
        for (what, got, expected) in [
            ("q", q.len(), queries),
            ("k", k.len(), rows),
            ("v", v.len(), rows),
            ("out", out.len(), queries),
        ] {
            if got != expected {
                return Err(CacheError::WrongLength { what, got, expected });
            }
        }
        self.append(layer, k, v)?;
        self.attend_runs(layer, q, out)?;
        self.next_layer += 1;
        Ok(())
    }

    /// Keeps the new tokens.
    ///
    /// # Errors
    /// A layer is missing; the step is then rolled back.
    pub fn commit(mut self) -> Result<(), CacheError> {
        let layers = self.cache.shape.layers();
        if self.next_layer != layers {
            let expected = self.next_layer;
            return Err(CacheError::LayerOrder { got: layers, expected, layers });
        }
        if let Some(step) = self.step.take() {
            step.commit();
        }
        self.cache.settle();
        Ok(())
    }

    fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<(), CacheError> {
        let shape = self.cache.shape;
        let (row, head_dim) = (shape.row(), shape.head_dim());
        let Some(step) = &self.step else { return Ok(()) };
        let mut first_token = 0;
        for ((sequence, count), member) in step.sequences().zip(&self.members) {
            for kv_head in 0..shape.kv_heads() {
                let head = shape.head_index(layer, kv_head);
                let table = sequence.head(head);
                let start = first_token * row + kv_head * head_dim;
                let rows = |values| Rows { values: tail(values, start), stride: row, count };
                let pages = TablePages { pages: table.pages, layout: member.layouts.of(head) };
                self.cache.store.append(pages, table.slots - count, rows(k), rows(v))?;
            }
            first_token += count;
        }
        Ok(())
    }

    /// Attends run by run: consecutive sequences that ask for the same scores go in one batch.
    fn attend_runs(&mut self, layer: usize, q: &[f32], out: &mut [f32]) -> Result<(), CacheError> {
        let Some(step) = &self.step else { return Ok(()) };
        let KvCache { shape, store, attention, scratch, .. } = &mut *self.cache;
        let sequences: Vec<&Sequence> = step.sequences().map(|(sequence, _)| sequence).collect();
        let mut heads: Vec<Head<'_>> = Vec::with_capacity(sequences.len() * shape.kv_heads());
        for (sequence, member) in sequences.iter().zip(&self.members) {
            heads.extend((0..shape.kv_heads()).map(|kv_head| {
                let head = shape.head_index(layer, kv_head);
                let table = sequence.head(head);
                Head { pages: table.pages, slots: table.slots, layout: member.layouts.of(head) }
            }));
        }
        let spans: Vec<Span<'_>> = (self.members.iter().zip(heads.chunks_exact(shape.kv_heads())))
            .map(|(member, heads)| Span { tokens: member.tokens, heads })
            .collect();

        let width = shape.query_heads() * shape.head_dim();
        let mut first_token = 0;
        let mut start = 0;
        while start < self.members.len() {
            let wish = self.members[start].wish;
            let same = self.members[start..].iter().take_while(|m| m.wish == wish).count();
            let run = start..start + same;
            let tokens: usize = self.members[run.clone()].iter().map(|m| m.tokens).sum();
            let values = first_token * width..(first_token + tokens) * width;
            let batch = Batch { shape: *shape, spans: &spans[run.clone()], q: &q[values.clone()] };
            scratch.lse.resize(tokens * shape.query_heads(), 0.0);
            let mut scores = match wish {
                Wish::Nothing => None,
                Wish::Decode => Some(&mut scratch.decode),
                Wish::Window { queries, skip } => {
                    let window = &mut scratch.window;
                    if (window.window(), window.skip_newest()) != (queries, skip) {
                        *window = SlotScores::new(queries, Reduce::PerQueryHead).skipping(skip);
                    }
                    Some(&mut scratch.window)
                }
            };
            let out = &mut out[values];
            let output = Output { out, lse: &mut scratch.lse, scores: scores.as_deref_mut() };
            attention.attend(store, &batch, output)?;
            if let Some(scores) = scores {
                for (span, index) in run.enumerate() {
                    let attention = Observed { shape: *shape, layer, span, scores };
                    let watch = self.watches[index].as_deref_mut();
                    let tokens = self.members[index].tokens;
                    if let Some(watch) = watch {
                        attention.note(sequences[index], watch, tokens, &mut scratch.values)?;
                    }
                }
            }
            first_token += tokens;
            start += same;
        }
        Ok(())
    }
}

impl Drop for CacheStep<'_> {
    fn drop(&mut self) {
        let Some(step) = self.step.take() else { return };
        for ((sequence, tokens), watch) in step.sequences().zip(&mut self.watches) {
            let Some(watch) = watch else { continue };
            for (scores, table) in watch.scores.iter_mut().zip(sequence.heads()) {
                scores.truncate(table.slots - tokens);
            }
        }
        drop(step);
        self.cache.settle();
    }
}

/// Scores that a member wants from attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    /// One value per slot, to add to what the slot has.
    Decode,
    /// Per query head, over this many of the newest queries.
    Window {
        queries: usize,
        skip: usize,
    },
}

impl Wish {
    fn of(watch: Option<&Watch>, tokens: usize) -> Self {
        let Some(watch) = watch else { return Self::Nothing };
        let needs = watch.scorer.needs();
        match needs.attention_window {
            Some(queries) if tokens > 1 => Self::Window { queries, skip: needs.skip_newest },
            _ if needs.decode_attention && tokens == 1 => Self::Decode,
            _ => Self::Nothing,
        }
    }
}

/// The attention that one sequence paid in one layer.
struct Observed<'a> {
    shape: CacheShape,
    layer: usize,
    span: usize,
    scores: &'a SlotScores,
}

impl Observed<'_> {
    /// Turns it into scores at rest.
    fn note(
        &self,
        sequence: &Sequence,
        watch: &mut Watch,
        tokens: usize,
        values: &mut Vec<f32>,
    ) -> Result<(), CacheError> {
        let shape = self.shape;
        let step = sequence.tokens() as u64;
        for kv_head in 0..shape.kv_heads() {
            let head = shape.head_index(self.layer, kv_head);
            let table = sequence.head(head);
            let scores = &mut watch.scores[head];
            scores.resize(table.slots, Score::ZERO);
            let context = HeadContext {
                head,
                logical_len: sequence.tokens(),
                positions: table.positions,
                head_dim: shape.head_dim(),
                group: match self.scores.reduce() {
                    Reduce::PerQueryHead => shape.group(),
                    Reduce::Group => 1,
                },
                keys: None,
                attention: Some(self.scores.head(self.span, kv_head)),
            };
            values.clear();
            values.resize(table.slots, 0.0);
            match self.scores.reduce() {
                Reduce::PerQueryHead => {
                    watch.scorer.score(&context, values)?;
                    // Newer queries replace what older ones said, unless they are too few to know.
                    if 2 * tokens >= self.scores.window() {
                        quantize(values, scores)?;
                    } else {
                        accumulate(scores, values, head, step)?;
                    }
                }
                Reduce::Group => {
                    watch.scorer.increment(&context, values)?;
                    accumulate(scores, values, head, step)?;
                }
            }
        }
        Ok(())
    }
}

/// `values[start..]`, empty where that is past the end.
fn tail(values: &[f32], start: usize) -> &[f32] {
    values.get(start..).unwrap_or(&[])
}
