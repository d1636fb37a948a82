//! The eviction schedule of a long sequence of a large model, and all of its plan.
//!
//! `cargo bench --no-default-features --bench evict`. Set `HEADWISE_BENCH_SLOTS` for other lengths
//! than 131,072 slots per head.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use headwise::base::Positions;
use headwise::evict::{
    Cost, HeadSlots, PagePrices, Policy, Score, accumulate, plan, quantize, schedule,
};

const HEADS: usize = 32 * 8;
const SLOTS_PER_PAGE: usize = 16;

fn slots() -> usize {
    match std::env::var("HEADWISE_BENCH_SLOTS") {
        Ok(slots) => slots.parse().expect("HEADWISE_BENCH_SLOTS is a number of slots"),
        Err(_) => 131_072,
    }
}

/// A small generator, so that every run has the same scores.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Roughly normal: the sum of twelve uniforms.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.next() as f32 / (1u32 << 31) as f32).sum::<f32>() - 6.0
    }
}

/// Lognormal, as sums of squared probabilities are, each head with a scale of its own.
fn lognormal(slots: usize) -> Vec<Vec<Score>> {
    let mut random = Lcg(1);
    (0..HEADS)
        .map(|_| {
            let scale = random.normal();
            let values: Vec<f32> =
                (0..slots).map(|_| (scale - 12.0 + 2.0 * random.normal()).exp()).collect();
            let mut scores = vec![Score::ZERO; slots];
            quantize(&values, &mut scores).expect("exponentials are positive");
            scores
        })
        .collect()
}

/// Each code as likely as any other: the histogram fits no first-level cache.
fn all_codes(slots: usize) -> Vec<Vec<Score>> {
    let mut random = Lcg(2);
    let mut head = || (0..slots).map(|_| Score::from_bits(random.next() as u16)).collect();
    (0..HEADS).map(|_| head()).collect()
}

/// Two scores in turn: every count waits for one that was just stored.
fn alternating(slots: usize) -> Vec<Vec<Score>> {
    let two = [Score::from_bits(0x2000), Score::from_bits(0x2001)];
    vec![two.into_iter().cycle().take(slots).collect(); HEADS]
}

fn views<'a>(scores: &'a [Vec<Score>], positions: Option<&'a [u32]>) -> Vec<HeadSlots<'a>> {
    let positions = positions.map_or(Positions::Identity, Positions::Explicit);
    scores
        .iter()
        .map(|scores| HeadSlots { scores, positions, slots_per_page: SLOTS_PER_PAGE })
        .collect()
}

/// Makes the scores of all heads, given their slots.
type Make = fn(usize) -> Vec<Vec<Score>>;

fn schedules(c: &mut Criterion) {
    let slots = slots();
    let mut group = c.benchmark_group(format!("schedule/256x{slots}"));
    group.throughput(Throughput::Elements((HEADS * slots) as u64));
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    let inputs: [(&str, Make); 4] = [
        ("lognormal", lognormal),
        ("equal", |slots| vec![vec![Score::from_bits(0x2000); slots]; HEADS]),
        ("alternating", alternating),
        ("all-codes", all_codes),
    ];
    let shuffled: Vec<u32> = {
        let mut random = Lcg(3);
        let mut positions: Vec<u32> = (0..slots as u32).collect();
        (1..slots).for_each(|i| positions.swap(i, random.next() as usize % (i + 1)));
        positions
    };
    for (name, make) in inputs {
        let scores = make(slots);
        let orders = [("identity", None), ("shuffled", Some(&shuffled[..]))];
        for (order, positions) in orders {
            // Only one input is needed to see what positions cost.
            if positions.is_some() && name != "lognormal" {
                continue;
            }
            let heads = views(&scores, positions);
            let pages: usize = heads.iter().map(|head| head.extent().pages()).sum();
            for cost in [Cost::MaxVictim, Cost::SumVictims] {
                let policy = Policy { cost, ..Policy::default() };
                let found = schedule(&heads, slots, &policy, pages / 8 * 7).expect("feasible");
                let share = found.scratch_bytes() as f64 / (2 * HEADS * slots) as f64;
                println!("{name}/{order}/{cost:?}: scratch is {share:.3} of the scores");
                group.bench_function(
                    BenchmarkId::new(format!("{name}/{order}"), format!("{cost:?}")),
                    |b| {
                        b.iter(|| schedule(black_box(&heads), slots, &policy, pages / 8 * 7));
                    },
                );
            }
        }
    }
    group.finish();
}

/// What an engine runs after a prompt of ordinary length: 30 layers of 3 heads, 2,048 tokens.
fn small(c: &mut Criterion) {
    let scores: Vec<_> = lognormal(2_048).into_iter().take(90).collect();
    let heads = views(&scores, None);
    let pages: usize = heads.iter().map(|head| head.extent().pages()).sum();
    let policy = Policy::default();
    let mut group = c.benchmark_group("90x2048");
    group.throughput(Throughput::Elements(90 * 2_048));
    group.bench_function("schedule", |b| {
        b.iter(|| schedule(black_box(&heads), 2_048, &policy, pages / 8 * 7));
    });
    group.bench_function("plan", |b| {
        b.iter(|| plan(black_box(&heads), 2_048, &policy, pages / 8 * 7));
    });
    group.finish();
}

/// One eviction found by four ranks, each with two of eight heads of every layer, against one process
/// with all scores: what one rank does, what all four do, and what each does with the prices of all.
fn prices(c: &mut Criterion) {
    const RANKS: usize = 4;
    let slots = slots();
    let scores = lognormal(slots);
    let heads = views(&scores, None);
    let pages: usize = heads.iter().map(|head| head.extent().pages()).sum();
    let free = pages / 8 * 7;
    let numbers: Vec<Vec<usize>> = (0..RANKS)
        .map(|rank| (0..HEADS).filter(|head| head % 8 / (8 / RANKS) == rank).collect())
        .collect();
    let shards: Vec<Vec<HeadSlots<'_>>> =
        numbers.iter().map(|numbers| numbers.iter().map(|&head| heads[head]).collect()).collect();
    let mut group = c.benchmark_group(format!("prices/256x{slots}"));
    group.throughput(Throughput::Elements((HEADS * slots) as u64));
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    for cost in [Cost::MaxVictim, Cost::SumVictims] {
        let policy = Policy { cost, ..Policy::default() };
        let price = |rank: usize| {
            let prices = PagePrices::new(black_box(&shards[rank]), slots, &policy, free);
            prices.expect("heads").numbered(numbers[rank].iter().copied()).expect("distinct")
        };
        let all: Vec<PagePrices> = (0..RANKS).map(price).collect();
        let merged = || PagePrices::merge(black_box(&all)).expect("one policy").schedule(free);
        let whole = schedule(&heads, slots, &policy, free).expect("feasible");
        assert_eq!(merged().expect("feasible").pages(), whole.pages());

        let name = format!("{cost:?}");
        group.bench_function(BenchmarkId::new("schedule", &name), |b| {
            b.iter(|| schedule(black_box(&heads), slots, &policy, free));
        });
        group.bench_function(BenchmarkId::new("one rank prices", &name), |b| b.iter(|| price(0)));
        group.bench_function(BenchmarkId::new("merge and schedule", &name), |b| b.iter(merged));
        group.bench_function(BenchmarkId::new("all ranks in turn", &name), |b| {
            b.iter(|| {
                let all: Vec<PagePrices> = (0..RANKS).map(price).collect();
                PagePrices::merge(&all).expect("one policy").schedule(free)
            });
        });
    }
    group.finish();
}

fn plans(c: &mut Criterion) {
    let slots = slots();
    let scores = lognormal(slots);
    let heads = views(&scores, None);
    let pages: usize = heads.iter().map(|head| head.extent().pages()).sum();
    let policy = Policy::default();
    let mut group = c.benchmark_group(format!("plan/256x{slots}"));
    group.throughput(Throughput::Elements((HEADS * slots) as u64)).sample_size(10);
    group.bench_function("lognormal", |b| {
        b.iter(|| plan(black_box(&heads), slots, &policy, pages / 8 * 7));
    });
    group.finish();
}

fn accumulation(c: &mut Criterion) {
    let slots = 131_072;
    let scores = lognormal(slots).swap_remove(0);
    let increments = vec![1e-7; slots];
    let mut group = c.benchmark_group("accumulate");
    group.throughput(Throughput::Elements(slots as u64));
    group.bench_function("one head", |b| {
        b.iter_batched_ref(
            || scores.clone(),
            |scores| accumulate(scores, black_box(&increments), 5, 9),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, small, schedules, prices, plans, accumulation);
criterion_main!(benches);
