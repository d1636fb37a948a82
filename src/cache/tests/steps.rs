//! Steps that borrow nothing, and caches that threads share.

use std::thread;

use super::*;
use crate::evict::{EvictError, HeadContext, Needs, Scorer};

fn rows(shape: &CacheShape, tokens: usize, seed: u64) -> Vec<[Vec<f32>; 3]> {
    let mut model = Model { shape: shape.clone(), random: seed | 1 };
    let of = |layer: &LayerShape| {
        [layer.q_row(), layer.k_row(), layer.v_row()].map(|row| model.values(tokens * row))
    };
    shape.iter().map(of).collect()
}

/// Runs a step's layers; returns their outputs.
fn run<C: CacheRef<Memory = HostMemory>, S: KvMember>(
    step: &mut StepOf<C, S>,
    shape: &CacheShape,
    seed: u64,
) -> Vec<Vec<f32>> {
    let tokens = step.tokens();
    let layers = rows(shape, tokens, seed).into_iter().enumerate();
    let attend = |(layer, [q, k, v]): (usize, [Vec<f32>; 3])| {
        let mut out = vec![f32::NAN; tokens * shape.layer(layer).out_row()];
        step.attend(layer, &q, &k, &v, &mut out).unwrap();
        out
    };
    layers.map(attend).collect()
}

#[test]
fn a_sequence_is_in_one_step_at_a_time() {
    let model = Model::new(1);
    let cache = Arc::new(cache(&model, mixed(), 300));
    let [a, b] = [cache.sequence(), cache.sequence()].map(SharedSequence::from);
    let step = cache.step_shared([(&a, 2), (&b, 1)]).unwrap();
    let busy = |member| Some(CacheError::Busy { member });
    assert_eq!(cache.step_shared([(&a, 1)]).err(), busy(0));
    assert!(a.try_lock().is_none());
    drop(step);
    assert_eq!((a.lock().tokens(), cache.stats().held), (0, 0));
    assert_eq!(cache.step_shared([(&b, 1), (&a, 1), (&b, 1)]).err(), busy(2));
    // What was refused left nothing locked.
    let step = cache.step_shared([(&b, 1), (&a.clone(), 1)]).unwrap();
    assert_eq!(step.sequences().map(|(s, n)| (s.tokens(), n)).collect::<Vec<_>>(), [(1, 1); 2]);
}

/// A step in another thread goes on while the cache is let go and other sequences come, go and step.
#[test]
fn a_step_outlives_what_happens_around_it() {
    let model = Model::new(1);
    let shape = model.shape.clone();
    let alone = cache(&model, mixed(), 300);
    let mut sequence = alone.sequence();
    let mut step = alone.step([(&mut sequence, 5)]).unwrap();
    let want = run(&mut step, &shape, 7);
    step.commit().unwrap();

    let cache = Arc::new(cache(&model, mixed(), 300));
    let handle = SharedSequence::from(cache.sequence());
    let mut step = cache.step_shared([(&handle, 5)]).unwrap();
    let [q, k, v] = rows(&shape, 5, 7).swap_remove(0);
    let mut out = vec![0.0; q.len()];
    step.attend(0, &q, &k, &v, &mut out).unwrap();
    let mut other = cache.sequence();
    let mut others = cache.step([(&mut other, 9)]).unwrap();
    run(&mut others, &shape, 3);
    others.commit().unwrap();
    drop(cache.fork(&other).unwrap());
    cache.compress(&mut other, &compression(ScorerKind::Random, Budget::Ratio(1.5))).unwrap();
    drop(other);
    drop(handle);
    drop(cache);
    let worker = thread::spawn(move || {
        let [q, k, v] = rows(&shape, 5, 7).swap_remove(1);
        let mut last = vec![0.0; q.len()];
        step.attend(1, &q, &k, &v, &mut last).unwrap();
        step.commit().unwrap();
        last
    });
    assert_eq!(vec![out, worker.join().unwrap()], want);
}

/// Threads with sequences of their own share a cache: what one computes does not depend on the others, and
/// no page is lost.
#[test]
fn threads_share_a_cache() {
    let shape = Model::new(1).shape;
    let alone = cache(&Model::new(1), mixed(), 1000);
    let shared = Arc::new(cache(&Model::new(1), mixed(), 1000));
    // Grows, forks, gives back, compresses; returns all outputs.
    let live = |cache: &KvCache, seed: u64| {
        let mut sequence = cache.sequence();
        let mut outputs = Vec::new();
        for i in 0..12 {
            let tokens = 1 + (seed as usize * 5 + i * 7) % 9;
            let fork = cache.fork(&sequence).unwrap();
            let mut step = cache.step([(&mut sequence, tokens)]).unwrap();
            outputs.push(run(&mut step, &shape, seed * 100 + i as u64));
            match i % 4 {
                3 => drop(step),
                _ => step.commit().unwrap(),
            }
            drop(fork);
            if i == 7 {
                let keys = compression(ScorerKind::KeyDiff, Budget::Ratio(1.5));
                cache.compress(&mut sequence, &keys).unwrap();
            }
        }
        outputs
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4u64)
            .map(|seed| {
                let (cache, live) = (Arc::clone(&shared), &live);
                scope.spawn(move || live(&cache, seed))
            })
            .collect();
        for (seed, worker) in workers.into_iter().enumerate() {
            assert_eq!(worker.join().unwrap(), live(&alone, seed as u64), "seed {seed}");
        }
    });
    shared.audit([]).unwrap();
    assert_eq!(shared.stats().free, 1000);
}

/// A scorer that steps the cache that asks it: nothing is locked while scorers are asked.
struct Steps(Arc<KvCache>);

impl Scorer for Steps {
    fn name(&self) -> &'static str {
        "steps"
    }

    fn needs(&self) -> Needs {
        Needs { attention_window: Some(4), ..Needs::default() }
    }

    fn score(&self, _: &HeadContext<'_>, scores: &mut [f32]) -> Result<(), EvictError> {
        scores.fill(1.0);
        let mut sequence = self.0.sequence();
        let mut step = self.0.step([(&mut sequence, 1)]).unwrap();
        run(&mut step, self.0.shape(), 1);
        step.commit().unwrap();
        Ok(())
    }
}

#[test]
fn a_scorer_may_step_its_cache() {
    let mut model = Model::new(1);
    let cache = Arc::new(cache(&model, mixed(), 300));
    let (mut sequence, mut history) = (cache.sequence(), model.history());
    sequence.observe(Arc::new(Steps(Arc::clone(&cache))));
    model.step(&cache, &mut [(&mut sequence, &mut history, 6)], 0.02).unwrap();
}

/// Steps as jobs of a rayon pool, whose threads take up other steps while they wait for attention: of the
/// same cache, and of another.
#[test]
fn steps_in_a_pool_end() {
    let shape = Model::new(1).shape;
    let caches = [(); 2].map(|()| cache(&Model::new(1), mixed(), 2000));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let layer = |step: &mut CacheStep<'_>, layer: usize, tokens: usize| {
        let [q, k, v] = rows(&shape, tokens, 5).swap_remove(layer);
        let mut out = vec![0.0; q.len()];
        step.attend(layer, &q, &k, &v, &mut out)
    };
    pool.scope(|scope| {
        for cache in caches.iter().cycle().take(80) {
            scope.spawn(move |_| {
                let (mut sequence, mut other) = (cache.sequence(), cache.sequence());
                let mut step = cache.step([(&mut sequence, 20), (&mut other, 1)]).unwrap();
                layer(&mut step, 0, 21).unwrap();
                layer(&mut step, 1, 21).unwrap();
                step.commit().unwrap();
                cache.truncate(&mut sequence, 7).unwrap();
            });
        }
    });
    for cache in &caches {
        cache.audit([]).unwrap();
        assert_eq!(cache.stats().free, 2000);
    }
}
