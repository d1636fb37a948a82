//! Compression of what forks share, in a pool without a free page.

use super::*;

/// Sinks and window are whole pages, so what leaves between them is too.
#[test]
fn a_full_pool_of_shared_pages_is_relieved_without_a_copy() {
    let mut model = Model::new(17);
    // 32 tokens in pages of four: eight pages for each of four heads.
    let cache = cache(&model, FormatMap::uniform(PageFormat::default()), 32);
    let (mut original, _) = prefilled(&mut model, &cache, &[32], ScorerKind::SinksWindow);
    let mut fork = cache.fork(&original).unwrap();
    assert_eq!(cache.stats().free, 0);
    let before = held(&cache, &fork);
    let policy = Policy { sinks: 4, window: 4, ..Policy::default() };
    let scorer = Arc::from(ScorerKind::SinksWindow.build());
    let compression = Compression { scorer, policy, budget: Budget::Pages(16) };
    for sequence in [&mut fork, &mut original] {
        let done = cache.compress(sequence, &compression).unwrap();
        assert_eq!((done.pages_freed, done.pages_copied, done.slots_moved), (16, 0, 0));
    }
    assert_eq!((cache.stats().free, cache.stats().shared), (16, 16));
    for sequence in [&fork, &original] {
        for (now, before) in held(&cache, sequence).iter().zip(&before) {
            let kept = before.iter().filter(|(p, _)| **p < 4 || **p >= 20);
            assert!(now.iter().eq(kept), "{:?}", now.keys());
        }
    }
    cache.audit([&fork, &original]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever is compressed or truncated in whichever order: it is done or refused with what it takes,
    /// every sequence holds what it should, and every page is accounted for.
    #[test]
    fn a_full_pool_of_forks_loses_nothing(
        seed in any::<u64>(),
        prefix in 5usize..40,
        own in prop::collection::vec(0usize..9, 1..4),
        ops in prop::collection::vec((0usize..8, 0usize..8, 1usize..20), 1..10),
    ) {
        let mut model = Model::new(seed);
        let cache = cache(&model, mixed(), 120);
        let kind = ScorerKind::KvCompress;
        let mut live = vec![prefilled(&mut model, &cache, &[prefix], kind)];
        for tokens in own {
            let fork = cache.fork(&live[0].0).unwrap();
            live.push((fork, live[0].1.clone()));
            let (sequence, history) = live.last_mut().unwrap();
            model.step(&cache, &mut [(sequence, history, tokens)], 0.02).unwrap();
        }
        // Somebody takes all that is left, a token of all heads at a time.
        let mut hogs: Vec<KvSequence> = Vec::new();
        while cache.stats().free >= model.shape.heads() {
            let (mut hog, mut history) = (cache.sequence(), model.history());
            model.step(&cache, &mut [(&mut hog, &mut history, 1)], 0.02).unwrap();
            hogs.push(hog);
        }
        for (which, op, amount) in ops {
            let which = which % live.len();
            let before: Vec<_> = live.iter().map(|(s, _)| held(&cache, s)).collect();
            let free = cache.stats().free;
            let sequence = &mut live[which].0;
            let done = if op < 5 {
                let kind = ScorerKind::ALL[op % ScorerKind::ALL.len()];
                let budget = Budget::Ratio(1.0 + amount as f64 / 8.0);
                cache.compress(sequence, &compression(kind, budget)).map(drop)
            } else {
                cache.truncate(sequence, sequence.tokens().saturating_sub(amount))
            };
            let tokens = live[which].0.tokens();
            match done {
                Ok(()) => {}
                Err(CacheError::Evict(_)) => prop_assert_eq!(cache.stats().free, free),
                Err(CacheError::Plan(PlanError::Pool(PoolError::OutOfPages { needed, .. }))) => {
                    prop_assert!(needed > free);
                    prop_assert_eq!(cache.stats().free, free);
                    prop_assert!(held(&cache, &live[which].0) == before[which]);
                }
                Err(error) => panic!("{error}"),
            }
            for (index, ((sequence, _), before)) in live.iter().zip(&before).enumerate() {
                let now = held(&cache, sequence);
                if index != which {
                    prop_assert!(now == *before, "{index} changed with {which}");
                }
                for (now, before) in now.iter().zip(before) {
                    prop_assert!(now.iter().all(|(p, row)| before.get(p) == Some(row)));
                    prop_assert!(index != which || now.keys().all(|&p| (p as usize) < tokens));
                }
            }
            cache.audit(live.iter().map(|(s, _)| s).chain(&hogs)).unwrap();
        }
        drop((live, hogs));
        prop_assert_eq!(cache.stats().free, 120);
    }
}
