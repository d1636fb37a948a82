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
    /// `q` is `[Σ tokens][query_heads][k_dim]` and `out` `[Σ tokens][query_heads][v_dim]`, `k` is
    /// `[Σ tokens][kv_heads][k_dim]` and `v` `[Σ tokens][kv_heads][v_dim]` of the [layer's
    /// shape](crate::base::LayerShape), sequences one after another in the order of the step. Where V is a
    /// part of K, `v` is empty. Layers come in order, each once.
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
        let shape = &self.cache.shape;
        let (expected, layers) = (self.next_layer, shape.layers());
        if layer != expected || layer >= layers {
            return Err(CacheError::LayerOrder { got: layer, expected, layers });
        }
        let (tokens, of) = (self.tokens(), shape.layer(layer));
        for (what, got, expected) in [
            ("q", q.len(), tokens * of.q_row()),
            ("k", k.len(), tokens * of.k_row()),
            ("v", v.len(), tokens * of.v_row()),
            ("out", out.len(), tokens * of.out_row()),
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
        let shape = &self.cache.shape;
        let (of, first_head) = (shape.layer(layer), shape.head_index(layer, 0));
        let Some(step) = &self.step else { return Ok(0) };
        let (mut first_token, mut saturated) = (0, 0);
        for (index, ((sequence, count), member)) in step.sequences().zip(&self.members).enumerate()
        {
            let overflow = member.layouts.formats().overflow();
            for kv_head in 0..of.kv_heads() {
                let head = first_head + kv_head;
                let table = sequence.head(head);
                let rows = |values, stride, dim| {
                    let start = first_token * stride + kv_head * dim;
                    Rows { values: tail(values, start), stride, count }
                };
                let k = rows(k, of.k_row(), of.k_dim());
                let v = match of.v_row() {
                    0 => Rows::none(),
                    stride => rows(v, stride, of.v_dim()),
                };
                let pages = TablePages { pages: table.pages, layout: member.layouts.of(head) };
                let first = table.slots - count;
                let stored = self.cache.store.append_with(pages, first, k, v, overflow);
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
        let (of, layer_heads) = (shape.layer(layer), shape.layer_heads(layer));
        let mut heads: Vec<Head<'_>> = Vec::with_capacity(sequences.len() * of.kv_heads());
        for (sequence, member) in sequences.iter().zip(&self.members) {
            heads.extend(layer_heads.clone().map(|head| {
                let table = sequence.head(head);
                Head { pages: table.pages, slots: table.slots, layout: member.layouts.of(head) }
            }));
        }
        let spans: Vec<Span<'_>> = (self.members.iter().zip(heads.chunks_exact(of.kv_heads())))
            .map(|(member, heads)| Span { tokens: member.tokens, heads })
            .collect();

        // Nothing is evicted from heads with a window.
        let wish = |member: &Member| match of.window() {
            Some(_) => Wish::Nothing,
            None => member.wish,
        };
        let mut first_token = 0;
        let mut start = 0;
        while start < self.members.len() {
            let asked = wish(&self.members[start]);
            let same = self.members[start..].iter().take_while(|m| wish(m) == asked).count();
            let run = start..start + same;
            let tokens: usize = self.members[run.clone()].iter().map(|m| m.tokens).sum();
            let values = |row: usize| first_token * row..(first_token + tokens) * row;
            let batch = Batch { layer: of, spans: &spans[run.clone()], q: &q[values(of.q_row())] };
            scratch.lse.resize(tokens * of.query_heads(), 0.0);
            let mut scores = match asked {
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
            let out = &mut out[values(of.out_row())];
            let output = Output { out, lse: &mut scratch.lse, scores: scores.as_deref_mut() };
            attention.attend(store, &batch, output)?;
            if let Some(scores) = scores {
                for (span, member) in run.enumerate() {
                    let Member { layouts, tokens, .. } = &self.members[member];
                    let Some(watch) = self.watches[member].as_deref() else { continue };
                    let (layer, first_head, tokens) = (of, layer_heads.start, *tokens);
                    let attention = Observed {
                        layer,
                        first_head,
                        member,
                        tokens,
                        span,
                        scores,
                        store,
                        layouts,
                    };
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
