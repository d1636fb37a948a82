//! A step: append and attend, layer by layer.

use std::sync::Arc;

use super::{
    KvCache,
    error::CacheError,
    layouts::HeadLayouts,
    observe::{Buffers, Noted, Observed, Wish},
    sequence::{KvSequence, Watch},
};
use crate::{
    attend::{Attention, Batch, Head, Output, Reduce, SlotScores, Span},
    plan::{Sequence, Step},
    store::{PageStore, Rows, StoreError, TablePages},
};

/// One iteration of the engine over some sequences, whose pages are reserved.
///
/// Dropped without [`commit`](Self::commit), it leaves the sequences as they were, scores included.
#[derive(Debug)]
#[must_use = "a step that is dropped is rolled back"]
pub struct CacheStep<'a> {
    cache: &'a mut KvCache,
    step: Option<Step<'a>>,
    members: Vec<Member>,
    watches: Vec<Option<&'a mut Watch>>,
    noted: Vec<Noted>,
    next_layer: usize,
    saturated: u64,
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
    buffers: Buffers,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            lse: Vec::new(),
            window: SlotScores::new(0, Reduce::PerQueryHead),
            decode: SlotScores::new(1, Reduce::Group),
            buffers: Buffers::default(),
        }
    }
}

pub(super) fn begin<'a>(
    cache: &'a mut KvCache,
    mut sequences: Vec<(&'a mut KvSequence, usize)>,
) -> Result<CacheStep<'a>, CacheError> {
    sequences.iter().try_for_each(|(sequence, _)| cache.check_owner(sequence))?;
    // What forgotten steps give back is behind the fence that is opened next.
    sequences.iter_mut().try_for_each(|(sequence, _)| sequence.recover())?;
    cache.settle();
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
    Ok(CacheStep {
        cache,
        step: Some(step),
        members,
        watches,
        noted: Vec::new(),
        next_layer: 0,
        saturated: 0,
    })
}

impl CacheStep<'_> {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.members.iter().map(|m| m.tokens).sum()
    }

    /// Keys and values of the layers so far that their formats could not hold, and that were saturated:
    /// the sequence's formats asked for that ([`FormatMap::on_overflow`](super::FormatMap::on_overflow)).
    pub fn saturated(&self) -> u64 {
        self.saturated
    }

    /// Appends `k` and `v` of `layer` to every sequence, then attends causally with `q`.
    ///
    /// `q` and `out` are `[Σ tokens][query_heads][head_dim]`, `k` and `v` are
    /// `[Σ tokens][kv_heads][head_dim]`, sequences one after another in the order of the step. Layers
    /// come in order, each once.
    ///
    /// # Errors
    /// [`CacheError::OutOfRange`] for a key or value that its page format cannot hold, NaN and the
    /// infinities included; besides bad input. The layer can then be attempted again, with other rows or
    /// the same, or the step be dropped: nothing of the attempt is counted, and no slot that a sequence
    /// had before the step is touched.
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
        let saturated = self.append(layer, k, v)?;
        let noted = self.attend_runs(layer, q, out)?;
        self.noted.extend(noted);
        self.next_layer += 1;
        self.saturated += saturated;
        Ok(())
    }

    /// Keeps the new tokens.
    ///
    /// # Errors
    /// A layer is missing; the step is then rolled back.
    pub fn commit(mut self) -> Result<(), CacheError> {
        let layers = self.cache.shape.layers();
        if self.next_layer != layers {
            return Err(CacheError::MissingLayers { given: self.next_layer, layers });
        }
        if let Some(step) = self.step.take() {
            for Noted { member, head, scores } in self.noted.drain(..) {
                if let Some(watch) = &mut self.watches[member] {
                    watch.scores[head] = scores;
                }
            }
            for ((sequence, _), watch) in step.sequences().zip(&mut self.watches) {
                if let Some(watch) = watch {
                    watch.grow(sequence);
                }
            }
            step.commit();
            self.cache.saturated += self.saturated;
        }
        self.cache.settle();
        Ok(())
    }

    /// Encodes the rows of a layer; returns how many values were saturated.
    fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<u64, CacheError> {
        let shape = self.cache.shape;
        let (row, head_dim) = (shape.row(), shape.head_dim());
        let Some(step) = &self.step else { return Ok(0) };
        let (mut first_token, mut saturated) = (0, 0);
        for (index, ((sequence, count), member)) in step.sequences().zip(&self.members).enumerate()
        {
            let overflow = member.layouts.formats().overflow();
            for kv_head in 0..shape.kv_heads() {
                let head = shape.head_index(layer, kv_head);
                let table = sequence.head(head);
                let start = first_token * row + kv_head * head_dim;
                let rows = |values| Rows { values: tail(values, start), stride: row, count };
                let pages = TablePages { pages: table.pages, layout: member.layouts.of(head) };
                let first = table.slots - count;
                let stored = self.cache.store.append_with(pages, first, rows(k), rows(v), overflow);
                saturated += stored.map_err(|error| match error {
                    StoreError::OutOfRange { row, cause } => {
                        let token = sequence.tokens() - count + row;
                        CacheError::OutOfRange { member: index, layer, kv_head, token, cause }
                    }
                    other => other.into(),
                })? as u64;
            }
            first_token += count;
        }
        Ok(saturated)
    }

    /// Attends run by run: consecutive sequences that ask for the same scores go in one batch. Returns
    /// what the scores of the layer's heads become.
    fn attend_runs(
        &mut self,
        layer: usize,
        q: &[f32],
        out: &mut [f32],
    ) -> Result<Vec<Noted>, CacheError> {
        let mut noted = Vec::new();
        let Some(step) = &self.step else { return Ok(noted) };
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
                for (span, member) in run.enumerate() {
                    let Member { layouts, tokens, .. } = &self.members[member];
                    let Some(watch) = self.watches[member].as_deref() else { continue };
                    let (shape, tokens) = (*shape, *tokens);
                    let attention =
                        Observed { shape, layer, member, tokens, span, scores, store, layouts };
                    let buffers = &mut scratch.buffers;
                    attention.note(sequences[member], watch, buffers, &mut noted)?;
                }
            }
            first_token += tokens;
            start += same;
        }
        Ok(noted)
    }
}

impl Drop for CacheStep<'_> {
    fn drop(&mut self) {
        if let Some(step) = self.step.take() {
            drop(step);
            self.cache.settle();
        }
    }
}

/// `values[start..]`, empty where that is past the end.
fn tail(values: &[f32], start: usize) -> &[f32] {
    values.get(start..).unwrap_or(&[])
}
