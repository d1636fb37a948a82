//! Scores at rest: what steps make of them, and what compression trusts.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::evict::{HeadContext, Needs, Score, Scorer, scorer::KvCompress};

pub(super) fn all_scores(sequence: &KvSequence) -> Vec<Vec<Score>> {
    let heads = 0..sequence.tables().plan().heads();
    heads.map(|head| sequence.scores(head).unwrap().to_vec()).collect()
}

/// Sums what it is told, of whichever kind of attention it asks for.
struct Sum {
    needs: Needs,
    /// Refuses to score once.
    fails: AtomicBool,
}

impl Sum {
    fn of(attention_window: Option<usize>, decode_attention: bool) -> Self {
        let needs = Needs { attention_window, decode_attention, ..Needs::default() };
        Self { needs, fails: AtomicBool::new(false) }
    }

    fn sum(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        let missing = |input| EvictError::Missing { scorer: self.name(), input };
        if self.fails.swap(false, Ordering::Relaxed) {
            return Err(missing("a second attempt"));
        }
        if self.needs.keys {
            let keys = ctx.keys.ok_or(missing("keys"))?;
            assert_eq!(keys.len(), out.len() * ctx.head_dim);
            assert!(keys.iter().all(|x| x.is_finite()));
        }
        let attention = ctx.attention.ok_or(missing("attention"))?;
        assert_eq!(attention.len(), out.len() * ctx.group);
        for row in attention.chunks_exact(out.len()) {
            out.iter_mut().zip(row).for_each(|(sum, p2)| *sum += p2);
        }
        Ok(())
    }
}

impl Scorer for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn needs(&self) -> Needs {
        self.needs
    }

    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        assert!(self.needs.attention_window.is_some(), "it never asked for this");
        self.sum(ctx, out)
    }

    fn increment(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        assert!(self.needs.decode_attention && ctx.group == 1);
        self.sum(ctx, out)
    }
}

/// Half-precision pages of four slots, and a sequence that took `chunks`.
fn observed_by(
    scorer: &Arc<dyn Scorer>,
    chunks: &[usize],
) -> (Model, KvCache, KvSequence, History) {
    let mut model = Model::new(21);
    let cache = cache(&model, FormatMap::uniform(PageFormat::default()), 300);
    let mut sequence = cache.sequence();
    sequence.observe(Arc::clone(scorer));
    let mut history = model.history();
    for &chunk in chunks {
        model.step(&cache, &mut [(&mut sequence, &mut history, chunk)], 0.02).unwrap();
    }
    (model, cache, sequence, history)
}

/// Scorers that hear of prompts alone, of decoding alone, and that look at keys as well.
#[test]
fn whatever_a_scorer_asks_for_compression_keeps_what_is_protected() {
    let keys = Needs { keys: true, ..Sum::of(Some(32), true).needs };
    let both = Sum { needs: keys, fails: AtomicBool::new(false) };
    for (case, sum) in [Sum::of(Some(32), false), Sum::of(None, true), both].into_iter().enumerate()
    {
        let scorer: Arc<dyn Scorer> = Arc::new(sum);
        for chunks in [&[9][..], &[8, 1], &[1, 7, 1], &[1; 9]] {
            let (mut model, cache, mut sequence, mut history) = observed_by(&scorer, chunks);
            for (scores, table) in all_scores(&sequence).iter().zip(sequence.tables().heads()) {
                assert_eq!(scores.len(), table.slots, "scorer {case}, {chunks:?}");
            }
            let policy = Policy { sinks: 1, window: 1, ..Policy::default() };
            let budget = Budget::Pages(8);
            let compression = Compression { scorer: Arc::clone(&scorer), policy, budget };
            let done = cache.compress(&mut sequence, &compression).unwrap();
            assert_eq!((done.pages_freed, sequence.tables().pages()), (4, 8), "{case} {chunks:?}");
            for table in sequence.tables().heads() {
                let positions = table.positions.to_vec(table.slots);
                assert!(positions.contains(&0) && positions.contains(&8), "{positions:?}");
            }
            model.step(&cache, &mut [(&mut sequence, &mut history, 3)], 0.02).unwrap();
            cache.audit([&sequence]).unwrap();
        }
    }
}

/// What decoding told an accumulating scorer decides: it is not asked to score anew.
#[test]
fn accumulated_scores_choose_the_victims() {
    let scorer: Arc<dyn Scorer> = Arc::new(Sum::of(None, true));
    let (_, cache, mut sequence, _) = observed_by(&scorer, &[12, 1, 1, 1, 1]);
    let scores = all_scores(&sequence);
    let policy = Policy { sinks: 0, window: 0, ..Policy::default() };
    let compression = Compression { scorer, policy, budget: Budget::Pages(12) };
    cache.compress(&mut sequence, &compression).unwrap();
    let (mut kept, mut lost) = (Vec::new(), Vec::new());
    for (head, table) in sequence.tables().heads().enumerate() {
        let positions = table.positions.to_vec(table.slots);
        for (position, &score) in scores[head].iter().enumerate() {
            let stays = positions.contains(&(position as u32));
            if stays { kept.push((head, score)) } else { lost.push((head, score)) }
        }
    }
    assert_eq!((kept.len(), lost.len()), (48, 16));
    for (head, score) in lost {
        assert!(kept.iter().all(|&(h, other)| h != head || other >= score), "head {head}");
    }
}

/// Scores of other slots than the tables have must not decide which pages go.
#[test]
fn scores_that_do_not_fit_free_nothing() {
    let scorer: Arc<dyn Scorer> = Arc::new(Sum::of(Some(32), true));
    let (_, cache, mut sequence, _) = observed_by(&scorer, &[16]);
    sequence.watch.as_mut().unwrap().scores[2].pop();
    let before = (cache.stats(), sequence.tables().pages(), all_scores(&sequence));
    for scorer in [scorer, Arc::from(ScorerKind::KeyDiff.build())] {
        let policy = Policy { sinks: 0, window: 0, ..Policy::default() };
        let compression = Compression { scorer, policy, budget: Budget::Pages(8) };
        let error = cache.compress(&mut sequence, &compression).unwrap_err();
        let (what, got, expected) = ("the head's scores", 15, 16);
        assert_eq!(error, CacheError::Evict(EvictError::Length { what, got, expected }));
    }
    assert_eq!((cache.stats(), sequence.tables().pages(), all_scores(&sequence)), before);
}

/// The second member of a step fails and is attempted again: the first one's attention counts once.
#[test]
fn a_layer_that_is_attempted_twice_counts_once() {
    let run = |fails: bool, tokens: usize| {
        let mut model = Model::new(9);
        let shape = model.shape.clone();
        let cache = cache(&model, mixed(), 300);
        let failing = Arc::new(Sum::of(Some(64), true));
        let mut members = [Arc::new(Sum::of(Some(64), true)), Arc::clone(&failing)].map(|scorer| {
            let mut sequence = cache.sequence();
            sequence.observe(scorer);
            let mut history = model.history();
            model.step(&cache, &mut [(&mut sequence, &mut history, 10)], 0.02).unwrap();
            sequence
        });
        failing.fails.store(fails, Ordering::Relaxed);
        let rows = 2 * tokens;
        let mut step = cache.step(members.iter_mut().map(|s| (s, tokens))).unwrap();
        for layer in 0..shape.layers() {
            let q = model.values(rows * shape.layer(0).q_row());
            let (k, v) = (
                model.values(rows * shape.layer(0).k_row()),
                model.values(rows * shape.layer(0).k_row()),
            );
            let mut out = vec![0.0; q.len()];
            if fails && layer == 0 {
                let error = step.attend(layer, &q, &k, &v, &mut out).unwrap_err();
                assert!(matches!(error, CacheError::Evict(EvictError::Missing { .. })), "{error}");
            }
            step.attend(layer, &q, &k, &v, &mut out).unwrap();
        }
        step.commit().unwrap();
        members.each_ref().map(all_scores)
    };
    for tokens in [1, 5] {
        assert_eq!(run(true, tokens), run(false, tokens), "{tokens}");
    }
}

#[test]
fn chunks_do_not_change_the_scores() {
    let run = |chunks: &[usize]| {
        let mut model = Model::new(3);
        let shape = model.shape.clone();
        let tokens: usize = chunks.iter().sum();
        let cache = cache(&model, FormatMap::uniform(PageFormat::both(SlotFormat::F32)), 400);
        let mut sequence = cache.sequence();
        sequence.observe(Arc::new(KvCompress::paper()));
        // The same rows whatever the chunks.
        let rows: Vec<_> = (0..shape.layers())
            .map(|_| {
                let q = model.values(tokens * shape.layer(0).q_row());
                (
                    q,
                    model.values(tokens * shape.layer(0).k_row()),
                    model.values(tokens * shape.layer(0).k_row()),
                )
            })
            .collect();
        let mut first = 0;
        for &chunk in chunks {
            let mut step = cache.step([(&mut sequence, chunk)]).unwrap();
            for (layer, (q, k, v)) in rows.iter().enumerate() {
                let width = shape.layer(0).q_row();
                let mut out = vec![0.0; chunk * width];
                let q = &q[first * width..(first + chunk) * width];
                let at = first * shape.layer(0).k_row()..(first + chunk) * shape.layer(0).k_row();
                step.attend(layer, q, &k[at.clone()], &v[at], &mut out).unwrap();
            }
            step.commit().unwrap();
            first += chunk;
        }
        all_scores(&sequence)
    };
    let (whole, pieces) = (run(&[90]), run(&[17, 33, 40]));
    for (a, b) in whole.iter().flatten().zip(pieces.iter().flatten()) {
        let (a, b) = (a.to_f32(), b.to_f32());
        assert!((a - b).abs() <= 2e-3 * a.max(b), "{a} {b}");
    }
}

#[test]
fn a_step_that_is_dropped_leaves_no_trace() {
    let mut model = Model::new(5);
    let cache = cache(&model, mixed(), 300);
    let (mut sequence, mut history) = prefilled(&mut model, &cache, &[10], ScorerKind::KvCompress);
    let (pages, free) = (sequence.tables().pages(), cache.stats().free);
    let scores = all_scores(&sequence);
    let shape = model.shape.clone();
    let mut step = cache.step([(&mut sequence, 9)]).unwrap();
    let q = model.values(9 * shape.layer(0).q_row());
    let (k, v) =
        (model.values(9 * shape.layer(0).k_row()), model.values(9 * shape.layer(0).k_row()));
    let mut out = vec![0.0; q.len()];
    step.attend(0, &q, &k, &v, &mut out).unwrap();
    assert_eq!(
        step.attend(0, &q, &k, &v, &mut out),
        Err(CacheError::LayerOrder { got: 0, expected: 1, layers: 2 })
    );
    assert!(matches!(
        step.attend(1, &q[1..], &k, &v, &mut out),
        Err(CacheError::WrongLength { what: "q", .. })
    ));
    let error = step.commit().unwrap_err();
    assert_eq!(error, CacheError::MissingLayers { given: 1, layers: 2 });
    assert_eq!((sequence.tokens(), sequence.tables().pages()), (10, pages));
    assert_eq!(cache.stats().free, free);
    assert_eq!(all_scores(&sequence), scores);
    model.step(&cache, &mut [(&mut sequence, &mut history, 9)], 0.02).unwrap();
    cache.audit([&sequence]).unwrap();
}

/// Scores 1 for every prompt slot, and the same small increment for every slot of a decoding step.
struct Trickle;

impl Scorer for Trickle {
    fn name(&self) -> &'static str {
        "trickle"
    }

    fn needs(&self) -> Needs {
        Needs { attention_window: Some(8), decode_attention: true, ..Needs::default() }
    }

    fn score(&self, _: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        out.fill(1.0);
        Ok(())
    }

    fn increment(&self, _: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        out.fill(1e-4);
        Ok(())
    }
}

/// A tenth of a step of the format, forty times: every slot rises about four of its steps. With one
/// dither for all steps, a tenth of the slots would rise forty and the others none.
#[test]
fn every_decoding_step_rounds_anew() {
    let scorer: Arc<dyn Scorer> = Arc::new(Trickle);
    let chunks: Vec<usize> = std::iter::once(20).chain([1; 40]).collect();
    let (_, _, sequence, _) = observed_by(&scorer, &chunks);
    for (head, scores) in all_scores(&sequence).iter().enumerate() {
        for (slot, score) in scores[..20].iter().enumerate() {
            let steps = score.to_bits() - Score::try_from(1.0).unwrap().to_bits();
            assert!((2..=6).contains(&steps), "head {head}, slot {slot}: {steps}");
        }
    }
}
