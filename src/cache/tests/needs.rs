//! What a step would take, asked beforehand.

use super::*;
use crate::plan::Admission;

/// Members with forks among them, sequences dropped in between: the answer is what the step then does.
#[test]
fn needs_are_what_the_step_takes() {
    let mut model = Model::new(3);
    let cache = cache(&model, mixed(), 14);
    let mut random = model.random;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (random >> 33) as usize % below
    };
    let mut live: Vec<(KvSequence, History)> = Vec::new();
    let (mut granted, mut refused, mut copied) = (0, 0, 0);
    for _ in 0..300 {
        match next(6) {
            0 => live.push((cache.sequence(), model.history())),
            1 if !live.is_empty() => {
                let (sequence, history) = &live[next(live.len())];
                live.push((cache.fork(sequence).unwrap(), history.clone()));
            }
            // Its pages are behind the fence until someone asks.
            2 if live.len() > 3 => drop(live.swap_remove(next(live.len()))),
            _ => {}
        }
        let wishes: Vec<usize> = live.iter().map(|_| next(4)).collect();
        let members = live.iter().zip(&wishes).map(|((sequence, _), &tokens)| (sequence, tokens));
        let needs = cache.needs(members).unwrap();
        let free = cache.stats().free;
        let mut members: Vec<_> = live
            .iter_mut()
            .zip(&wishes)
            .map(|((sequence, history), &tokens)| (sequence, history, tokens))
            .collect();
        match model.step(&cache, &mut members, 2e-2) {
            Ok(()) => {
                assert_eq!(needs.admission, Admission::Now);
                granted += 1;
                copied += needs.copies;
            }
            Err(CacheError::Plan(PlanError::Pool(PoolError::OutOfPages { needed, .. }))) => {
                assert_eq!(needed, needs.pages());
                assert_eq!(
                    needs.admission,
                    Admission::Later { missing: needed - free, enough_after: None }
                );
                refused += 1;
            }
            Err(CacheError::Plan(PlanError::NeverFits { needed, total })) => {
                assert_eq!(needs.admission, Admission::Never { needed, total });
                live.clear();
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(granted > 50 && refused > 20 && copied > 20, "{granted}, {refused}, {copied}");
    cache.audit(live.iter().map(|(sequence, _)| sequence)).unwrap();
}

#[test]
fn sequences_of_another_cache_need_nothing_here() {
    let model = Model::new(3);
    let cache = cache(&model, mixed(), 30);
    let foreign = super::cache(&model, mixed(), 30).sequence();
    let refused = cache.needs([(&foreign, 1)]);
    assert_eq!(refused, Err(PlanError::ForeignSequence.into()));
}
