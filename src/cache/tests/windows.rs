//! Which queries a step shows a scorer, and where its scores go.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{scores::all_scores, *};
use crate::evict::{HeadContext, Needs, Score, Scorer};

/// Scores every slot by the number of queries that it is told of.
struct Queries(Needs);

impl Queries {
    fn of(window: usize) -> Arc<dyn Scorer> {
        Arc::new(Self(Needs { attention_window: Some(window), ..Needs::default() }))
    }
}

impl Scorer for Queries {
    fn name(&self) -> &'static str {
        "queries"
    }

    fn needs(&self) -> Needs {
        self.0
    }

    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        out.fill(ctx.queries as f32);
        Ok(())
    }
}

/// Sums the attention that it is told of.
struct Sum(Needs);

impl Sum {
    fn of(window: usize, skip_newest: usize) -> Arc<dyn Scorer> {
        let attention_window = Some(window);
        Arc::new(Self(Needs { attention_window, skip_newest, ..Needs::default() }))
    }
}

impl Scorer for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn needs(&self) -> Needs {
        self.0
    }

    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        let attention = ctx.attention.unwrap_or_default();
        for row in attention.chunks_exact(out.len()) {
            out.iter_mut().zip(row).for_each(|(sum, p2)| *sum += p2);
        }
        Ok(())
    }
}

/// One step of all of `sequences`, each with the same number of tokens.
fn step(model: &mut Model, cache: &KvCache, sequences: &mut [KvSequence], tokens: usize) {
    let rows = sequences.len() * tokens;
    let values = |model: &mut Model, width: usize| model.values(rows * width);
    let shape = model.shape.clone();
    let inputs: Vec<_> = (0..shape.layers())
        .map(|_| {
            let q = values(model, shape.layer(0).q_row());
            (q, values(model, shape.layer(0).k_row()), values(model, shape.layer(0).k_row()))
        })
        .collect();
    let mut step = cache.step(sequences.iter_mut().map(|sequence| (sequence, tokens))).unwrap();
    for (layer, (q, k, v)) in inputs.iter().enumerate() {
        step.attend(layer, q, k, v, &mut vec![0.0; q.len()]).unwrap();
    }
    step.commit().unwrap();
}

fn observing(
    cache: &KvCache,
    scorers: impl IntoIterator<Item = Arc<dyn Scorer>>,
) -> Vec<KvSequence> {
    let sequence = |scorer| {
        let mut sequence = cache.sequence();
        sequence.observe(scorer);
        sequence
    };
    scorers.into_iter().map(sequence).collect()
}

/// At least half a window replaces what older queries said, fewer add to it; and a chunk shorter than
/// the window counts as what it is.
#[test]
fn half_a_window_replaces_and_less_than_that_accumulates() {
    for (chunks, expected) in [
        (&[5][..], 5.0),
        (&[20], 8.0),
        (&[5, 4], 4.0),
        (&[20, 4], 4.0),
        (&[5, 3], 8.0),
        (&[5, 3, 2], 10.0),
        (&[5, 3, 6], 6.0),
    ] {
        let mut model = Model::new(1);
        let cache = cache(&model, mixed(), 300);
        let mut sequences = observing(&cache, [Queries::of(8)]);
        for &tokens in chunks {
            step(&mut model, &cache, &mut sequences, tokens);
        }
        // Slots of a chunk that adds have what they had: nothing.
        for scores in all_scores(&sequences[0]) {
            assert_eq!(scores[0].to_f32(), expected, "{chunks:?}");
        }
    }
}

/// Members of one step that ask for other windows, or for none, get each their own.
#[test]
fn every_member_of_a_step_is_told_what_it_asked_for() {
    let mut model = Model::new(1);
    let cache = cache(&model, mixed(), 300);
    let mut sequences = observing(&cache, [8, 2, 2, 5, 8].map(Queries::of));
    sequences.insert(2, cache.sequence());
    step(&mut model, &cache, &mut sequences, 6);
    let told = |s: &KvSequence| s.scores(0).map(|scores| scores[0].to_f32());
    let told: Vec<_> = sequences.iter().map(told).collect();
    assert_eq!(told, [Some(6.0), Some(2.0), None, Some(2.0), Some(5.0), Some(6.0)]);
}

/// Panics when it is told of anything, until it is told to go on.
struct Panics(AtomicBool, Arc<dyn Scorer>);

impl Scorer for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn needs(&self) -> Needs {
        self.1.needs()
    }

    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        assert!(!self.0.load(Ordering::Relaxed), "a scorer that panics");
        self.1.score(ctx, out)
    }
}

/// A layer that a scorer's panic cut short is attempted again, and counts once for all members.
#[test]
fn a_layer_cut_short_by_a_panic_counts_once() {
    let run = |panics: bool| {
        let mut model = Model::new(1);
        let cache = cache(&model, mixed(), 300);
        let shape = model.shape.clone();
        let second = Arc::new(Panics(AtomicBool::new(false), Queries::of(8)));
        let mut sequences = observing(&cache, [Queries::of(8), second.clone()]);
        step(&mut model, &cache, &mut sequences, 6);
        let rows = 2 * 3;
        let q = model.values(rows * shape.layer(0).q_row());
        let (k, v) = (
            model.values(rows * shape.layer(0).k_row()),
            model.values(rows * shape.layer(0).k_row()),
        );
        let mut out = vec![0.0; q.len()];
        let mut step = cache.step(sequences.iter_mut().map(|s| (s, 3))).unwrap();
        if panics {
            second.0.store(true, Ordering::Relaxed);
            let attempt = AssertUnwindSafe(|| step.attend(0, &q, &k, &v, &mut out));
            assert!(catch_unwind(attempt).is_err());
            second.0.store(false, Ordering::Relaxed);
        }
        for layer in 0..shape.layers() {
            step.attend(layer, &q, &k, &v, &mut out).unwrap();
        }
        step.commit().unwrap();
        cache.audit(&sequences).unwrap();
        sequences.iter().map(all_scores).collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

/// Scorers that look at windows of one size, from near and from afar, one after the other.
#[test]
fn a_window_from_afar_is_not_taken_for_a_near_one() {
    for skips in [[0, 3], [3, 0], [2, 5]] {
        let mut model = Model::new(1);
        let cache = cache(&model, mixed(), 300);
        let mut sequences = observing(&cache, skips.map(|skip| Sum::of(4, skip)));
        step(&mut model, &cache, &mut sequences, 12);
        for (sequence, skip) in sequences.iter().zip(skips) {
            for scores in all_scores(sequence) {
                // The newest query sees all slots, and those that it skips nobody else sees from
                // farther.
                let seen = scores.iter().rposition(|&score| score > Score::ZERO).unwrap();
                assert_eq!(seen, 11 - skip, "{skips:?}");
            }
        }
    }
}

/// A head that has evicted keeps no order, so a truncation moves slots: their scores go along.
#[test]
fn scores_follow_the_moves_of_a_truncation() {
    let by_position = |sequence: &KvSequence| -> Vec<Vec<(usize, Score)>> {
        let tables = sequence.tables().heads().enumerate();
        let scored = tables.map(|(head, table)| {
            let scores = sequence.scores(head).unwrap().iter().enumerate();
            let mut scored: Vec<_> = scores.map(|(i, &s)| (table.position(i), s)).collect();
            scored.sort_unstable_by_key(|&(position, _)| position);
            scored
        });
        scored.collect()
    };
    for forked in [false, true] {
        let mut model = Model::new(13);
        let cache = cache(&model, mixed(), 300);
        let (mut sequence, _) = prefilled(&mut model, &cache, &[60], ScorerKind::KvCompress);
        let budget = compression(ScorerKind::Random, Budget::Ratio(2.0));
        cache.compress(&mut sequence, &budget).unwrap();
        let fork = forked.then(|| cache.fork(&sequence).unwrap());
        let slots = |s: &KvSequence| -> Vec<Vec<u32>> {
            s.tables().heads().map(|t| t.positions.to_vec(t.slots)).collect()
        };
        let (before, order) = (by_position(&sequence), slots(&sequence));
        cache.truncate(&mut sequence, 30).unwrap();
        let moved = slots(&sequence).iter().zip(&order).any(|(new, old)| !old.starts_with(new));
        assert!(moved, "the truncation moved nothing");
        for (after, before) in by_position(&sequence).iter().zip(&before) {
            let kept: Vec<_> = before.iter().filter(|(p, _)| *p < 30).copied().collect();
            assert_eq!(after, &kept);
            assert!(kept.iter().any(|&(_, score)| score != kept[0].1));
        }
        cache.audit(fork.iter().chain([&sequence])).unwrap();
    }
}
