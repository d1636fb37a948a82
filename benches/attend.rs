//! Attention over pages: decode against the read bandwidth of the machine and against one contiguous
//! buffer, formats against each other, prefill in GFLOP/s.
//!
//! Criterion keeps the record of each variant; the table printed at the end is what claims rest on:
//! its variants take turns in one run, so that a noisy machine is noisy to all of them.
//! `HEADWISE_BENCH_MIB` sets the K and V bytes of a decode (256 by default, to exceed any cache).

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group};
use headwise::{
    attend::{Attention, Batch, CpuAttention, Head, Output, Span},
    base::{
        CacheShape,
        simd::{Isa, Simd},
    },
    format::{PageFormat, PageLayout, SlotFormat},
    store::{HostStore, PageStore, Rows, TablePages},
};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Rounds of the table: each runs every variant once.
const ROUNDS: usize = 15;
/// f16 slots of a small page at head_dim 128.
const PAGE_SLOTS: usize = 16;

/// Query heads, KV heads, head_dim.
const SHAPES: [(usize, usize, usize); 2] = [(32, 8, 128), (9, 3, 64)];

/// One sequence of one layer in a store of its own.
struct Scene {
    shape: CacheShape,
    layout: PageLayout,
    store: HostStore,
    /// Page ids of each KV head.
    tables: Vec<Vec<u32>>,
    slots: usize,
    tokens: usize,
    q: Vec<f32>,
    out: Vec<f32>,
    lse: Vec<f32>,
}

impl Scene {
    /// `slots` slots in each head, `page_slots` in each page, pages in random order.
    fn new(
        (query_heads, kv_heads, head_dim): (usize, usize, usize),
        format: SlotFormat,
        slots: usize,
        page_slots: usize,
        tokens: usize,
    ) -> Self {
        let shape = CacheShape::new(1, kv_heads, query_heads, head_dim).unwrap();
        let format = PageFormat::both(format);
        let page_bytes = PageLayout::page_bytes_for(format, head_dim, page_slots).unwrap();
        let layout = PageLayout::new(format, head_dim, page_bytes).unwrap();
        let per_head = slots.div_ceil(layout.slots);
        let mut pages: Vec<u32> = (0..(kv_heads * per_head) as u32).collect();
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 33
        };
        for i in (1..pages.len()).rev() {
            pages.swap(i, random() as usize % (i + 1));
        }
        let mut store = HostStore::new(pages.len(), page_bytes).unwrap();
        let mut values = |n: usize| -> Vec<f32> {
            (0..n).map(|_| random() as f32 / (1u64 << 30) as f32 - 1.0).collect()
        };
        let tables: Vec<Vec<u32>> = pages.chunks_exact(per_head).map(<[u32]>::to_vec).collect();
        // A block of rows over and over: attention's time does not depend on the values.
        let block = values(256 * head_dim);
        for table in &tables {
            let table = TablePages { pages: table, layout: &layout };
            for first in (0..slots).step_by(256) {
                let rows = Rows::dense(&block[..256.min(slots - first) * head_dim], head_dim);
                store.append(table, first, rows, rows).unwrap();
            }
        }
        let q = values(tokens * query_heads * head_dim);
        let (out, lse) = (q.clone(), vec![0.0; tokens * query_heads]);
        Self { shape, layout, store, tables, slots, tokens, q, out, lse }
    }

    fn attend(&mut self, cpu: &CpuAttention) {
        let heads: Vec<Head<'_>> = (self.tables.iter())
            .map(|pages| Head { pages, slots: self.slots, layout: &self.layout })
            .collect();
        let spans = [Span { tokens: self.tokens, heads: &heads }];
        let batch = Batch { shape: self.shape, spans: &spans, q: &self.q };
        let output = Output { out: &mut self.out, lse: &mut self.lse, scores: None };
        cpu.attend(&self.store, &batch, output).unwrap();
    }

    /// Bytes of the slots in use.
    fn bytes(&self) -> usize {
        self.tables.len() * self.slots * self.layout.slot_bytes()
    }
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// Reads all bytes with vectors, a few streams per thread: what a reader of memory can get here.
fn read(bytes: &[u8], threads: usize) {
    let part = bytes.len().div_ceil(threads).next_multiple_of(4096);
    rayon::scope(|scope| {
        for part in bytes.chunks(part) {
            scope.spawn(move |_| {
                #[cfg(target_arch = "x86_64")]
                if let Some(simd) = headwise::base::simd::Avx512::detect() {
                    return sum(simd, part);
                } else if let Some(simd) = headwise::base::simd::Avx2::detect() {
                    return sum(simd, part);
                }
                #[cfg(target_arch = "aarch64")]
                if let Some(simd) = headwise::base::simd::Neon::detect() {
                    return sum(simd, part);
                }
                sum(headwise::base::simd::Portable, part);
            });
        }
    });
}

fn sum<S: Simd>(simd: S, bytes: &[u8]) {
    let floats: &[f32] = bytemuck::cast_slice(bytes);
    let total = simd.vectorize(
        #[inline(always)]
        || {
            let mut sums = [simd.splat(0.0); 8];
            for block in floats.chunks_exact(8 * S::LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the block holds eight vectors.
                    let v = unsafe { simd.load(block.as_ptr().add(i * S::LANES)) };
                    *sum = simd.max(v, *sum);
                }
            }
            sums.into_iter().map(|v| simd.reduce_max(v)).fold(0.0, f32::max)
        },
    );
    black_box(total);
}

fn mebibytes() -> usize {
    std::env::var("HEADWISE_BENCH_MIB").ok().and_then(|s| s.parse().ok()).unwrap_or(256)
}

/// Slots in each head so that the f16 scene of a shape has the wanted bytes.
fn decode_slots((_, kv_heads, head_dim): (usize, usize, usize)) -> usize {
    ((mebibytes() << 20) / (kv_heads * head_dim * 4)).next_multiple_of(PAGE_SLOTS)
}

/// Fused multiply-adds per second of one core, on registers alone.
fn peak() -> f64 {
    fn run<S: Simd>(simd: S) -> f64 {
        const STEPS: usize = 4_000_000;
        let start = Instant::now();
        simd.vectorize(
            #[inline(always)]
            || {
                let x = simd.splat(black_box(0.999));
                let mut acc = [simd.splat(1.0); 10];
                for _ in 0..STEPS {
                    for acc in &mut acc {
                        *acc = simd.mul_add(*acc, x, x);
                    }
                }
                let total: f32 = acc.into_iter().map(|v| simd.reduce_add(v)).sum();
                black_box(total);
            },
        );
        (STEPS * 10 * S::LANES) as f64 / start.elapsed().as_secs_f64()
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = headwise::base::simd::Avx512::detect() {
        return run(simd);
    } else if let Some(simd) = headwise::base::simd::Avx2::detect() {
        return run(simd);
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(simd) = headwise::base::simd::Neon::detect() {
        return run(simd);
    }
    run(headwise::base::simd::Portable)
}

/// Multiply-adds of a causal prefill of a whole prompt: K and V, each visible (query, slot) pair.
fn prefill_work(scene: &Scene) -> f64 {
    let pairs: usize = (0..scene.tokens).map(|t| scene.slots - (scene.tokens - 1 - t)).sum();
    (2 * pairs * scene.shape.query_heads() * scene.shape.head_dim()) as f64
}

/// The middle of the measured times, in seconds.
fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// Runs all variants in turn, round after round; their median times.
fn interleave(variants: &mut [Box<dyn FnMut() + Send + '_>], pool: &ThreadPool) -> Vec<f64> {
    let mut times = vec![Vec::with_capacity(ROUNDS); variants.len()];
    for round in 0..=ROUNDS {
        for (variant, times) in variants.iter_mut().zip(&mut times) {
            let time = pool.install(|| {
                let start = Instant::now();
                variant();
                start.elapsed()
            });
            // The first round warms caches, pools and page tables.
            if round > 0 {
                times.push(time);
            }
        }
    }
    times.iter_mut().map(|times| median(times)).collect()
}

fn table() {
    let cpu = CpuAttention::new();
    println!(
        "\n{:?}, {} MiB of K and V in f16, medians of {ROUNDS} interleaved rounds",
        Isa::detect(),
        mebibytes()
    );
    for shape in SHAPES {
        let (query_heads, kv_heads, head_dim) = shape;
        let slots = decode_slots(shape);
        println!("\ndecode, {query_heads} q / {kv_heads} kv / {head_dim}, {slots} slots per head");
        let f16 = SlotFormat::F16;
        let mut pages = Scene::new(shape, f16, slots, PAGE_SLOTS, 1);
        // The largest page there is holds some 32 MiB.
        let most = (PageLayout::MAX_PAGE_BYTES / 2) / (4 * head_dim);
        let mut whole = Scene::new(shape, f16, slots, slots.min(most), 1);
        let others = [SlotFormat::I8, SlotFormat::Bf16, SlotFormat::F32];
        let mut others = others.map(|format| Scene::new(shape, format, slots, PAGE_SLOTS, 1));
        let arena = HostStore::new(1, pages.bytes()).map(|mut store| {
            store.poison(&[0]).unwrap();
            store
        });
        let arena = arena.unwrap();
        for threads in [1, 2] {
            let sizes: Vec<usize> = [pages.bytes(), pages.bytes(), whole.bytes()]
                .into_iter()
                .chain(others.iter().map(Scene::bytes))
                .collect();
            let names =
                ["read", "f16 pages", "f16 contiguous", "i8 pages", "bf16 pages", "f32 pages"];
            let mut variants: Vec<Box<dyn FnMut() + Send + '_>> = vec![
                Box::new(|| read(arena.bytes(), threads)),
                Box::new(|| pages.attend(&cpu)),
                Box::new(|| whole.attend(&cpu)),
            ];
            for other in &mut others {
                variants.push(Box::new(|| other.attend(&cpu)));
            }
            let times = interleave(&mut variants, &pool(threads));
            drop(variants);
            for ((name, bytes), time) in names.iter().zip(&sizes).zip(&times) {
                println!(
                    "  {threads} thread(s)  {name:<15} {:>8.2} ms  {:>6.2} GB/s  {:>5.2} x f16",
                    time * 1e3,
                    *bytes as f64 / time / 1e9,
                    time / times[1],
                );
            }
            println!(
                "  {threads} thread(s)  pages / contiguous {:.3}; share of read bandwidth {:.1}%",
                times[1] / times[2],
                100.0 * times[0] / times[1],
            );
        }
    }
    println!("\nprefill, f16 pages, one thread");
    for shape in SHAPES {
        for (tokens, slots) in [(512, 512), (2048, 2048), (128, 8192)] {
            let mut scene = Scene::new(shape, SlotFormat::F16, slots, PAGE_SLOTS, tokens);
            let work = prefill_work(&scene);
            let mut peaks = Vec::new();
            let time = {
                let mut variants: Vec<Box<dyn FnMut() + Send + '_>> =
                    vec![Box::new(|| peaks.push(peak())), Box::new(|| scene.attend(&cpu))];
                interleave(&mut variants, &pool(1))[1]
            };
            peaks.sort_by(f64::total_cmp);
            let peak = peaks[peaks.len() / 2];
            println!(
                "  {:?}: {tokens:>5} tokens on {slots:>5} slots  {:>8.2} ms  {:>7.1} GFLOP/s  {:>5.1}% of peak {:.1}",
                shape,
                time * 1e3,
                2e-9 * work / time,
                100.0 * work / time / peak,
                2e-9 * peak,
            );
        }
    }
}

fn decode(criterion: &mut Criterion) {
    let cpu = CpuAttention::new();
    for shape in SHAPES {
        let (query_heads, kv_heads, head_dim) = shape;
        let mut group =
            criterion.benchmark_group(format!("decode/{query_heads}q{kv_heads}kv{head_dim}"));
        group.sample_size(10);
        let slots = decode_slots(shape);
        for &format in SlotFormat::ALL {
            let mut scene = Scene::new(shape, format, slots, PAGE_SLOTS, 1);
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
        let mut scene = Scene::new(shape, SlotFormat::F16, 2048, PAGE_SLOTS, 2048);
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
