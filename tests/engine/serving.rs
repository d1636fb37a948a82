//! Continuous batching: the same text however requests share the machine, and every page back.

use std::sync::Arc;

use headwise::{
    cache::{CacheConfig, CacheError, Capacity, Compression, KvCache},
    engine::{
        EngineError, Model, Strategy,
        serve::{Completion, CompressionPlan, Finish, Request, Scheduler, ServeOptions},
    },
    evict::{Budget, EvictError, Policy, ScorerKind},
    plan::PlanError,
};

use crate::tiny_llama::TinyLlama;

fn tiny() -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyLlama::default().write(&path);
    let model = Model::open(&path).unwrap();
    (folder, model)
}

fn cache(model: &Model, capacity: Capacity) -> KvCache {
    KvCache::new(&CacheConfig { capacity, ..CacheConfig::new(model.shape(), 0) }).unwrap()
}

fn request(salt: u32, prompt: u32, max_new_tokens: usize) -> Request {
    Request {
        prompt: (0..prompt).map(|i| (i * 7919 + salt * 131) % 300).collect(),
        max_new_tokens,
        strategy: Strategy::Greedy,
        seed: 1,
        stop: Vec::new(),
    }
}

fn compression(budget: Budget) -> CompressionPlan {
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
fn run(
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
        assert_eq!(streamed.get(&completion.id), Some(&completion.tokens));
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
        assert_eq!(completion.finish, Finish::Length);
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
    let (done, _) = run(&model, Capacity::Tokens(256), ServeOptions::default(), &[free.clone()]);
    let stop = done[0].tokens[5];
    let first = done[0].tokens.iter().position(|&token| token == stop).unwrap();
    let stopped = Request { stop: vec![stop], ..free };
    let (done, _) = run(&model, Capacity::Tokens(256), ServeOptions::default(), &[stopped]);
    assert_eq!((done[0].finish, done[0].tokens.len()), (Finish::Stop, first));
}

#[test]
fn requests_that_cannot_run_are_refused_with_the_numbers() {
    let (_folder, model) = tiny();
    let refuse = |options: ServeOptions, capacity, request| {
        let mut scheduler = Scheduler::new(&model, cache(&model, capacity), options).unwrap();
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
        refuse(plain(), roomy, request(0, 250, 7)),
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
        EngineError::Cache(CacheError::Evict(_))
    ));
}

#[test]
fn a_pool_that_fills_up_in_mid_step_loses_no_page() {
    let (_folder, model) = tiny();
    // One request that starts within the pool and cannot end in it.
    let mut scheduler =
        Scheduler::new(&model, cache(&model, Capacity::Tokens(64)), ServeOptions::default())
            .unwrap();
    scheduler.submit(request(0, 50, 100)).unwrap();
    let error = loop {
        match scheduler.step() {
            Ok(_) => assert!(!scheduler.is_idle()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, EngineError::Cache(CacheError::Plan(_))), "{error}");
    let stats = scheduler.cache().stats();
    assert_eq!(stats.free, stats.total);
}
