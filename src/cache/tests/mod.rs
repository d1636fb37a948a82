//! The cache against plain vectors of K and V and the textbook formula.

mod cases;
mod guards;
mod needs;
mod ranges;
mod rows;
mod scores;
mod shared;
mod sizes;
mod stage;
mod steps;
mod windows;

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    base::{CacheShape, Channels, LayerShape, Window},
    evict::{Budget, EvictError, Policy, ScorerKind},
    format::{PageFormat, SlotFormat},
    plan::{PlanError, PoolError},
    store::{PageStore, TablePages},
};

/// A model with two layers and ragged query groups, and everything it ever appended.
#[derive(Clone)]
struct Model {
    shape: CacheShape,
    random: u64,
}

/// What a sequence was given: for each head, the rows of each token in order.
#[derive(Clone, Default)]
struct History {
    k: Vec<Vec<Vec<f32>>>,
    v: Vec<Vec<Vec<f32>>>,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self { shape: CacheShape::new(2, 2, 6, 32).unwrap(), random: seed | 1 }
    }

    /// Three layers that have nothing in common: plain attention over two heads; a window with sinks, keys
    /// wider than values and capped scores; one latent row with sink logits.
    fn of_different_layers(seed: u64) -> Self {
        let plain = LayerShape::new(2, 6, 32).unwrap();
        let window = Window { tokens: 9, sinks: 2 };
        let local = LayerShape::new(1, 3, Channels::new(48, 32)).unwrap();
        let local = local.windowed(window).unwrap().softcapped(5.0).unwrap().scaled(0.3).unwrap();
        let latent = LayerShape::new(1, 2, Channels::v_in_k(32, 16)).unwrap();
        let latent = latent.with_sink_logits(vec![0.5, -1.0]).unwrap();
        let shape = CacheShape::from_layers([plain, local, latent]).unwrap();
        Self { shape, random: seed | 1 }
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                (self.random >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn history(&self) -> History {
        let heads = vec![Vec::new(); self.shape.heads()];
        History { k: heads.clone(), v: heads }
    }

    /// Runs a step and compares every output with softmax attention over the tokens that the tables
    /// say are held.
    fn step(
        &mut self,
        cache: &KvCache,
        members: &mut [(&mut KvSequence, &mut History, usize)],
        tolerance: f64,
    ) -> Result<(), CacheError> {
        let shape = self.shape.clone();
        let tokens: usize = members.iter().map(|m| m.2).sum();
        let mut inputs = Vec::new();
        for layer in shape.iter() {
            let rows = [layer.q_row(), layer.k_row(), layer.v_row()];
            inputs.push(rows.map(|row| self.values(tokens * row)));
        }
        let mut outputs = Vec::new();
        let mut step = cache.step(members.iter_mut().map(|m| (&mut *m.0, m.2)))?;
        for (layer, [q, k, v]) in inputs.iter().enumerate() {
            let mut out = vec![f32::NAN; tokens * shape.layer(layer).out_row()];
            step.attend(layer, q, k, v, &mut out)?;
            outputs.push(out);
        }
        step.commit()?;

        let mut first = 0;
        for (sequence, history, tokens) in members {
            for (layer, ([q, k, v], out)) in inputs.iter().zip(&outputs).enumerate() {
                let of = shape.layer(layer);
                for kv_head in 0..of.kv_heads() {
                    let head = shape.head_index(layer, kv_head);
                    for token in first..first + *tokens {
                        let row = |values: &[f32], dim: usize| {
                            values[(token * of.kv_heads() + kv_head) * dim..][..dim].to_vec()
                        };
                        let key = row(k, of.k_dim());
                        let value = match of.channels().v_in_k {
                            true => key[..of.v_dim()].to_vec(),
                            false => row(v, of.v_dim()),
                        };
                        history.k[head].push(key);
                        history.v[head].push(value);
                    }
                    let table = sequence.tables().head(head);
                    for token in 0..*tokens {
                        let position = sequence.tokens() - *tokens + token;
                        let seen: Vec<usize> = match of.window() {
                            None => (0..table.slots)
                                .map(|slot| table.position(slot))
                                .filter(|&p| p <= position)
                                .collect(),
                            // What has left since then was there for the step.
                            Some(window) => (0..=position)
                                .filter(|&p| position - p < window.tokens || p < window.sinks)
                                .collect(),
                        };
                        for g in 0..of.group() {
                            let query_head = kv_head * of.group() + g;
                            let query = (first + token) * of.query_heads() + query_head;
                            let q = &q[query * of.k_dim()..][..of.k_dim()];
                            let want = attend(of, query_head, q, &seen, history, head);
                            let out = &out[query * of.v_dim()..][..of.v_dim()];
                            for (got, want) in out.iter().zip(want) {
                                let error = (f64::from(*got) - want).abs();
                                assert!(error <= tolerance, "{got} {want}");
                            }
                        }
                    }
                }
            }
            first += *tokens;
        }
        Ok(())
    }
}

fn attend(
    layer: &LayerShape,
    query_head: usize,
    q: &[f32],
    seen: &[usize],
    history: &History,
    head: usize,
) -> Vec<f64> {
    let weight = |k: &[f32]| {
        let products = q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b));
        let logit = products.sum::<f64>() * f64::from(layer.scale());
        match layer.softcap().map(f64::from) {
            Some(cap) => (cap * (logit / cap).tanh()).exp(),
            None => logit.exp(),
        }
    };
    let weights: Vec<f64> = seen.iter().map(|&p| weight(&history.k[head][p])).collect();
    let sink = layer.sink_logits().map_or(0.0, |logits| f64::from(logits[query_head]).exp());
    let sum = weights.iter().sum::<f64>() + sink;
    let mut out = vec![0.0; layer.v_dim()];
    for (&p, weight) in seen.iter().zip(&weights) {
        for (o, v) in out.iter_mut().zip(&history.v[head][p]) {
            *o += weight / sum * f64::from(*v);
        }
    }
    out
}

/// Newest tokens that heads with a window can give back.
const ROLLBACK: usize = 6;

fn cache(model: &Model, formats: FormatMap, pages: usize) -> KvCache {
    let config = CacheConfig {
        shape: model.shape.clone(),
        block_tokens: 4,
        formats,
        rollback: ROLLBACK,
        capacity: Capacity::Pages(pages),
    };
    KvCache::new(&config).unwrap()
}

/// Every head in a format of its own.
fn mixed() -> FormatMap {
    let format = |k, v| PageFormat { k, v };
    FormatMap::uniform(PageFormat::both(SlotFormat::F32))
        .with(1, PageFormat::both(SlotFormat::F16))
        .with(2, format(SlotFormat::I8, SlotFormat::Bf16))
        .with(3, format(SlotFormat::F16, SlotFormat::I8))
}

fn compression(scorer: ScorerKind, budget: Budget) -> Compression {
    let policy = Policy { sinks: 2, window: 3, ..Policy::default() };
    Compression { scorer: Arc::from(scorer.build()), policy, budget }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Prefill in chunks, decode, fork, compress and truncate in any order: attention always equals the
    /// formula over the tokens the tables name, and every page is accounted for.
    #[test]
    fn attention_sees_what_the_tables_name(
        seed in any::<u64>(),
        ops in prop::collection::vec((0u8..6, 0usize..8, 1usize..20), 1..25),
        f32_only in any::<bool>(),
        alike in any::<bool>(),
    ) {
        let mut model = if alike { Model::new(seed) } else { Model::of_different_layers(seed) };
        let uniform = FormatMap::uniform(PageFormat::both(SlotFormat::F32));
        let formats = match (f32_only, alike) {
            (true, _) => uniform,
            (false, true) => mixed(),
            // A latent row has one format.
            (false, false) => mixed().with(3, PageFormat::both(SlotFormat::I8)),
        };
        let tolerance = if f32_only { 1e-5 } else { 0.02 };
        let cache = cache(&model, formats, 400);
        let mut live: Vec<(KvSequence, History)> = Vec::new();
        for (op, which, amount) in ops {
            if op == 0 || live.is_empty() {
                let mut sequence = cache.sequence();
                sequence.observe(Arc::from(ScorerKind::KvCompress.build()));
                live.push((sequence, model.history()));
                continue;
            }
            let which = which % live.len();
            match op {
                1 | 2 => {
                    let mut members: Vec<_> =
                        live.iter_mut().map(|(s, h)| (s, h, 1)).collect();
                    members[which].2 = if op == 1 { amount } else { 1 };
                    match model.step(&cache, &mut members, tolerance) {
                        Ok(()) => {}
                        Err(CacheError::Plan(error)) => {
                            let full = matches!(error, PlanError::Pool(PoolError::OutOfPages { .. }));
                            prop_assert!(full, "{}", error);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                3 => {
                    let fork = cache.fork(&live[which].0).unwrap();
                    let history = live[which].1.clone();
                    live.push((fork, history));
                }
                4 => {
                    let kinds = ScorerKind::ALL;
                    let kind = kinds[amount % kinds.len()];
                    let before = live[which].0.tables().pages();
                    let budget = Budget::Ratio(1.0 + amount as f64 / 4.0);
                    match cache.compress(&mut live[which].0, &compression(kind, budget)) {
                        Ok(done) => {
                            let after = live[which].0.tables().pages();
                            prop_assert_eq!(before - after, done.pages_freed);
                        }
                        Err(CacheError::Evict(_)) => {
                            prop_assert_eq!(live[which].0.tables().pages(), before);
                        }
                        Err(CacheError::Plan(PlanError::Pool(PoolError::OutOfPages { .. }))) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                _ => {
                    let keep = live[which].0.tokens().saturating_sub(amount);
                    let (sequence, history) = &mut live[which];
                    let before = sequence.tokens();
                    match cache.truncate(sequence, keep) {
                        Ok(()) => {
                            let rows = history.k.iter_mut().chain(&mut history.v);
                            rows.for_each(|head| head.truncate(keep));
                        }
                        Err(CacheError::Plan(PlanError::PastMargin { .. })) => {
                            prop_assert!(!alike && sequence.tokens() == before);
                        }
                        Err(CacheError::Plan(PlanError::Pool(PoolError::OutOfPages { .. }))) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            for (sequence, _) in &live {
                for (head, table) in sequence.tables().heads().enumerate() {
                    let windowed = sequence.tables().plan().is_windowed(head);
                    let scored = if windowed { 0 } else { table.slots };
                    prop_assert_eq!(sequence.scores(head).unwrap().len(), scored);
                    if windowed {
                        // The window, the margin and what a page rounds up, once no step is open; sinks are
                        // in a page of their own.
                        prop_assert!(table.slots <= 9 - 1 + ROLLBACK + 2 * 5 + 5, "{}", table.slots);
                    }
                }
            }
            cache.audit(live.iter().map(|(s, _)| s)).unwrap();
        }
        live.clear();
        cache.settle().unwrap();
        prop_assert_eq!(cache.stats().free, 400);
    }
}

/// A sequence of `tokens` tokens in `chunks`, with its history.
fn prefilled(
    model: &mut Model,
    cache: &KvCache,
    chunks: &[usize],
    scorer: ScorerKind,
) -> (KvSequence, History) {
    let mut sequence = cache.sequence();
    sequence.observe(Arc::from(scorer.build()));
    let mut history = model.history();
    for &chunk in chunks {
        model.step(cache, &mut [(&mut sequence, &mut history, chunk)], 0.02).unwrap();
    }
    (sequence, history)
}

/// What a sequence holds: for each head the decoded K and V of each position, bit for bit.
fn held(cache: &KvCache, sequence: &KvSequence) -> Vec<BTreeMap<u32, Vec<u32>>> {
    let of_head = |(head, table): (usize, crate::plan::HeadTable<'_>)| {
        let pages = TablePages { pages: table.pages, layout: sequence.layouts().of(head) };
        let Channels { k: k_dim, v: v_dim, .. } = pages.layout.channels;
        let (mut k, mut v) = (vec![0.0; table.slots * k_dim], vec![0.0; table.slots * v_dim]);
        cache.store().read(pages, 0, &mut k, &mut v).unwrap();
        let rows = k.chunks_exact(k_dim).zip(v.chunks_exact(v_dim)).enumerate();
        let bits = |row: (&[f32], &[f32])| row.0.iter().chain(row.1).map(|x| x.to_bits()).collect();
        rows.map(|(slot, row)| (table.position(slot) as u32, bits(row))).collect()
    };
    sequence.tables().heads().enumerate().map(of_head).collect()
}
