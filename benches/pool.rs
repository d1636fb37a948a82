//! The page pool: take and give, one at a time and in batches, and whole steps.
//!
//! `cargo bench --no-default-features --bench pool`

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use headwise::plan::{BlockManager, PagePool, Sequence, TablePlan};

const PAGES: usize = 1 << 19;

fn pages(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool/take+give");
    for batch in [1usize, 16, 1024] {
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("{batch}"), |b| {
            let mut pool = PagePool::new(PAGES).unwrap();
            let mut held = Vec::with_capacity(batch);
            b.iter(|| {
                held.clear();
                pool.take(batch, &mut held).unwrap();
                pool.give(black_box(&held)).unwrap();
                let step = pool.end_step();
                pool.retire(step, |_| ());
            });
        });
    }
    group.finish();
}

/// Sequences of 32 layers × 8 heads, 16 slots to a page.
fn started(manager: &BlockManager, count: usize, tokens: usize) -> Vec<Sequence> {
    let plan = std::sync::Arc::new(TablePlan::new([16; 256]).unwrap());
    let mut sequences: Vec<_> = (0..count).map(|_| manager.sequence(plan.clone())).collect();
    manager.reserve(sequences.iter_mut().map(|s| (s, tokens))).unwrap().commit();
    sequences
}

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("planner");
    let manager = BlockManager::new(PAGES).unwrap();
    let mut sequences = started(&manager, 32, 500);
    group.throughput(Throughput::Elements(32));
    group.bench_function("decode step of 32 sequences × 256 heads, rolled back", |b| {
        b.iter(|| drop(black_box(manager.reserve(sequences.iter_mut().map(|s| (s, 1))).unwrap())));
    });
    group.throughput(Throughput::Elements(256 * 128));
    group.bench_function("prefill of 2,048 tokens × 256 heads, and drop", |b| {
        b.iter_batched(
            || (),
            |()| {
                drop(started(&manager, 1, 2048));
                let step = manager.end_step();
                manager.retire(step);
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, pages, steps);
criterion_main!(benches);
