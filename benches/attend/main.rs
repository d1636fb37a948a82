//! Attention over pages: decode against the read bandwidth of the machine and against one contiguous
//! buffer, formats against each other, prefill in GFLOP/s.
//!
//! Criterion keeps the record of each variant; the table printed at the end is what claims rest on:
//! its variants take turns in one run, so that a noisy machine is noisy to all of them.
//! `HEADWISE_BENCH_MIB` sets the K and V bytes of a decode (256 by default, to exceed any cache).

mod machine;
mod scene;
mod table;

use criterion::{Criterion, Throughput, criterion_group};
use headwise::{attend::CpuAttention, format::SlotFormat};

use scene::{Order, Scene};
use table::{PAGE_SLOTS, SHAPES, decode_slots, pool, prefill_work, table};

fn decode(criterion: &mut Criterion) {
    let cpu = CpuAttention::new();
    for shape in SHAPES {
        let (query_heads, kv_heads, head_dim) = shape;
        let mut group =
            criterion.benchmark_group(format!("decode/{query_heads}q{kv_heads}kv{head_dim}"));
        group.sample_size(10);
        let slots = decode_slots(shape);
        for &format in SlotFormat::ALL {
            let mut scene = Scene::new(shape, format, slots, PAGE_SLOTS, 1, Order::Scattered);
            group.throughput(Throughput::Bytes(scene.bytes() as u64));
            for threads in [1, 2] {
                let pool = pool(threads);
                group.bench_function(format!("{format}/{threads}"), |bench| {
                    pool.install(|| bench.iter(|| scene.attend(&cpu)));
                });
            }
        }
        group.finish();
    }
}

fn prefill(criterion: &mut Criterion) {
    let cpu = CpuAttention::new();
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for shape in SHAPES {
        let (query_heads, kv_heads, head_dim) = shape;
        let mut scene = Scene::new(shape, SlotFormat::F16, 2048, PAGE_SLOTS, 2048, Order::Planned);
        group.throughput(Throughput::Elements(prefill_work(&scene) as u64));
        group.bench_function(format!("{query_heads}q{kv_heads}kv{head_dim}"), |bench| {
            pool(1).install(|| bench.iter(|| scene.attend(&cpu)));
        });
    }
    group.finish();
}

criterion_group!(groups, decode, prefill);

fn main() {
    // `cargo test --benches` and `cargo bench -- --table` skip what they do not ask for.
    let table_only = std::env::args().any(|arg| arg == "--table");
    if !table_only {
        groups();
        Criterion::default().configure_from_args().final_summary();
    }
    if !std::env::args().any(|arg| arg == "--test") {
        table();
    }
}
