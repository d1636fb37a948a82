//! Cases that have names.

use super::*;
use crate::{
    evict::{Allocation, Cost, scorer::KvCompress},
    store::StoreError,
};

#[test]
fn a_batch_frees_exactly_what_each_plan_said() {
    for scorer in ScorerKind::ALL {
        for cost in [Cost::MaxVictim, Cost::SumVictims] {
            for allocation in [Allocation::Global, Allocation::PerHead] {
                let mut model = Model::new(7);
                let cache = cache(&model, mixed(), 2000);
                let mut batch: Vec<_> = (0..8)
                    .map(|i| prefilled(&mut model, &cache, &[30 + 5 * i], scorer).0)
                    .collect();
                let policy = Policy { sinks: 2, window: 3, cost, allocation, ..Policy::default() };
                let compression = Compression {
                    scorer: Arc::from(scorer.build()),
                    policy,
                    budget: Budget::Ratio(3.0),
                };
                for sequence in &mut batch {
                    let held = cache.stats().held;
                    let (_, extents) = sequence.extents();
                    let asked =
                        compression.budget.pages_to_free(&extents, sequence.tokens(), &policy);
                    let done = cache.compress(sequence, &compression).unwrap();
                    assert_eq!(Ok(done.pages_freed), asked, "{scorer:?}");
                    assert_eq!(held - cache.stats().held, done.pages_freed);
                    for table in sequence.tables().heads() {
                        let positions = table.positions.to_vec(table.slots);
                        let newest = sequence.tokens() as u32 - 3..sequence.tokens() as u32;
                        assert!((0..2).chain(newest).all(|p| positions.contains(&p)));
                    }
                }
                cache.audit(&batch).unwrap();
            }
        }
    }
}

/// The least memory there is: one page for each head.
#[test]
fn one_page_for_each_head_is_enough() {
    let mut model = Model::new(3);
    let heads = model.shape.heads();
    let config = CacheConfig { block_tokens: 4, ..CacheConfig::new(model.shape.clone(), 0) };
    let of = |capacity| KvCache::new(&CacheConfig { capacity, ..config.clone() });
    let page_bytes = config.page_bytes().unwrap();
    let bytes = heads * page_bytes;
    for least in [Capacity::Pages(heads), Capacity::Bytes(bytes), Capacity::Tokens(1)] {
        let cache = of(least).unwrap();
        assert_eq!(cache.stats().total, heads);
        let (sequence, _) = prefilled(&mut model, &cache, &[4], ScorerKind::KeyDiff);
        assert_eq!((sequence.tables().pages(), cache.stats().free), (heads, 0));
    }
    let pages = heads - 1;
    for (less, bytes) in [
        (Capacity::Pages(pages), pages * page_bytes),
        (Capacity::Bytes(bytes - 1), pages * page_bytes),
    ] {
        let refused = CacheError::TooLittleMemory { bytes, pages, heads };
        assert_eq!(of(less).unwrap_err(), refused);
    }
}

/// At every length, whatever the slots of a page: a budget for all that is there takes nothing away.
#[test]
fn a_budget_for_all_that_is_there_evicts_nothing() {
    let mut model = Model::new(13);
    let cache = cache(&model, mixed(), 600);
    let (mut sequence, mut history) = prefilled(&mut model, &cache, &[], ScorerKind::KvCompress);
    for tokens in 1..=200 {
        model.step(&cache, &mut [(&mut sequence, &mut history, 1)], 0.02).unwrap();
        let held = sequence.tables().pages();
        for budget in [
            Budget::TokensPerHead(tokens),
            Budget::Pages(held),
            Budget::Ratio(1.0),
            Budget::RatioOutsideProtected(1.0),
        ] {
            for (sinks, window, floor_slots) in [(0, 0, 0), (4, 32, 0), (2, 3, 50)] {
                let policy = Policy { sinks, window, floor_slots, ..Policy::default() };
                let compression =
                    Compression { policy, ..compression(ScorerKind::KvCompress, budget) };
                let done = cache.compress(&mut sequence, &compression).unwrap();
                assert_eq!((done.pages_freed, done.slots_evicted), (0, 0), "{tokens}, {budget:?}");
            }
        }
        assert_eq!(sequence.tables().pages(), held);
    }
}

#[test]
fn a_sequence_of_mixed_formats_takes_its_pages_from_one_pool() {
    let mut model = Model::new(11);
    let cache = cache(&model, mixed(), 300);
    let (sequence, _) = prefilled(&mut model, &cache, &[20, 1, 1, 13], ScorerKind::KvCompress);
    // f32 pages hold half the slots of f16 pages of the same bytes, i8 nearly twice.
    let pages: Vec<usize> = sequence.tables().heads().map(|t| t.pages.len()).collect();
    assert!(pages[0] > pages[1] && pages[1] > pages[2], "{pages:?}");
    assert_eq!(cache.stats().held, pages.iter().sum::<usize>());
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut model = Model::new(5);
    let cache = cache(&model, mixed(), 300);
    let (mut sequence, _) = prefilled(&mut model, &cache, &[40], ScorerKind::KvCompress);
    let before = cache.stats();
    for (budget, scorer) in [
        (Budget::Ratio(0.0), ScorerKind::KvCompress),
        (Budget::Ratio(f64::NAN), ScorerKind::KvCompress),
        (Budget::Ratio(1e9), ScorerKind::KeyDiff),
        (Budget::Pages(0), ScorerKind::Random),
        (Budget::TokensPerHead(4), ScorerKind::Random),
    ] {
        let refused = cache.compress(&mut sequence, &compression(scorer, budget));
        assert!(matches!(refused, Err(CacheError::Evict(_))), "{budget:?}: {refused:?}");
    }
    assert!(matches!(
        cache.compress(&mut sequence, &compression(ScorerKind::Random, Budget::Pages(1))),
        Err(CacheError::Evict(EvictError::Infeasible { .. }))
    ));
    let mut blind = cache.sequence();
    let unseen = compression(ScorerKind::KvCompress, Budget::Ratio(2.0));
    assert!(cache.compress(&mut blind, &unseen).is_ok(), "nothing to free, nothing to know");
    sequence.observe(Arc::from(ScorerKind::Random.build()));
    assert_eq!(
        cache.compress(&mut sequence, &unseen),
        Err(CacheError::NotObserved { scorer: "kv-compress" })
    );
    assert_eq!(cache.stats(), before);
    sequence.observe(Arc::new(KvCompress::paper()));
    assert_eq!(
        cache.compress(&mut sequence, &unseen),
        Err(CacheError::NotObserved { scorer: "kv-compress" }),
        "the same scorer with other settings"
    );
    let config = |tokens, capacity| CacheConfig {
        block_tokens: tokens,
        capacity,
        ..CacheConfig::new(model.shape.clone(), 1)
    };
    assert!(matches!(
        KvCache::new(&config(16, Capacity::Bytes(1000))),
        Err(CacheError::TooLittleMemory { .. })
    ));
    assert!(matches!(KvCache::new(&config(0, Capacity::Pages(100))), Err(CacheError::Layout(_))));
    // Sums and products beyond counting, and more than a store holds: no memory was touched.
    for pages in [Capacity::Tokens(usize::MAX), Capacity::Pages(usize::MAX)] {
        assert!(matches!(
            KvCache::new(&config(16, pages)),
            Err(CacheError::Store(StoreError::BadSize { .. }))
        ));
    }
    assert!(matches!(
        cache.sequence_with(
            &FormatMap::uniform(PageFormat::default()).with(4, PageFormat::default())
        ),
        Err(CacheError::NoSuchHead { head: 4, .. })
    ));
}
