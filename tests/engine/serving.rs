//! Continuous batching: the same text however requests share the machine, and every page back.

use std::sync::Arc;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use headwise::{
    cache::{CacheConfig, CacheError, Capacity, Compression, KvCache},
    engine::{
        EngineError, Model, Strategy,
        serve::{
            Completion, CompressionPlan, Finish, Request, Scheduler, ServeOptions, StopStrings,
        },
    },
    evict::{Budget, EvictError, Policy, ScorerKind},
    plan::PlanError,
};

use crate::tiny_llama::TinyLlama;

pub fn tiny() -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyLlama::default().write(&path);
    let model = Model::open(&path).unwrap();
    (folder, model)
}

pub fn cache(model: &Model, capacity: Capacity) -> KvCache {
    KvCache::new(&CacheConfig { capacity, ..CacheConfig::new(model.shape().clone(), 0) }).unwrap()
}

pub fn request(salt: u32, prompt: u32, max_new_tokens: usize) -> Request {
    Request {
        prompt: (0..prompt).map(|i| (i * 7919 + salt * 131) % 300).collect(),
        max_new_tokens,
        strategy: Strategy::Greedy,
        seed: 1,
        stop: Vec::new(),
        stop_strings: StopStrings::default(),
    }
}

pub fn compression(budget: Budget) -> CompressionPlan {
    CompressionPlan {
        compression: Compression {
            scorer: Arc::from(ScorerKind::KvCompress.build()),
            policy: Policy { sinks: 2, window: 8, ..Policy::default() },
            budget,
        },
        between_chunks: true,
        every: Some(8),
    }
}

/// Runs the requests to their end; every page must come back.
pub fn run(
    model: &Model,
    capacity: Capacity,
    options: ServeOptions,
    requests: &[Request],
) -> (Vec<Completion>, headwise::engine::serve::ServeStats) {
    let cache = cache(model, capacity);
    let mut scheduler = Scheduler::new(model, cache, options).unwrap();
    for request in requests {
        scheduler.submit(request.clone()).unwrap();
    }
    let mut done = Vec::new();
    let mut streamed = std::collections::BTreeMap::new();
    while !scheduler.is_idle() {
        let progress = scheduler.step().unwrap();
        scheduler.cache().audit(scheduler.sequences()).unwrap();
        for (id, token) in progress.tokens {
            streamed.entry(id).or_insert_with(Vec::new).push(token);
        }
        done.extend(progress.completed);
    }
    let stats = scheduler.cache().stats();
    assert_eq!(stats.free, stats.total);
    done.sort_by_key(|completion| completion.id);
    for completion in &done {
        let tokens: &[u32] = streamed.get(&completion.id).map_or(&[], Vec::as_slice);
        assert_eq!(tokens, completion.tokens);
    }
    (done, scheduler.stats())
}

#[test]
fn a_batch_generates_what_each_request_generates_alone() {
    let (_folder, model) = tiny();
    let requests: Vec<Request> = (0..6).map(|i| request(i, 20 + 13 * i, 10 + i as usize)).collect();
    let options = ServeOptions { chunk: 32, ..ServeOptions::default() };
    let (batch, stats) = run(&model, Capacity::Tokens(1000), options.clone(), &requests);
    assert!(stats.peak_running > 2, "{stats:?}");
    for (completion, request) in batch.iter().zip(&requests) {
        let (alone, _) =
            run(&model, Capacity::Tokens(256), options.clone(), std::slice::from_ref(request));
        assert_eq!(completion.tokens, alone[0].tokens);
        assert!(matches!(completion.finish, Finish::Length));
        assert_eq!(completion.tokens.len(), request.max_new_tokens);
    }
}

#[test]
fn preempted_requests_are_recomputed_to_the_same_text() {
    let (_folder, model) = tiny();
    let requests: Vec<Request> = (0..4).map(|i| request(i, 60, 80)).collect();
    let options = ServeOptions { watermark: 0.0, ..ServeOptions::default() };
    let (roomy, _) = run(&model, Capacity::Tokens(1000), options.clone(), &requests);
    let (tight, stats) = run(&model, Capacity::Tokens(260), options, &requests);
    assert!(stats.preemptions > 0, "{stats:?}");
    let text = |done: &[Completion]| done.iter().map(|c| c.tokens.clone()).collect::<Vec<_>>();
    assert_eq!(text(&roomy), text(&tight));
}

#[test]
fn compression_lets_more_requests_run_at_once_in_the_same_memory() {
    let (_folder, model) = tiny();
    let requests: Vec<Request> = (0..8).map(|i| request(i, 128, 40)).collect();
    let plain = ServeOptions { chunk: 32, ..ServeOptions::default() };
    let capacity = Capacity::Tokens(400);
    let (_, without) = run(&model, capacity, plain.clone(), &requests);
    let compressed = ServeOptions { compression: Some(compression(Budget::Ratio(4.0))), ..plain };
    let (_, with) = run(&model, capacity, compressed, &requests);
    assert!(with.peak_running > without.peak_running, "{with:?} {without:?}");
    assert!(with.pages_evicted > 0);
}

#[test]
fn a_stop_token_ends_a_generation() {
    let (_folder, model) = tiny();
    let free = request(3, 20, 30);
    let (done, _) =
        run(&model, Capacity::Tokens(256), ServeOptions::default(), std::slice::from_ref(&free));
    let stop = done[0].tokens[5];
    let first = done[0].tokens.iter().position(|&token| token == stop).unwrap();
    let stopped = Request { stop: vec![stop], ..free };
    let (done, _) = run(&model, Capacity::Tokens(256), ServeOptions::default(), &[stopped]);
    assert!(matches!(done[0].finish, Finish::Stop), "{:?}", done[0].finish);
    assert_eq!(done[0].tokens.len(), first);
}

#[test]
fn requests_that_cannot_run_are_refused_with_the_numbers() {
    let (_folder, model) = tiny();
    let refuse = |options: ServeOptions, capacity, request| {
        // What no request could have is refused with the scheduler.
        let mut scheduler = match Scheduler::new(&model, cache(&model, capacity), options) {
            Ok(scheduler) => scheduler,
            Err(error) => return error,
        };
        let error = scheduler.submit(request).unwrap_err();
        assert!(scheduler.is_idle());
        let stats = scheduler.cache().stats();
        assert_eq!(stats.free, stats.total);
        error
    };
    let plain = ServeOptions::default;
    let roomy = Capacity::Tokens(256);
    assert!(matches!(refuse(plain(), roomy, request(0, 0, 5)), EngineError::EmptyRequest));
    assert!(matches!(refuse(plain(), roomy, request(0, 5, 0)), EngineError::EmptyRequest));
    assert!(matches!(
        refuse(plain(), roomy, request(0, 250, 8)),
        EngineError::ContextExceeded { needed: 257, context: 256 }
    ));
    let mut foreign = request(0, 5, 5);
    foreign.prompt[2] = 300;
    assert!(matches!(
        refuse(plain(), roomy, foreign),
        EngineError::TokenId { token: 300, vocab: 300 }
    ));
    assert!(matches!(
        refuse(plain(), Capacity::Tokens(64), request(0, 100, 5)),
        EngineError::Cache(CacheError::Plan(PlanError::NeverFits { .. }))
    ));
    let under = ServeOptions {
        compression: Some(compression(Budget::TokensPerHead(9))),
        ..ServeOptions::default()
    };
    assert!(matches!(
        refuse(under, roomy, request(0, 100, 5)),
        EngineError::Cache(CacheError::Evict(EvictError::BudgetUnderFloor { .. }))
    ));
    let absurd = ServeOptions {
        compression: Some(compression(Budget::Ratio(1e6))),
        ..ServeOptions::default()
    };
    assert!(matches!(
        refuse(absurd, roomy, request(0, 100, 5)),
        EngineError::RatioOutOfReach { least: 4, full: 64, context: 256, .. }
    ));
    // Five pages hold the prompt, but not the sinks and windows of what it grows to.
    let grows = ServeOptions {
        compression: Some(CompressionPlan {
            compression: Compression {
                policy: Policy { sinks: 16, window: 2, ..Policy::default() },
                ..compression(Budget::Pages(5)).compression
            },
            ..compression(Budget::Pages(5))
        }),
        ..ServeOptions::default()
    };
    assert!(matches!(
        refuse(grows, roomy, request(0, 10, 90)),
        EngineError::Cache(CacheError::Evict(EvictError::Infeasible {
            asked: 23,
            possible: 20,
            held: 28,
            floor: 8
        }))
    ));
}

/// Tokens are counted in the pages that tables hold: a budget for all of a request's tokens takes none
/// of its pages, whatever is protected, and one for fewer tokens keeps their pages.
#[test]
fn a_budget_for_all_tokens_evicts_nothing() {
    let (_folder, model) = tiny();
    let options = |budget| ServeOptions {
        chunk: 32,
        compression: Some(CompressionPlan { every: Some(1), ..compression(budget) }),
        ..ServeOptions::default()
    };
    let plain = ServeOptions { compression: None, ..options(Budget::Pages(1)) };
    let capacity = Capacity::Tokens(256);
    for prompt in [1, 9, 15, 16, 17, 41, 64, 100] {
        let request = request(7, prompt, 9);
        let tokens = prompt as usize + 9;
        let (without, _) = run(&model, capacity, plain.clone(), std::slice::from_ref(&request));
        for budget in [
            Budget::TokensPerHead(tokens),
            Budget::TokensPerHead(tokens + 100),
            Budget::Pages(4 * tokens.div_ceil(16)),
            Budget::Ratio(1.0),
            Budget::RatioOutsideProtected(1.0),
        ] {
            let request = std::slice::from_ref(&request);
            let (done, stats) = run(&model, capacity, options(budget), request);
            assert!(matches!(done[0].finish, Finish::Length), "{budget:?}: {:?}", done[0].finish);
            assert_eq!(
                (stats.pages_evicted, &done[0].tokens),
                (0, &without[0].tokens),
                "{budget:?}"
            );
        }
    }
    // 41 of 100 tokens are three pages of each head, of seven.
    let options = options(Budget::TokensPerHead(41));
    let mut scheduler = Scheduler::new(&model, cache(&model, capacity), options).unwrap();
    scheduler.submit(request(7, 99, 2)).unwrap();
    let mut least = usize::MAX;
    while !scheduler.is_idle() {
        scheduler.step().unwrap();
        let evicted = scheduler.sequences().filter(|s| s.tokens() == 99);
        least = evicted.map(|s| s.tables().pages()).fold(least, usize::min);
    }
    assert_eq!(least, 4 * 3);
}

#[test]
fn a_pool_that_fills_up_in_mid_step_loses_no_page() {
    let (_folder, model) = tiny();
    // One request that starts within the pool and cannot end in it.
    let mut scheduler =
        Scheduler::new(&model, cache(&model, Capacity::Tokens(64)), ServeOptions::default())
            .unwrap();
    scheduler.submit(request(0, 50, 100)).unwrap();
    let mut done = Vec::new();
    scheduler.run(|progress| done.extend(progress.completed.iter().cloned())).unwrap();
    let error = failure(&done[0]);
    assert!(matches!(error, EngineError::Cache(CacheError::Plan(_))), "{error}");
    assert_eq!(done[0].tokens.len(), 64 - 50 + 1);
    let stats = scheduler.cache().stats();
    assert_eq!(stats.free, stats.total);
}

pub fn failure(completion: &Completion) -> &EngineError {
    match &completion.finish {
        Finish::Failed(error) => error,
        finish => panic!("{finish:?}"),
    }
}

/// Token 299 has an embedding of no numbers, and so has whoever reads it. It is never drawn.
fn poisoned() -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("poisoned.gguf");
    TinyLlama { tied: false, ..TinyLlama::default() }.write_with(&path, |parts| {
        for (name, value) in [("token_embd.weight", f32::NAN), ("output.weight", 0.0)] {
            let entry = parts.tensors.iter_mut().find(|(other, _)| other == name).unwrap();
            let decoded = entry.1.dequantize(&Device::Cpu).unwrap();
            let mut rows: Vec<Vec<f32>> = decoded.to_vec2().unwrap();
            rows[299].fill(value);
            let changed = Tensor::new(rows, &Device::Cpu).unwrap();
            entry.1 = QTensor::quantize(&changed, GgmlDType::F32).unwrap();
        }
    });
    let model = Model::open(&path).unwrap();
    (folder, model)
}

#[test]
fn one_request_without_numbers_ends_alone() {
    let (_folder, model) = poisoned();
    let mut requests: Vec<Request> = (0..4).map(|i| request(i, 60, 40)).collect();
    for request in &mut requests {
        request.prompt.iter_mut().for_each(|token| *token %= 299);
    }
    let plain = ServeOptions { chunk: 32, ..ServeOptions::default() };
    let with = |compression| ServeOptions { compression: Some(compression), ..plain.clone() };
    let keys = CompressionPlan {
        compression: Compression {
            scorer: Arc::from(ScorerKind::KeyDiff.build()),
            ..compression(Budget::Ratio(2.0)).compression
        },
        ..compression(Budget::Ratio(2.0))
    };
    // It fails where a token is drawn, where attention is scored, and where keys are.
    for options in [plain.clone(), with(compression(Budget::Ratio(2.0))), with(keys)] {
        let capacity = Capacity::Tokens(1000);
        let (healthy, _) = run(&model, capacity, options.clone(), &requests);
        let mut mixed = requests.clone();
        mixed[1].prompt[59] = 299;
        let (done, _) = run(&model, capacity, options, &mixed);
        // Said where it enters the cache, by name.
        let error = failure(&done[1]);
        let EngineError::Cache(CacheError::OutOfRange { layer: 0, token: 59, cause, .. }) = error
        else {
            panic!("{error}");
        };
        assert!(cause.value.is_nan());
        let text = error.to_string();
        assert!(
            text.contains("layer 0, KV head 0, token 59: channel 0 of the key is NaN"),
            "{text}"
        );
        for other in [0, 2, 3] {
            assert!(matches!(done[other].finish, Finish::Length), "{:?}", done[other]);
            assert_eq!(done[other].tokens.len(), 40);
        }
        // Those that never shared a failed pass say what they say without the other.
        assert_eq!(done[2].tokens, healthy[2].tokens);
        assert_eq!(done[3].tokens, healthy[3].tokens);
    }
}

#[test]
fn a_cancelled_request_gives_its_pages_back() {
    let (_folder, model) = tiny();
    let options = ServeOptions { max_running: 2, ..ServeOptions::default() };
    let mut scheduler =
        Scheduler::new(&model, cache(&model, Capacity::Tokens(1000)), options).unwrap();
    let ids: Vec<_> = (0..3).map(|i| scheduler.submit(request(i, 40, 20)).unwrap()).collect();
    for _ in 0..4 {
        scheduler.step().unwrap();
    }
    let held = scheduler.cache().stats().held;
    let running = scheduler.cancel(ids[0]).unwrap();
    assert!(matches!(running.finish, Finish::Cancelled));
    assert_eq!((running.id, running.tokens.len()), (ids[0], 4));
    assert!(scheduler.cache().stats().held < held);
    scheduler.cache().audit(scheduler.sequences()).unwrap();
    let waiting = scheduler.cancel(ids[2]).unwrap();
    assert!(matches!(waiting.finish, Finish::Cancelled) && waiting.tokens.is_empty());
    assert!(scheduler.cancel(ids[0]).is_none());
    let mut done = Vec::new();
    scheduler.run(|progress| done.extend(progress.completed.iter().cloned())).unwrap();
    assert_eq!(done.iter().map(|completion| completion.id).collect::<Vec<_>>(), [ids[1]]);
    assert!(scheduler.cancel(ids[1]).is_none());
    let stats = scheduler.cache().stats();
    assert_eq!(stats.free, stats.total);
}

#[test]
fn a_short_prompt_is_held_to_its_ratio_once_it_is_long() {
    let (_folder, model) = tiny();
    let plan = CompressionPlan { every: Some(4), ..compression(Budget::Ratio(8.0)) };
    let options = ServeOptions { compression: Some(plan), ..ServeOptions::default() };
    let mut scheduler =
        Scheduler::new(&model, cache(&model, Capacity::Tokens(256)), options).unwrap();
    scheduler.submit(request(0, 1, 220)).unwrap();
    let mut held = Vec::new();
    while !scheduler.is_idle() {
        scheduler.step().unwrap();
        held.extend(scheduler.sequences().map(|s| (s.tokens(), s.tables().pages())));
    }
    // One page of each of the four heads is sinks and window; an eighth of the pages is less than that
    // up to 128 tokens, and two of 16 pages at 220. A page of each head comes between evictions.
    assert!(held.iter().all(|&(_, pages)| (4..=12).contains(&pages)), "{held:?}");
    assert!(held.iter().any(|&(tokens, pages)| tokens > 200 && pages <= 7), "{held:?}");
}

#[test]
fn requests_that_hold_nothing_yet_do_not_count_as_running() {
    let (_folder, model) = tiny();
    let requests: Vec<Request> = (0..3).map(|i| request(i, 60, 1)).collect();
    let options = ServeOptions { chunk: 32, ..ServeOptions::default() };
    // All are admitted at once, and each is done when its prompt is.
    let (_, stats) = run(&model, Capacity::Tokens(1000), options, &requests);
    assert_eq!(stats.peak_running, 1);
}
