//! Where a scheduler stops: numbers outside their range, the end of the context, and pages that others
//! hold.

use std::sync::Arc;

use headwise::{
    cache::{CacheError, Capacity, KvSequence},
    engine::{
        EngineError, Strategy,
        eval::{PerplexityOptions, perplexity},
        serve::{CompressionPlan, Finish, Request, Scheduler, ServeOptions},
    },
    evict::{Budget, EvictError},
    plan::PlanError,
};
use proptest::{prelude::*, strategy::Strategy as PropStrategy};

use super::serving::{cache, compression, failure, request, run, tiny};

/// The context of the tiny model.
const CONTEXT: u32 = 256;

#[test]
fn the_last_token_needs_no_position() {
    let (_folder, model) = tiny();
    let plain = ServeOptions { chunk: 64, ..ServeOptions::default() };
    let evicting = ServeOptions {
        compression: Some(compression(Budget::Ratio(4.0))),
        chunk: 64,
        ..ServeOptions::default()
    };
    for options in [plain, evicting] {
        for (prompt, answer) in [(CONTEXT, 1), (CONTEXT - 1, 2), (200, 57), (1, CONTEXT)] {
            let fits = request(0, prompt, answer as usize);
            assert_eq!(fits.positions(), CONTEXT as usize);
            let (done, _) = run(&model, Capacity::Tokens(256), options.clone(), &[fits]);
            assert!(matches!(done[0].finish, Finish::Length), "{prompt}: {:?}", done[0].finish);
            assert_eq!(done[0].tokens.len(), answer as usize);
            let mut scheduler =
                Scheduler::new(&model, cache(&model, Capacity::Tokens(512)), options.clone())
                    .unwrap();
            let longer = scheduler.submit(request(0, prompt, answer as usize + 1)).unwrap_err();
            assert!(
                matches!(longer, EngineError::ContextExceeded { needed: 257, context: 256 }),
                "{longer}"
            );
        }
    }
}

#[test]
fn the_last_token_needs_no_page() {
    let (_folder, model) = tiny();
    let options = ServeOptions { chunk: 32, ..ServeOptions::default() };
    // Four pages of each head: 64 positions.
    let capacity = Capacity::Tokens(64);
    for (prompt, answer) in [(64, 1), (63, 2), (33, 32), (1, 64)] {
        let (done, _) = run(&model, capacity, options.clone(), &[request(0, prompt, answer)]);
        assert!(matches!(done[0].finish, Finish::Length), "{prompt}: {:?}", done[0].finish);
        assert_eq!(done[0].tokens.len(), answer);
    }
    let mut scheduler = Scheduler::new(&model, cache(&model, capacity), options).unwrap();
    let error = scheduler.submit(request(0, 64, 2)).unwrap_err();
    assert!(
        matches!(
            error,
            EngineError::Cache(CacheError::Plan(PlanError::NeverFits { needed: 20, total: 16 }))
        ),
        "{error}"
    );
}

#[test]
fn a_request_that_waits_for_pages_of_others_says_so_and_goes_on_when_they_are_there() {
    let (_folder, model) = tiny();
    let mut scheduler =
        Scheduler::new(&model, cache(&model, Capacity::Tokens(256)), ServeOptions::default())
            .unwrap();
    let first = scheduler.submit(request(0, 100, 10)).unwrap();
    scheduler.step().unwrap();
    // Someone keeps the 28 pages of its prompt.
    let outside = scheduler.cache().fork(scheduler.sequences().next().unwrap()).unwrap();
    scheduler.cancel(first).unwrap();
    let waiting = scheduler.submit(request(1, 200, 5)).unwrap();
    let small = scheduler.submit(request(2, 20, 5)).unwrap();
    for _ in 0..3 {
        let error = scheduler.step().unwrap_err();
        let EngineError::Stalled { request, needed, free, total, others } = error else {
            panic!("{error}")
        };
        assert_eq!((request, needed, free, total, others), (waiting.0, 52, 36, 64, 28));
        assert!(error.to_string().contains("needs 52 pages, 36 of 64 are free, and 28 are held"));
    }
    assert!(matches!(scheduler.run(|_| ()), Err(EngineError::Stalled { .. })));
    // Its pages are behind the fence; the next step opens it.
    drop(outside);
    let mut done = Vec::new();
    scheduler.run(|progress| done.extend(progress.completed.iter().cloned())).unwrap();
    let mut ids: Vec<_> = done.iter().map(|completion| completion.id).collect();
    ids.sort();
    assert_eq!(ids, [waiting, small]);
    assert!(done.iter().all(|completion| matches!(completion.finish, Finish::Length)));
    let stats = scheduler.cache().stats();
    assert_eq!(stats.free, stats.total);
}

#[test]
fn a_request_that_grows_into_pages_of_others_waits_for_them() {
    let (_folder, model) = tiny();
    let grows = request(1, 60, 150);
    let (alone, _) =
        run(&model, Capacity::Tokens(256), ServeOptions::default(), std::slice::from_ref(&grows));
    let mut scheduler =
        Scheduler::new(&model, cache(&model, Capacity::Tokens(256)), ServeOptions::default())
            .unwrap();
    let first = scheduler.submit(request(0, 100, 10)).unwrap();
    scheduler.step().unwrap();
    let outside = scheduler.cache().fork(scheduler.sequences().next().unwrap()).unwrap();
    scheduler.cancel(first).unwrap();
    scheduler.submit(grows).unwrap();
    let mut done = Vec::new();
    let mut tokens = Vec::new();
    let mut note = |progress: &headwise::engine::serve::Progress| {
        tokens.extend(progress.tokens.iter().map(|&(_, token)| token));
        done.extend(progress.completed.iter().cloned());
    };
    // 36 pages are 144 positions.
    let error = scheduler.run(&mut note).unwrap_err();
    assert!(
        matches!(error, EngineError::Stalled { needed: 40, free: 36, others: 28, .. }),
        "{error}"
    );
    scheduler.cache().audit([&outside]).unwrap();
    drop(outside);
    scheduler.run(&mut note).unwrap();
    assert_eq!(done.len(), 1);
    assert!(matches!(done[0].finish, Finish::Length), "{:?}", done[0].finish);
    assert_eq!(done[0].preemptions, 1);
    assert_eq!(done[0].tokens, alone[0].tokens);
    assert_eq!(tokens, alone[0].tokens);
}

/// A fork of all that runs needs no page of its own, but keeps those that it shares from being appended
/// to in place.
#[test]
fn a_request_whose_pages_others_share_waits_for_them() {
    let (_folder, model) = tiny();
    let whole = request(0, 250, 5);
    let (alone, _) =
        run(&model, Capacity::Tokens(256), ServeOptions::default(), std::slice::from_ref(&whole));
    let mut scheduler =
        Scheduler::new(&model, cache(&model, Capacity::Tokens(256)), ServeOptions::default())
            .unwrap();
    scheduler.submit(whole).unwrap();
    scheduler.step().unwrap();
    let outside = scheduler.cache().fork(scheduler.sequences().next().unwrap()).unwrap();
    for _ in 0..2 {
        let error = scheduler.step().unwrap_err();
        assert!(
            matches!(error, EngineError::Stalled { needed: 64, free: 0, others: 64, .. }),
            "{error}"
        );
        scheduler.cache().audit([&outside]).unwrap();
    }
    drop(outside);
    let mut done = Vec::new();
    scheduler.run(|progress| done.extend(progress.completed.iter().cloned())).unwrap();
    assert!(matches!(done[0].finish, Finish::Length), "{:?}", done[0].finish);
    assert_eq!((done[0].preemptions, &done[0].tokens), (1, &alone[0].tokens));
}

/// Evicting from shared pages takes copies; where there is no room for them, it is put off.
#[test]
fn an_eviction_that_finds_no_room_for_copies_ends_no_request() {
    let (_folder, model) = tiny();
    for between_chunks in [false, true] {
        let plan = CompressionPlan { between_chunks, ..compression(Budget::Ratio(1.5)) };
        let options =
            ServeOptions { chunk: 64, compression: Some(plan), ..ServeOptions::default() };
        for (prompt, answer) in [(256, 1), (250, 7), (190, 40)] {
            for forked_after in 1..4 {
                let cache = cache(&model, Capacity::Tokens(256));
                let mut scheduler = Scheduler::new(&model, cache, options.clone()).unwrap();
                scheduler.submit(request(0, prompt, answer)).unwrap();
                let mut outside = Vec::new();
                let mut done = Vec::new();
                for step in 1.. {
                    match scheduler.step() {
                        Ok(progress) => done.extend(progress.completed),
                        Err(EngineError::Stalled { .. }) => outside.clear(),
                        Err(error) => panic!("{error}"),
                    }
                    if scheduler.is_idle() {
                        break;
                    }
                    if step <= forked_after {
                        let first = scheduler.sequences().next();
                        outside.extend(first.map(|first| scheduler.cache().fork(first).unwrap()));
                    }
                    scheduler.cache().audit(scheduler.sequences().chain(&outside)).unwrap();
                }
                assert!(matches!(done[0].finish, Finish::Length), "{:?}", done[0].finish);
            }
        }
    }
}

#[test]
fn numbers_outside_their_range_are_refused_where_they_enter() {
    let (_folder, model) = tiny();
    let new =
        |options| Scheduler::new(&model, cache(&model, Capacity::Tokens(256)), options).map(drop);
    let base = ServeOptions::default;
    let mut wrong = vec![
        ("chunk", ServeOptions { chunk: 0, ..base() }),
        ("max_running", ServeOptions { max_running: 0, ..base() }),
    ];
    for watermark in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -1e-9, 1.0 + 1e-9, 1e300] {
        wrong.push(("watermark", ServeOptions { watermark, ..base() }));
    }
    let plan = CompressionPlan { every: Some(0), ..compression(Budget::Ratio(2.0)) };
    wrong.push(("every", ServeOptions { compression: Some(plan), ..base() }));
    for (name, options) in wrong {
        let error = new(options).unwrap_err();
        assert!(matches!(error, EngineError::OutOfRange { what, .. } if what == name), "{error}");
        assert!(error.to_string().starts_with(&format!("{name} is ")), "{error}");
    }
    for ratio in [f64::NAN, f64::INFINITY, 0.0, -1.0, 0.999] {
        for budget in [Budget::Ratio(ratio), Budget::RatioOutsideProtected(ratio)] {
            let options = ServeOptions { compression: Some(compression(budget)), ..base() };
            let error = new(options).unwrap_err();
            assert!(
                matches!(error, EngineError::Cache(CacheError::Evict(EvictError::Ratio(_)))),
                "{error}"
            );
        }
    }
    for budget in [Budget::TokensPerHead(0), Budget::Pages(0)] {
        let options = ServeOptions { compression: Some(compression(budget)), ..base() };
        let error = new(options).unwrap_err();
        assert!(
            matches!(error, EngineError::Cache(CacheError::Evict(EvictError::EmptyBudget))),
            "{error}"
        );
    }
}

#[test]
fn numbers_at_the_ends_of_their_range_work() {
    let (_folder, model) = tiny();
    let requests: Vec<Request> = (0..3).map(|i| request(i, 60, 20)).collect();
    for watermark in [0.0, f64::MIN_POSITIVE, 1.0] {
        for budget in
            [None, Some(Budget::Pages(usize::MAX)), Some(Budget::TokensPerHead(usize::MAX))]
        {
            let most = CompressionPlan {
                every: Some(usize::MAX),
                ..compression(budget.unwrap_or(Budget::Ratio(1.0)))
            };
            let options = ServeOptions {
                chunk: usize::MAX,
                max_running: usize::MAX,
                watermark,
                compression: budget.map(|_| most),
            };
            let (done, stats) = run(&model, Capacity::Tokens(256), options, &requests);
            assert!(done.iter().all(|done| matches!(done.finish, Finish::Length)));
            assert_eq!(stats.pages_evicted, 0);
        }
    }
}

#[test]
fn requests_with_impossible_numbers_are_refused_and_leave_nothing() {
    let (_folder, model) = tiny();
    let mut scheduler =
        Scheduler::new(&model, cache(&model, Capacity::Tokens(256)), ServeOptions::default())
            .unwrap();
    let nucleus = |temperature, top_p| Strategy::Nucleus { temperature, top_p };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0] {
        for strategy in [nucleus(bad, 0.5), nucleus(1.0, bad), nucleus(1.0, 1.0 + f32::EPSILON)] {
            let error = scheduler.submit(Request { strategy, ..request(0, 5, 5) }).unwrap_err();
            assert!(matches!(error, EngineError::Sampling(_)), "{error}");
        }
    }
    for answer in [usize::MAX, usize::MAX - 3, 1 << 40] {
        let error = scheduler.submit(request(0, 5, answer)).unwrap_err();
        assert!(matches!(error, EngineError::ContextExceeded { context: 256, .. }), "{error}");
    }
    assert!(scheduler.is_idle());
    // The largest temperature and the smallest nucleus still draw.
    for strategy in [nucleus(f32::MAX, 1.0), nucleus(f32::MIN_POSITIVE, f32::MIN_POSITIVE)] {
        scheduler.submit(Request { strategy, ..request(0, 5, 5) }).unwrap();
        scheduler
            .run(|progress| {
                let failed = |done: &&headwise::engine::serve::Completion| {
                    matches!(done.finish, Finish::Failed(_))
                };
                let failed = progress.completed.iter().find(failed);
                assert!(failed.is_none(), "{}", failure(failed.unwrap()));
            })
            .unwrap();
    }
}

#[test]
fn evaluations_refuse_counts_of_nothing() {
    let (_folder, model) = tiny();
    let cache = headwise::cache::CacheConfig::new(model.shape().clone(), 0);
    let tokens: Vec<u32> = (0..200).collect();
    for (context, windows, chunk, name) in
        [(0, 1, 8, "context"), (1, 1, 8, "context"), (50, 0, 8, "windows"), (50, 1, 0, "chunk")]
    {
        let options =
            PerplexityOptions { context, begin: None, windows, chunk, cache: cache.clone() };
        let error = perplexity(&model, &tokens, &options, |_| ()).unwrap_err();
        assert!(matches!(error, EngineError::OutOfRange { what, .. } if what == name), "{error}");
    }
    for (context, chunk, name) in [(0, 8, "context"), (50, 0, "chunk")] {
        let scorer = Arc::from(headwise::evict::ScorerKind::KvCompress.build());
        let window = headwise::engine::eval::Continuation::new(
            &model,
            &cache,
            &tokens,
            context,
            chunk,
            scorer,
            |_| (),
        );
        let Err(error) = window else { panic!("{name}") };
        assert!(matches!(error, EngineError::OutOfRange { what, .. } if what == name), "{error}");
    }
}

/// What may happen around a scheduler.
#[derive(Clone, Debug)]
enum Event {
    Submit(u32, usize),
    Step,
    /// Someone keeps what the first running sequence holds.
    Fork,
    DropFork,
    CancelFirst,
}

fn event() -> impl PropStrategy<Value = Event> {
    prop_oneof![
        2 => (1..120u32, 1..60usize).prop_map(|(prompt, answer)| Event::Submit(prompt, answer)),
        6 => Just(Event::Step),
        1 => Just(Event::Fork),
        1 => Just(Event::DropFork),
        1 => Just(Event::CancelFirst),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A step that returns did something, or nothing waits; and every page is accounted for.
    #[test]
    fn a_step_does_something_or_says_why_not(
        events in prop::collection::vec(event(), 1..60),
        evict in any::<bool>(),
    ) {
        let (_folder, model) = tiny();
        let compression = evict.then(|| compression(Budget::Ratio(2.0)));
        let options = ServeOptions { compression, chunk: 32, ..ServeOptions::default() };
        let mut scheduler =
            Scheduler::new(&model, cache(&model, Capacity::Tokens(128)), options).unwrap();
        let mut outside = Vec::new();
        let (mut submitted, mut fitting) = (Vec::new(), Vec::new());
        let mut completed = Vec::new();
        let mut step = |scheduler: &mut Scheduler<'_>, outside: &[KvSequence]| {
            let (before, idle) = (scheduler.stats(), scheduler.is_idle());
            let stalled = match scheduler.step() {
                Ok(progress) => {
                    let ran = scheduler.stats().steps > before.steps;
                    assert!(ran || idle || !progress.completed.is_empty());
                    completed.extend(progress.completed);
                    false
                }
                Err(EngineError::Stalled { needed, free, others, .. }) => {
                    assert!(needed > free && others > 0, "{needed} {free} {others}");
                    true
                }
                Err(error) => panic!("{error}"),
            };
            scheduler.cache().audit(scheduler.sequences().chain(outside)).unwrap();
            stalled
        };
        let mut cancelled = 0;
        for event in events {
            match event {
                Event::Submit(prompt, answer) => {
                    let request = request(prompt, prompt, answer);
                    let fits = request.positions() <= 128;
                    let id = scheduler.submit(request).ok();
                    submitted.extend(id);
                    fitting.extend(id.filter(|_| fits));
                }
                Event::Step => {
                    step(&mut scheduler, &outside);
                }
                Event::Fork => {
                    let first = scheduler.sequences().next();
                    outside.extend(first.map(|first| scheduler.cache().fork(first).unwrap()));
                }
                Event::DropFork => drop(outside.pop()),
                Event::CancelFirst => {
                    let first = submitted.iter().find_map(|&id| scheduler.cancel(id));
                    cancelled += usize::from(first.is_some());
                }
            }
        }
        // Given back their pages, all requests come to their end.
        outside.clear();
        while !scheduler.is_idle() {
            prop_assert!(!step(&mut scheduler, &outside));
        }
        prop_assert_eq!(completed.len() + cancelled, submitted.len());
        // Others may have kept them waiting, but what fits into the pool is served.
        for done in completed.iter().filter(|done| fitting.contains(&done.id)) {
            prop_assert!(matches!(done.finish, Finish::Length), "{:?}", done.finish);
        }
        let stats = scheduler.cache().stats();
        prop_assert_eq!(stats.free, stats.total);
    }
}
