//! Sequences of other caches, forgotten steps, and pages behind the fence.

use std::{
    mem::forget,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{scores::all_scores, *};
use crate::plan::{Admission, AuditError};

/// Ownership comes first, also where there would be nothing to do.
#[test]
fn every_verb_refuses_a_sequence_of_another_cache() {
    let mut model = Model::new(3);
    let theirs = cache(&model, mixed(), 300);
    let ours = cache(&model, mixed(), 300);
    let (mut foreign, _) = prefilled(&mut model, &theirs, &[9], ScorerKind::KvCompress);
    let (mut own, _) = prefilled(&mut model, &ours, &[9], ScorerKind::KvCompress);
    let before = (ours.stats(), theirs.stats());
    let refused = CacheError::Plan(PlanError::ForeignSequence);
    for tokens in [0, 1] {
        assert_eq!(ours.step([(&mut own, 1), (&mut foreign, tokens)]).unwrap_err(), refused);
    }
    for keep in [0, 9, 10] {
        assert_eq!(ours.truncate(&mut foreign, keep), Err(refused.clone()));
    }
    // Nothing to free, something, and a budget that no sequence can have.
    for budget in [Budget::Pages(1000), Budget::Ratio(2.0), Budget::Ratio(f64::NAN)] {
        let compression = compression(ScorerKind::KeyNorm, budget);
        assert_eq!(ours.compress(&mut foreign, &compression), Err(refused.clone()));
    }
    assert_eq!(ours.fork(&foreign).unwrap_err(), refused);
    let listed = AuditError::Listed { index: 1, problem: PlanError::ForeignSequence };
    assert_eq!(ours.audit([&own, &foreign]), Err(CacheError::Audit(listed)));
    assert_eq!((ours.stats(), theirs.stats()), before);
    ours.audit([&own]).unwrap();
    theirs.audit([&foreign]).unwrap();
}

/// Pages of a dropped sequence are there for the next verb, whichever it is, and count as free.
#[test]
fn nobody_waits_for_pages_that_nobody_holds() {
    let mut model = Model::new(3);
    let uniform = || FormatMap::uniform(PageFormat::default());
    // Eight tokens in pages of four are two pages for each of four heads: all there are.
    let cache = cache(&model, uniform(), 8);
    let fill =
        |model: &mut Model, cache: &KvCache| prefilled(model, cache, &[8], ScorerKind::Random).0;
    drop(fill(&mut model, &cache));
    assert_eq!((cache.stats().free, cache.stats().fenced), (8, 0));
    drop(fill(&mut model, &cache));
    assert_eq!(cache.manager().admission(8, 0), Admission::Now);
    // A step, granted and refused.
    drop(fill(&mut model, &cache));
    let mut next = cache.sequence();
    drop(cache.step([(&mut next, 8)]).unwrap());
    let refused = cache.step([(&mut next, 9)]).unwrap_err();
    assert_eq!(refused, PlanError::NeverFits { needed: 12, total: 8 }.into());
    let second = fill(&mut model, &cache);
    let refused = cache.step([(&mut next, 1)]).unwrap_err();
    let full = PoolError::OutOfPages { needed: 4, free: 0, fenced: 0, enough_after: None };
    assert_eq!(refused, PlanError::Pool(full).into());
    drop(second);
    drop(cache.step([(&mut next, 1)]).unwrap());

    // Compression and truncation of what a fork shares copy pages.
    let cache = super::cache(&model, uniform(), 24);
    for verb in [
        (|cache, sequence| {
            let compression = compression(ScorerKind::Random, Budget::Pages(8));
            cache.compress(sequence, &compression).map(drop)
        }) as fn(&KvCache, &mut KvSequence) -> Result<(), CacheError>,
        |cache, sequence| cache.truncate(sequence, 9),
    ] {
        let (mut sequence, _) = prefilled(&mut model, &cache, &[16], ScorerKind::Random);
        let compression = compression(ScorerKind::Random, Budget::Pages(12));
        cache.compress(&mut sequence, &compression).unwrap();
        let fork = cache.fork(&sequence).unwrap();
        let other = prefilled(&mut model, &cache, &[12], ScorerKind::Random).0;
        assert_eq!(cache.stats().free, 0);
        drop(other);
        verb(&cache, &mut sequence).unwrap();
        cache.audit([&sequence, &fork]).unwrap();
    }
}

/// Whoever still reads a freed page reads NaN.
#[cfg(debug_assertions)]
#[test]
fn freed_pages_are_poisoned() {
    let mut model = Model::new(3);
    let cache = cache(&model, mixed(), 300);
    let poisoned = |cache: &KvCache, pages: &[u32]| {
        pages.iter().all(|&page| cache.store().page(page).unwrap().iter().all(|&b| b == 0xff))
    };
    let ids = |sequence: &KvSequence| -> Vec<u32> {
        sequence.tables().heads().flat_map(|table| table.pages.to_vec()).collect()
    };
    let (sequence, _) = prefilled(&mut model, &cache, &[9], ScorerKind::Random);
    let (mut other, _) = prefilled(&mut model, &cache, &[9], ScorerKind::Random);
    let (first, second) = (ids(&sequence), ids(&other));
    drop(sequence);
    // Counters open the fence too.
    assert!(!poisoned(&cache, &first[..1]));
    assert_eq!(cache.stats().fenced, 0);
    assert!(poisoned(&cache, &first));
    assert!(second.iter().all(|page| !poisoned(&cache, &[*page])));
    cache.truncate(&mut other, 0).unwrap();
    assert!(poisoned(&cache, &second));
    let (sequence, _) = prefilled(&mut model, &cache, &[9], ScorerKind::Random);
    let third = ids(&sequence);
    drop(sequence);
    cache.settle().unwrap();
    assert!(poisoned(&cache, &third));
}

/// A step that is forgotten instead of dropped leaves nothing that a later verb trips over.
#[test]
fn a_forgotten_step_leaves_no_trace() {
    type Verb = fn(&mut Model, &KvCache, &mut KvSequence, &mut History);
    let verbs: [Verb; 5] = [
        |model, cache, sequence, history| {
            model.step(cache, &mut [(sequence, history, 3)], 0.02).unwrap();
        },
        |model, cache, sequence, history| {
            let compression = compression(ScorerKind::KvCompress, Budget::Ratio(2.0));
            assert!(cache.compress(sequence, &compression).unwrap().pages_freed > 0);
            model.step(cache, &mut [(sequence, history, 1)], 0.02).unwrap();
        },
        |_, cache, sequence, history| {
            cache.truncate(sequence, 20).unwrap();
            history.k.iter_mut().chain(&mut history.v).for_each(|head| head.truncate(20));
        },
        |_, _, sequence, _| sequence.observe(Arc::from(ScorerKind::KvCompress.build())),
        |_, cache, sequence, _| {
            assert_eq!(cache.fork(sequence).unwrap_err(), PlanError::OpenGuard.into());
            let listed = AuditError::Listed { index: 0, problem: PlanError::OpenGuard };
            assert_eq!(cache.audit([&*sequence]), Err(listed.into()));
            sequence.recover().unwrap();
        },
    ];
    for (case, verb) in verbs.into_iter().enumerate() {
        let mut model = Model::new(5);
        let cache = cache(&model, mixed(), 300);
        let shape = model.shape.clone();
        let (mut sequence, mut history) =
            prefilled(&mut model, &cache, &[21], ScorerKind::KvCompress);
        let fork = cache.fork(&sequence).unwrap();
        let (held, scores) = (held(&cache, &fork), all_scores(&fork));
        let mut step = cache.step([(&mut sequence, 7)]).unwrap();
        let q = model.values(7 * shape.layer(0).q_row());
        let (k, v) =
            (model.values(7 * shape.layer(0).k_row()), model.values(7 * shape.layer(0).k_row()));
        step.attend(0, &q, &k, &v, &mut vec![0.0; q.len()]).unwrap();
        forget(step);
        assert_eq!(sequence.tokens(), 28, "the next verb takes them back");
        verb(&mut model, &cache, &mut sequence, &mut history);
        for (head, table) in sequence.tables().heads().enumerate() {
            assert_eq!(sequence.scores(head).unwrap().len(), table.slots, "verb {case}");
        }
        assert!(sequence.tokens() <= 24);
        model.step(&cache, &mut [(&mut sequence, &mut history, 2)], 0.02).unwrap();
        assert!(super::held(&cache, &fork) == held, "verb {case} changed the fork");
        assert_eq!(all_scores(&fork), scores);
        cache.audit([&sequence, &fork]).unwrap();
        drop((sequence, fork));
        assert_eq!(cache.stats().free, 300);
    }
}

/// A member that panics, and an engine that goes on.
#[test]
fn a_panic_while_members_are_listed_changes_nothing() {
    let mut model = Model::new(5);
    let cache = cache(&model, mixed(), 300);
    let (mut sequence, mut history) = prefilled(&mut model, &cache, &[21], ScorerKind::KvCompress);
    let members = [Some(&mut sequence), None].into_iter().map(|member| (member.unwrap(), 1));
    let listed = AssertUnwindSafe(|| drop(cache.step(members)));
    assert!(catch_unwind(listed).is_err());
    model.step(&cache, &mut [(&mut sequence, &mut history, 2)], 0.02).unwrap();
    cache.audit([&sequence]).unwrap();
}

#[test]
fn a_commit_says_how_many_layers_are_missing() {
    let mut model = Model::new(5);
    let cache = cache(&model, mixed(), 300);
    let mut sequence = cache.sequence();
    let message = |given, error: CacheError| {
        assert_eq!(error, CacheError::MissingLayers { given, layers: 2 });
        error.to_string()
    };
    let error = cache.step([(&mut sequence, 1)]).unwrap().commit().unwrap_err();
    assert_eq!(message(0, error), "0 of 2 layers were given to a step that was to be committed");
    let shape = model.shape.clone();
    let q = model.values(shape.layer(0).q_row());
    let kv = model.values(shape.layer(0).k_row());
    let mut out = vec![0.0; q.len()];
    let mut step = cache.step([(&mut sequence, 1)]).unwrap();
    let early = step.attend(1, &q, &kv, &kv, &mut out).unwrap_err();
    assert_eq!(early.to_string(), "layer 1 given to a step that expects layer 0 of 0..2");
    step.attend(0, &q, &kv, &kv, &mut out).unwrap();
    step.attend(1, &q, &kv, &kv, &mut out).unwrap();
    let late = step.attend(2, &q, &kv, &kv, &mut out).unwrap_err();
    assert_eq!(late.to_string(), "layer 2 given to a step that has all of its 2 layers");
    step.commit().unwrap();
    assert_eq!(sequence.tokens(), 1);
}

/// Nobody holds the pages that a forgotten step took, so the next step has them.
#[test]
fn the_pages_of_a_forgotten_step_are_there_for_the_next() {
    let shape = CacheShape::new(2, 2, 2, 16).unwrap();
    let capacity = Capacity::Pages(8);
    let config = CacheConfig { block_tokens: 4, capacity, ..CacheConfig::new(shape, 4) };
    let cache = KvCache::new(&config).unwrap();
    let mut sequence = cache.sequence();
    let rows = vec![0.5; 4 * 2 * 16];
    let mut out = rows.clone();
    let mut step = cache.step([(&mut sequence, 4)]).unwrap();
    for layer in 0..2 {
        step.attend(layer, &rows, &rows, &rows, &mut out).unwrap();
    }
    step.commit().unwrap();
    forget(cache.step([(&mut sequence, 4)]).unwrap());
    assert_eq!(cache.stats().held, 8);
    drop(cache.step([(&mut sequence, 4)]).unwrap());
    assert_eq!((cache.stats().held, sequence.tokens()), (4, 4));
    cache.audit([&sequence]).unwrap();
}
