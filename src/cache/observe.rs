//! From the attention of a step to scores at rest.

use super::{error::CacheError, layouts::HeadLayouts, watch::Watch};
use crate::{
    attend::{Reduce, SlotScores},
    base::LayerShape,
    evict::{HeadContext, Score, accumulate, quantize},
    plan::Sequence,
    store::TablePages,
};

/// Scores that a member of a step wants from attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
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
    pub fn of(watch: Option<&Watch>, tokens: usize) -> Self {
        let Some(watch) = watch else { return Self::Nothing };
        let needs = watch.scorer.needs();
        match needs.attention_window {
            Some(queries) if tokens > 1 => Self::Window { queries, skip: needs.skip_newest },
            _ if needs.decode_attention && tokens == 1 => Self::Decode,
            _ => Self::Nothing,
        }
    }
}

/// The scores of one head after a step. They wait for the step's commit: one that fails or is dropped
/// leaves the old ones alone.
#[derive(Debug)]
pub struct Noted {
    /// The sequence's place in the step.
    pub(super) member: usize,
    /// The head, among all heads of the sequence.
    pub(super) head: usize,
    /// One score for each of its slots.
    pub(super) scores: Vec<Score>,
}

/// Buffers kept from step to step.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    values: Vec<f32>,
    keys: Vec<f32>,
}

/// Decodes the keys of a table.
pub(super) type ReadKeys<'a> = dyn Fn(TablePages<'_>, &mut [f32]) -> Result<(), CacheError> + 'a;

/// The attention that one sequence paid in one layer, and where its keys are.
pub(super) struct Observed<'a> {
    pub layer: &'a LayerShape,
    /// The layer's first head among all.
    pub first_head: usize,
    /// The sequence's place in the step.
    pub member: usize,
    /// Its tokens in the step.
    pub tokens: usize,
    /// Its place among the scores.
    pub span: usize,
    pub scores: &'a SlotScores,
    /// Decodes the keys of a table.
    pub read_keys: &'a ReadKeys<'a>,
    pub layouts: &'a HeadLayouts,
}

impl Observed<'_> {
    /// Works out what the scores of the layer's heads become.
    pub fn note(
        &self,
        sequence: &Sequence,
        watch: &Watch,
        Buffers { values, keys }: &mut Buffers,
        noted: &mut Vec<Noted>,
    ) -> Result<(), CacheError> {
        let (layer, scorer) = (self.layer, &watch.scorer);
        let step = sequence.tokens() as u64;
        for kv_head in 0..layer.kv_heads() {
            let head = self.first_head + kv_head;
            let table = sequence.head(head);
            if scorer.needs().keys {
                keys.resize(table.slots * layer.k_dim(), 0.0);
                let pages = TablePages { pages: table.pages, layout: self.layouts.of(head) };
                (self.read_keys)(pages, keys)?;
            }
            let context = HeadContext {
                head,
                logical_len: sequence.tokens(),
                positions: table.positions,
                head_dim: layer.k_dim(),
                group: match self.scores.reduce() {
                    Reduce::PerQueryHead => layer.group(),
                    Reduce::Group => 1,
                },
                queries: self.tokens.min(self.scores.window()),
                keys: scorer.needs().keys.then_some(&keys[..]),
                attention: Some(self.scores.head(self.span, kv_head)),
            };
            values.clear();
            values.resize(table.slots, 0.0);
            let mut scores = Vec::with_capacity(table.slots);
            scores.extend_from_slice(&watch.scores[head]);
            scores.resize(table.slots, Score::ZERO);
            match self.scores.reduce() {
                Reduce::PerQueryHead => {
                    scorer.score(&context, values)?;
                    // Newer queries replace what older ones said, unless they are too few to know.
                    if 2 * self.tokens >= self.scores.window() {
                        quantize(values, &mut scores)?;
                    } else {
                        accumulate(&mut scores, values, head, step)?;
                    }
                }
                Reduce::Group => {
                    scorer.increment(&context, values)?;
                    accumulate(&mut scores, values, head, step)?;
                }
            }
            noted.push(Noted { member: self.member, head, scores });
        }
        Ok(())
    }
}
