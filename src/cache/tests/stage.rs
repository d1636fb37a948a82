//! Sequences out of a cache and in again.

use super::*;

#[test]
fn what_is_staged_comes_back_bit_for_bit() {
    for different in [false, true] {
        let mut model = if different { Model::of_different_layers(5) } else { Model::new(5) };
        let formats = match different {
            false => mixed(),
            true => mixed().with(3, PageFormat::both(SlotFormat::I8)),
        };
        let (here, there) =
            (cache(&model, formats.clone(), 300), cache(&model, formats.clone(), 200));
        let (mut sequence, mut history) =
            prefilled(&mut model, &here, &[20, 1, 9, 1], ScorerKind::KvCompress);
        here.compress(&mut sequence, &compression(ScorerKind::KvCompress, Budget::Ratio(1.5)))
            .unwrap();
        let fork = here.fork(&sequence).unwrap();
        let (contents, scores) = (held(&here, &sequence), scores::all_scores(&sequence));
        let pages = sequence.tables().pages();
        let staged = here.stage_out(sequence).unwrap();
        assert_eq!((staged.tokens(), staged.pages()), (31, pages));
        assert_eq!(held(&here, &fork), contents, "the fork keeps its pages");
        drop(fork);
        assert_eq!(here.stats().free, 300);

        let mut back = there.stage_in(&staged).unwrap();
        assert_eq!(held(&there, &back), contents);
        assert_eq!(scores::all_scores(&back), scores);
        there.audit([&back]).unwrap();
        // It goes on as if nothing had been, here and there.
        let mut again = here.stage_in(&staged).unwrap();
        let (mut a, mut b) = (model.clone(), model.clone());
        let mut other = history.clone();
        for chunk in [1, 6, 1] {
            a.step(&there, &mut [(&mut back, &mut history, chunk)], 0.02).unwrap();
            b.step(&here, &mut [(&mut again, &mut other, chunk)], 0.02).unwrap();
        }
        assert_eq!(held(&there, &back), held(&here, &again));
    }
}

#[test]
fn what_does_not_fit_is_refused_and_stays_staged() {
    let mut model = Model::new(5);
    let here = cache(&model, mixed(), 300);
    let (sequence, _) = prefilled(&mut model, &here, &[20], ScorerKind::Random);
    let pages = sequence.tables().pages();
    let staged = here.stage_out(sequence).unwrap();
    let small = cache(&model, mixed(), pages - 1);
    let refused = small.stage_in(&staged).unwrap_err();
    let out =
        PoolError::OutOfPages { needed: pages, free: pages - 1, fenced: 0, enough_after: None };
    assert_eq!(refused, CacheError::Plan(out.into()));
    let others = [
        CacheConfig { block_tokens: 8, ..CacheConfig::new(model.shape.clone(), 100) },
        CacheConfig {
            block_tokens: 4,
            ..CacheConfig::new(CacheShape::new(2, 2, 2, 64).unwrap(), 100)
        },
        CacheConfig {
            block_tokens: 4,
            ..CacheConfig::new(CacheShape::new(1, 2, 6, 32).unwrap(), 100)
        },
    ];
    for config in others {
        let other = KvCache::new(&config).unwrap();
        let refused = other.stage_in(&staged).unwrap_err();
        assert_eq!(refused, CacheError::OtherPages { page_bytes: other.page_bytes() });
        assert_eq!(other.stats().held, 0);
    }
    let foreign = cache(&model, mixed(), 300);
    let sequence = foreign.sequence();
    let refused = here.stage_out(sequence).unwrap_err();
    assert_eq!(refused, CacheError::Plan(PlanError::ForeignSequence));
    assert_eq!(held(&here, &here.stage_in(&staged).unwrap()).len(), 4);
}

/// What is kept of a layer depends on its window, and pages that are gone are gone.
#[test]
fn layers_of_other_windows_are_refused() {
    let config = |windows: [Option<usize>; 2], rollback| {
        let layer = |window: Option<usize>| {
            let layer = LayerShape::new(2, 6, 64).unwrap();
            match window {
                Some(tokens) => layer.windowed(Window::of(tokens)).unwrap(),
                None => layer,
            }
        };
        let shape = CacheShape::from_layers(windows.map(layer)).unwrap();
        CacheConfig { block_tokens: 4, rollback, ..CacheConfig::new(shape, 100) }
    };
    let all = [
        config([None, None], 0),
        config([None, Some(8)], 0),
        config([Some(8), None], 0),
        config([Some(8), None], 3),
        config([Some(9), None], 0),
    ];
    for (i, from) in all.iter().enumerate() {
        let staged = {
            let cache = KvCache::new(from).unwrap();
            cache.stage_out(cache.sequence()).unwrap()
        };
        for (j, to) in all.iter().enumerate() {
            let cache = KvCache::new(to).unwrap();
            assert_eq!(cache.stage_in(&staged).is_ok(), i == j, "{i} into {j}");
        }
    }
}
