//! The plain cache: every sequence's K and V in one growing buffer per head.

use gemm::Parallelism;
use rayon::prelude::*;

use super::{
    error::EngineError,
    kv::KvBackend,
    linear::{View, ViewMut, matmul},
    simd::softmax,
};
use crate::base::{CacheShape, Window};

/// Queries of one head that one job answers: their scores stay in the cache of a core.
const JOB_QUERIES: usize = 64;

/// Which sequence of a [`ContiguousKv`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceId(usize);

/// K and V in f32, contiguous per (sequence, layer, KV head): the baseline for paged caches.
///
/// Before each [`Model::forward`](super::Model::forward) the caller states with
/// [`begin_step`](Self::begin_step) which sequences the step's spans belong to. A step that fails
/// leaves every sequence as long as it was.
#[derive(Debug)]
pub struct ContiguousKv {
    shape: CacheShape,
    sequences: Vec<Sequence>,
    step: Vec<StepSpan>,
}

#[derive(Debug)]
struct Sequence {
    tokens: usize,
    /// By head index; each \[token\]\[channels\]. No values where they are a part of the keys.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

#[derive(Clone, Copy, Debug)]
struct StepSpan {
    sequence: usize,
    /// First of its tokens among all tokens of the step.
    first: usize,
    tokens: usize,
}

/// Queries that one job answers: `rows` tokens of one span from `start`, one query head.
struct Job {
    span: StepSpan,
    head: usize,
    start: usize,
    rows: usize,
}

impl ContiguousKv {
    /// An empty cache for a model of this shape.
    pub fn new(shape: CacheShape) -> Self {
        Self { shape, sequences: Vec::new(), step: Vec::new() }
    }

    /// Adds an empty sequence.
    pub fn add_sequence(&mut self) -> SequenceId {
        let heads = self.shape.heads();
        self.sequences.push(Sequence {
            tokens: 0,
            keys: vec![Vec::new(); heads],
            values: vec![Vec::new(); heads],
        });
        SequenceId(self.sequences.len() - 1)
    }

    /// Tokens that a sequence holds.
    pub fn tokens(&self, sequence: SequenceId) -> usize {
        self.sequences[sequence.0].tokens
    }

    /// Keeps only the first `tokens` tokens of a sequence.
    pub fn truncate(&mut self, sequence: SequenceId, tokens: usize) {
        let sequence = &mut self.sequences[sequence.0];
        sequence.tokens = sequence.tokens.min(tokens);
    }

    /// Says which sequence each span of the next step belongs to, and how many tokens it brings.
    pub fn begin_step(&mut self, spans: &[(SequenceId, usize)]) -> Result<(), EngineError> {
        let mut step = Vec::with_capacity(spans.len());
        let mut first = 0;
        for &(SequenceId(sequence), tokens) in spans {
            let twice = step.iter().any(|span: &StepSpan| span.sequence == sequence);
            if twice || sequence >= self.sequences.len() {
                return Err(EngineError::UnknownSequence(sequence));
            }
            step.push(StepSpan { sequence, first, tokens });
            first += tokens;
        }
        self.step = step;
        Ok(())
    }

    fn check(
        &self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &[f32],
    ) -> Result<(), EngineError> {
        let layers = self.shape.layers();
        if layer >= layers {
            return Err(EngineError::Layer { layer, layers });
        }
        let tokens: usize = self.step.iter().map(|span| span.tokens).sum();
        let of = self.shape.layer(layer);
        let lengths = [
            ("q", q.len(), tokens * of.q_row()),
            ("k", k.len(), tokens * of.k_row()),
            ("v", v.len(), tokens * of.v_row()),
            ("out", out.len(), tokens * of.out_row()),
        ];
        match lengths.into_iter().find(|(_, found, expected)| found != expected) {
            Some((what, found, expected)) => Err(EngineError::StepShape { what, expected, found }),
            None => Ok(()),
        }
    }

    fn store(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        let of = self.shape.layer(layer);
        for span in &self.step {
            let sequence = &mut self.sequences[span.sequence];
            for (head, index) in self.shape.layer_heads(layer).enumerate() {
                let sides = [
                    (&mut sequence.keys[index], k, of.k_row(), of.k_dim()),
                    (&mut sequence.values[index], v, of.v_row(), of.channels().v_stored()),
                ];
                for (held, new, row, dim) in sides {
                    held.truncate(sequence.tokens * dim);
                    let rows = span.first * row..(span.first + span.tokens) * row;
                    for token in new[rows].chunks_exact(row.max(1)) {
                        held.extend_from_slice(&token[head * dim..][..dim]);
                    }
                }
            }
        }
    }

    fn jobs(&self, layer: usize) -> Vec<Job> {
        let heads = self.shape.layer(layer).query_heads();
        self.step
            .iter()
            .flat_map(|&span| {
                (0..span.tokens).step_by(JOB_QUERIES).flat_map(move |start| {
                    let rows = JOB_QUERIES.min(span.tokens - start);
                    (0..heads).map(move |head| Job { span, head, start, rows })
                })
            })
            .collect()
    }

    /// The attention output of one job, \[rows\]\[v_dim\].
    fn answer(&self, layer: usize, job: &Job, q: &[f32]) -> Vec<f32> {
        let of = self.shape.layer(layer);
        let (k_dim, v_dim) = (of.k_dim(), of.v_dim());
        let sequence = &self.sequences[job.span.sequence];
        let index = self.shape.head_index(layer, job.head / of.group());
        let earlier = sequence.tokens + job.start;
        let seen = earlier + job.rows;
        let keys = &sequence.keys[index][..seen * k_dim];
        let values = match of.channels().v_in_k {
            true => View::strided(keys, seen, v_dim, k_dim),
            false => View::rows(&sequence.values[index][..seen * v_dim], seen, v_dim),
        };
        let row = of.q_row();
        let q = &q[(job.span.first + job.start) * row + job.head * k_dim..];

        let mut scores = vec![0.0; job.rows * seen];
        matmul(
            View::strided(q, job.rows, k_dim, row),
            View::rows(keys, seen, k_dim).transposed(),
            ViewMut::rows(&mut scores, job.rows, seen),
            false,
            Parallelism::None,
        );
        let sink = of.sink_logits().map(|logits| logits[job.head]);
        for (index, scores) in scores.chunks_exact_mut(seen).enumerate() {
            let (visible, later) = scores.split_at_mut(earlier + index + 1);
            for score in &mut *visible {
                *score *= of.scale();
                if let Some(cap) = of.softcap() {
                    *score = cap * (*score / cap).tanh();
                }
            }
            if of.window().is_none() && sink.is_none() {
                softmax(visible, 1.0);
            } else {
                soften_seen(visible, of.window(), sink);
            }
            later.fill(0.0);
        }
        let mut out = vec![0.0; job.rows * v_dim];
        matmul(
            View::rows(&scores, job.rows, seen),
            values,
            ViewMut::rows(&mut out, job.rows, v_dim),
            false,
            Parallelism::None,
        );
        out
    }
}

/// Makes weights of the scores of all tokens up to a query's own, of which it sees those in `window`, and
/// a logit `sink` that has no value.
fn soften_seen(scores: &mut [f32], window: Option<Window>, sink: Option<f32>) {
    let (tokens, sinks) = window.map_or((usize::MAX, 0), |window| (window.tokens, window.sinks));
    let recent = scores.len().saturating_sub(tokens);
    let hidden = sinks.min(recent)..recent;
    let seen = |slot: &usize| !hidden.contains(slot);
    let slots: Vec<usize> = (0..scores.len()).filter(seen).collect();
    let mut weights: Vec<f32> = slots.iter().map(|&slot| scores[slot]).chain(sink).collect();
    softmax(&mut weights, 1.0);
    scores.fill(0.0);
    for (slot, weight) in slots.into_iter().zip(weights) {
        scores[slot] = weight;
    }
}

impl KvBackend for ContiguousKv {
    fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &mut [f32],
    ) -> Result<(), EngineError> {
        self.check(layer, q, k, v, out)?;
        self.store(layer, k, v);
        let jobs = self.jobs(layer);
        let answers: Vec<Vec<f32>> =
            jobs.par_iter().map(|job| self.answer(layer, job, q)).collect();
        let of = self.shape.layer(layer);
        let (v_dim, query_heads) = (of.v_dim(), of.query_heads());
        for (job, answer) in jobs.iter().zip(answers) {
            let first = job.span.first + job.start;
            for (index, values) in answer.chunks_exact(v_dim).enumerate() {
                let at = ((first + index) * query_heads + job.head) * v_dim;
                out[at..at + v_dim].copy_from_slice(values);
            }
        }
        // Only now is the step whole: a failure in an earlier layer leaves the lengths alone.
        if layer + 1 == self.shape.layers() {
            for span in self.step.drain(..) {
                self.sequences[span.sequence].tokens += span.tokens;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .take(count)
        .collect()
    }

    /// softmax(q·Kᵀ/√d)·V in f64 over all tokens of one sequence, one layer.
    fn naive(shape: CacheShape, tokens: usize, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let (d, heads) = (shape.layer(0).k_dim(), shape.layer(0).query_heads());
        let mut out = vec![0.0; tokens * heads * d];
        for token in 0..tokens {
            for head in 0..heads {
                let query = &q[(token * heads + head) * d..][..d];
                let at = |t: usize| t * shape.layer(0).k_row() + head / shape.layer(0).group() * d;
                let weights: Vec<f64> = (0..=token)
                    .map(|t| {
                        let dot: f64 = query
                            .iter()
                            .zip(&k[at(t)..])
                            .map(|(q, k)| f64::from(*q) * f64::from(*k))
                            .sum();
                        (dot / (d as f64).sqrt()).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for (t, weight) in weights.iter().enumerate() {
                    for c in 0..d {
                        out[(token * heads + head) * d + c] +=
                            weight / sum * f64::from(v[at(t) + c]);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn chunks_of_two_sequences_match_plain_loops() {
        let shape = CacheShape::new(2, 2, 6, 16).unwrap();
        let query_row = shape.layer(0).query_heads() * shape.layer(0).k_dim();
        let total = [150, 90];
        let data: Vec<[Vec<f32>; 3]> = total
            .iter()
            .enumerate()
            .map(|(i, &tokens)| {
                let seed = i as u64 * 10;
                [
                    noise(tokens * query_row, seed + 1),
                    noise(tokens * shape.layer(0).k_row(), seed + 2),
                    noise(tokens * shape.layer(0).k_row(), seed + 3),
                ]
            })
            .collect();
        let mut cache = ContiguousKv::new(shape.clone());
        let ids = [cache.add_sequence(), cache.add_sequence()];
        let mut got = [vec![], vec![]];
        let mut done = [0, 0];
        for chunk in [[100, 1], [1, 70], [49, 19]] {
            cache.begin_step(&[(ids[0], chunk[0]), (ids[1], chunk[1])]).unwrap();
            let cut = |part: usize, row: usize| -> Vec<f32> {
                (0..2)
                    .flat_map(|s| data[s][part][done[s] * row..(done[s] + chunk[s]) * row].to_vec())
                    .collect()
            };
            let (q, k, v) =
                (cut(0, query_row), cut(1, shape.layer(0).k_row()), cut(2, shape.layer(0).k_row()));
            let mut out = vec![f32::NAN; q.len()];
            for layer in 0..2 {
                cache.attend(layer, &q, &k, &v, &mut out).unwrap();
            }
            got[0].extend_from_slice(&out[..chunk[0] * query_row]);
            got[1].extend_from_slice(&out[chunk[0] * query_row..]);
            (0..2).for_each(|s| done[s] += chunk[s]);
        }
        for s in 0..2 {
            assert_eq!(cache.tokens(ids[s]), total[s]);
            let exact = naive(shape.clone(), total[s], &data[s][0], &data[s][1], &data[s][2]);
            for (got, exact) in got[s].iter().zip(&exact) {
                assert!((f64::from(*got) - exact).abs() < 2e-5, "{got} {exact}");
            }
        }
    }

    #[test]
    fn a_step_that_stops_early_changes_no_length() {
        let shape = CacheShape::new(2, 1, 1, 16).unwrap();
        let mut cache = ContiguousKv::new(shape.clone());
        let id = cache.add_sequence();
        let (row, mut out) = (noise(16, 1), vec![0.0; 16]);
        cache.begin_step(&[(id, 1)]).unwrap();
        cache.attend(0, &row, &row, &row, &mut out).unwrap();
        assert_eq!(cache.tokens(id), 0);
        cache.begin_step(&[(id, 1)]).unwrap();
        cache.attend(0, &row, &row, &row, &mut out).unwrap();
        assert_eq!(cache.sequences[0].keys[0].len(), 16);
        cache.attend(1, &row, &row, &row, &mut out).unwrap();
        assert_eq!(cache.tokens(id), 1);
    }

    #[test]
    fn refuses_steps_that_do_not_fit() {
        let shape = CacheShape::new(1, 1, 1, 16).unwrap();
        let mut cache = ContiguousKv::new(shape.clone());
        let id = cache.add_sequence();
        let row = vec![0.0; 16];
        let twice = cache.begin_step(&[(id, 1), (id, 1)]);
        assert!(matches!(twice, Err(EngineError::UnknownSequence(0))));
        let unknown = cache.begin_step(&[(SequenceId(5), 1)]);
        assert!(matches!(unknown, Err(EngineError::UnknownSequence(5))));
        cache.begin_step(&[(id, 2)]).unwrap();
        let short = cache.attend(0, &row, &row, &row, &mut row.clone());
        assert!(matches!(
            short,
            Err(EngineError::StepShape { what: "q", expected: 32, found: 16 })
        ));
        let beyond = cache.attend(1, &row, &row, &row, &mut row.clone());
        assert!(matches!(beyond, Err(EngineError::Layer { layer: 1, layers: 1 })));
    }
}
