//! The table that claims rest on: variants take turns.

use std::time::{Duration, Instant};

use headwise::{
    attend::CpuAttention,
    base::simd::Isa,
    format::{PageLayout, SlotFormat},
    store::{HostStore, PageStore},
};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{
    machine::{peak, read},
    scene::{Order, Scene},
};

/// Rounds of the table: each runs every variant once.
const ROUNDS: usize = 15;
/// f16 slots of a small page.
pub const PAGE_SLOTS: usize = 16;
/// K and V bytes of one head that fits in the second-level cache of a core, and how often a round
/// decodes it.
const CACHED: (usize, usize) = (512 << 10, 32);

/// Query heads, KV heads, head_dim.
pub const SHAPES: [(usize, usize, usize); 2] = [(32, 8, 128), (9, 3, 64)];

pub fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn mebibytes() -> usize {
    std::env::var("HEADWISE_BENCH_MIB").ok().and_then(|s| s.parse().ok()).unwrap_or(256)
}

/// Slots in each head so that the f16 scene of a shape has the wanted bytes.
pub fn decode_slots(shape: (usize, usize, usize)) -> usize {
    slots_for(shape, mebibytes() << 20)
}

fn slots_for((_, kv_heads, head_dim): (usize, usize, usize), bytes: usize) -> usize {
    (bytes / (kv_heads * head_dim * 4)).next_multiple_of(PAGE_SLOTS)
}

/// Multiply-adds of a causal prefill of a whole prompt: K and V, each visible (query, slot) pair.
pub fn prefill_work(scene: &Scene) -> f64 {
    let pairs: usize = (0..scene.tokens).map(|t| scene.slots - (scene.tokens - 1 - t)).sum();
    (2 * pairs * scene.shape.layer(0).query_heads() * scene.shape.layer(0).k_dim()) as f64
}

/// Something to time, and the bytes it reads.
struct Variant<'a> {
    name: &'static str,
    bytes: usize,
    run: Box<dyn FnMut() + Send + 'a>,
}

impl<'a> Variant<'a> {
    fn new(name: &'static str, bytes: usize, run: impl FnMut() + Send + 'a) -> Self {
        Self { name, bytes, run: Box::new(run) }
    }

    fn scene(name: &'static str, scene: &'a mut Scene, cpu: &'a CpuAttention) -> Self {
        let bytes = scene.bytes();
        Self::new(name, bytes, move || scene.attend(cpu))
    }
}

/// Runs all variants in turn, round after round; their sorted times in seconds.
fn interleave(variants: &mut [Variant<'_>], pool: &ThreadPool) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(ROUNDS); variants.len()];
    for round in 0..=ROUNDS {
        for (variant, times) in variants.iter_mut().zip(&mut times) {
            let time: Duration = pool.install(|| {
                let start = Instant::now();
                (variant.run)();
                start.elapsed()
            });
            // The first round warms caches, pools and page tables.
            if round > 0 {
                times.push(time.as_secs_f64());
            }
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    times
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

pub fn table() {
    println!(
        "\n{:?}, {} MiB of K and V in f16, {ROUNDS} interleaved rounds",
        Isa::detect(),
        mebibytes()
    );
    for shape in SHAPES {
        decode(shape);
    }
    println!("\nprefill, f16 pages, one thread");
    for shape in SHAPES {
        for (tokens, slots) in [(512, 512), (2048, 2048), (128, 8192)] {
            prefill(shape, tokens, slots);
        }
    }
}

fn decode(shape: (usize, usize, usize)) {
    let (query_heads, kv_heads, head_dim) = shape;
    let cpu = CpuAttention::new();
    let slots = decode_slots(shape);
    println!("\ndecode, {query_heads} q / {kv_heads} kv / {head_dim}, {slots} slots per head");
    let f16 = SlotFormat::F16;
    let mut scattered = Scene::new(shape, f16, slots, PAGE_SLOTS, 1, Order::Scattered);
    let mut planned = Scene::new(shape, f16, slots, PAGE_SLOTS, 1, Order::Planned);
    // The largest page there is holds some 32 MiB.
    let most = (PageLayout::MAX_PAGE_BYTES / 2) / (4 * head_dim);
    let mut whole = Scene::new(shape, f16, slots, slots.min(most), 1, Order::Planned);
    // One long head: many short ones would measure what a call costs, not the kernels.
    let one = (query_heads / kv_heads, 1, head_dim);
    let small = slots_for(one, CACHED.0);
    let mut cached = Scene::new(one, f16, small, PAGE_SLOTS, 1, Order::Scattered);
    let mut cached_i8 = Scene::new(one, SlotFormat::I8, small, PAGE_SLOTS, 1, Order::Scattered);
    let others = [SlotFormat::I8, SlotFormat::Bf16, SlotFormat::F32];
    let mut others =
        others.map(|format| Scene::new(shape, format, slots, PAGE_SLOTS, 1, Order::Scattered));
    let mut arena = HostStore::new(1, scattered.bytes()).unwrap();
    arena.poison(&[0]).unwrap();
    for threads in [1, 2] {
        let repeat = |scene: &mut Scene| (0..CACHED.1).for_each(|_| scene.attend(&cpu));
        let [i8, bf16, f32] = &mut others;
        let mut variants = vec![
            Variant::new("read", scattered.bytes(), || read(arena.bytes(), threads)),
            Variant::scene("f16 contiguous", &mut whole, &cpu),
            Variant::scene("f16 pages, as planned", &mut planned, &cpu),
            Variant::scene("f16 pages, scattered", &mut scattered, &cpu),
            Variant::scene("i8 pages, scattered", i8, &cpu),
            Variant::scene("bf16 pages, scattered", bf16, &cpu),
            Variant::scene("f32 pages, scattered", f32, &cpu),
        ];
        // One item does not feed two threads.
        if threads == 1 {
            variants.extend([
                Variant::new("f16 in cache", CACHED.1 * cached.bytes(), || repeat(&mut cached)),
                Variant::new("i8 in cache", CACHED.1 * cached_i8.bytes(), || {
                    repeat(&mut cached_i8);
                }),
            ]);
        }
        let times = interleave(&mut variants, &pool(threads));
        println!("  {threads} thread(s)              median ms  best ms  median GB/s  best GB/s");
        for (variant, times) in variants.iter().zip(&times) {
            let rate = |time: f64| variant.bytes as f64 / time / 1e9;
            println!(
                "    {:<22} {:>10.2} {:>8.2} {:>12.2} {:>10.2}",
                variant.name,
                median(times) * 1e3,
                times[0] * 1e3,
                rate(median(times)),
                rate(times[0]),
            );
        }
        let ratio = |a: usize, b: usize| {
            let (best, middle) = (times[a][0] / times[b][0], median(&times[a]) / median(&times[b]));
            format!("{middle:.3} (best rounds {best:.3})")
        };
        println!("    time, pages as planned / contiguous   {}", ratio(2, 1));
        println!("    time, pages scattered / contiguous    {}", ratio(3, 1));
        println!("    share of read bandwidth, contiguous   {}", ratio(0, 1));
        println!("    share of read bandwidth, as planned   {}", ratio(0, 2));
        println!("    share of read bandwidth, scattered    {}", ratio(0, 3));
        println!("    time, f16 / i8, scattered             {}", ratio(3, 4));
        if threads == 1 {
            // A multiply-add per value, query row and pass; two bytes a value.
            let peak = (0..9).map(|_| peak()).fold(0.0, f64::max);
            let limit = 2.0 * peak / (query_heads / kv_heads) as f64 / 1e9;
            println!("    f16 that multiply-adds alone allow    {limit:.1} GB/s");
        }
    }
}

fn prefill(shape: (usize, usize, usize), tokens: usize, slots: usize) {
    let cpu = CpuAttention::new();
    let mut scene = Scene::new(shape, SlotFormat::F16, slots, PAGE_SLOTS, tokens, Order::Planned);
    let work = prefill_work(&scene);
    let mut peaks = Vec::new();
    let times = interleave(
        &mut [
            Variant::new("peak", 0, || peaks.push(peak())),
            Variant::scene("prefill", &mut scene, &cpu),
        ],
        &pool(1),
    );
    let time = median(&times[1]);
    peaks.sort_by(f64::total_cmp);
    let peak = median(&peaks);
    println!(
        "  {shape:?}: {tokens:>5} tokens on {slots:>5} slots  {:>8.2} ms  {:>7.1} GFLOP/s  {:>5.1}% of peak {:.1}",
        time * 1e3,
        2e-9 * work / time,
        100.0 * work / time / peak,
        2e-9 * peak,
    );
}
