//! Planning: what a decode step of 256 sequences costs the planner, and the slot mapping that an engine
//! with kernels of its own makes of it.
//!
//! `cargo bench --no-default-features --bench plan`, CPU time of this thread.
//!
//! * *nothing fills*: sequences of one length, steps that find room in every last page; once more after
//!   an eviction.
//! * *spread*: sequences of many lengths, so that a sixteenth of them need a page for each head.
//! * *evicted 2x*: as spread, after an eviction that halves every sequence, heads of all lengths.
//! * *one fork*: as spread, and one sequence somewhere was forked and never went on.
//!
//! `docs/benchmarks.md` has figures of the first version too: this file without the mapping, and without
//! `begin_moves`, which that version did not have, in a check-out of commit b8e76eb.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{
    Criterion, Throughput, criterion_group, criterion_main,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use headwise::{
    base::compact,
    plan::{BlockManager, HeadRewrite, Sequence, TablePlan},
};
use rustix::time::{ClockId, clock_gettime};

const SEQUENCES: usize = 256;
const PAGE_SLOTS: usize = 16;
/// Steps until the sequences are cut back to where they were.
const STEPS: u64 = 64;

/// CPU time of this thread: other programs on the machine do not count.
struct CpuTime;

impl CpuTime {
    fn now() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        Self::now()
    }

    fn end(&self, start: Duration) -> Duration {
        Self::now() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// Sequences of one manager, and where they are cut back to.
struct Scene {
    manager: BlockManager,
    sequences: Vec<Sequence>,
    lengths: Vec<usize>,
    /// A fork that never goes on.
    _held: Option<Sequence>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    NothingFills,
    NothingFillsEvicted,
    Spread,
    Evicted,
    OneFork,
}

impl Kind {
    /// Whether sequences are of one length, one token into a page.
    fn nothing_fills(self) -> bool {
        matches!(self, Self::NothingFills | Self::NothingFillsEvicted)
    }
}

impl Scene {
    fn new(kind: Kind, heads: usize) -> Self {
        let context = if heads > 256 { 512 } else { 1024 };
        let mut seed = 5u64;
        let mut below = |n: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        let mut lengths: Vec<usize> = (0..SEQUENCES).map(|_| context + below(256)).collect();
        let evicted = matches!(kind, Kind::Evicted | Kind::NothingFillsEvicted);
        if kind.nothing_fills() {
            lengths.fill(context + 1);
        }
        let pages = SEQUENCES * heads * ((context + 256 + STEPS as usize) / PAGE_SLOTS + 2);
        let manager = BlockManager::new(pages).unwrap();
        let plan = Arc::new(TablePlan::new(vec![PAGE_SLOTS; heads]).unwrap());
        let mut sequences: Vec<Sequence> =
            (0..SEQUENCES).map(|_| manager.sequence(plan.clone())).collect();
        for (sequence, length) in sequences.iter_mut().zip(&mut lengths) {
            manager.reserve([(&mut *sequence, *length)]).unwrap().commit();
            if evicted {
                let rewrites = (0..heads).map(|head| {
                    // A half of the pages on average, from a quarter to three quarters by head.
                    let kept = (*length / 4 + below(*length / 2)) / PAGE_SLOTS * PAGE_SLOTS;
                    let dead = |slot: usize| slot * 7919 % *length >= kept;
                    let (slots_after, moves) = compact(*length, dead);
                    HeadRewrite { head, slots_after, moves }
                });
                manager.rewrite(sequence, rewrites.collect()).unwrap().begin_moves().commit();
                // Sequences evict at different times.
                let more = if kind.nothing_fills() { 1 } else { below(PAGE_SLOTS) };
                manager.reserve([(&mut *sequence, more)]).unwrap().commit();
                *length += more;
            }
        }
        let _held = (kind == Kind::OneFork).then(|| manager.fork(&sequences[0]).unwrap());
        let mut scene = Self { manager, sequences, lengths, _held };
        scene.retire();
        scene
    }

    fn retire(&mut self) {
        let step = self.manager.end_step();
        self.manager.retire(step);
    }

    /// `steps` decode steps, then back to where they began; the time of the steps alone.
    fn run(&mut self, steps: u64) -> Duration {
        let start = CpuTime::now();
        for _ in 0..steps {
            let step = self.manager.reserve(self.sequences.iter_mut().map(|s| (s, 1))).unwrap();
            black_box(step.pages_taken());
            step.commit();
            self.retire();
        }
        let time = CpuTime::now() - start;
        for (sequence, &length) in self.sequences.iter_mut().zip(&self.lengths) {
            self.manager.truncate(sequence, length).unwrap().begin_moves().commit();
        }
        self.retire();
        time
    }
}

fn steps(c: &mut Criterion<CpuTime>) {
    for heads in [256, 640] {
        let mut group = c.benchmark_group(format!("plan/{SEQUENCES} sequences × {heads} heads"));
        group.sample_size(10).throughput(Throughput::Elements((SEQUENCES * heads) as u64));
        for (name, kind) in [
            ("nothing fills", Kind::NothingFills),
            ("nothing fills, evicted 2x", Kind::NothingFillsEvicted),
            ("spread", Kind::Spread),
            ("evicted 2x", Kind::Evicted),
            ("one fork", Kind::OneFork),
        ] {
            let mut scene = Scene::new(kind, heads);
            // Of sixteen steps one fills every page, and there it is cut back before.
            let most = if kind.nothing_fills() { 15 } else { STEPS };
            group.bench_function(name, |b| {
                b.iter_custom(|iterations| {
                    let whole = (0..iterations / most).map(|_| most);
                    let times = whole.chain([iterations % most]).map(|steps| scene.run(steps));
                    times.sum()
                });
            });
        }
        group.finish();
    }
}

fn mapping(c: &mut Criterion<CpuTime>) {
    for heads in [256, 640] {
        let mut group = c.benchmark_group(format!("mapping/{SEQUENCES} sequences × {heads} heads"));
        group.sample_size(10).throughput(Throughput::Elements((SEQUENCES * heads) as u64));
        let mut scene = Scene::new(Kind::Evicted, heads);
        let mut slots = vec![0i64; SEQUENCES * heads];
        let step = scene.manager.reserve(scene.sequences.iter_mut().map(|s| (s, 1))).unwrap();
        group.bench_function("from the tables", |b| {
            b.iter(|| {
                let heads = step.sequences().flat_map(|(sequence, _)| sequence.heads());
                for (slot, table) in slots.iter_mut().zip(heads) {
                    let i = table.slots - 1;
                    let page = i64::from(table.pages[i / PAGE_SLOTS]);
                    *slot = page * PAGE_SLOTS as i64 + (i % PAGE_SLOTS) as i64;
                }
                black_box(&slots);
            });
        });
        group.bench_function("slot_mapping", |b| {
            b.iter(|| step.slot_mapping(0..heads, black_box(&mut slots)).unwrap());
        });
        group.bench_function("entries", |b| b.iter(|| black_box(step.entries().count())));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = steps, mapping
}
criterion_main!(benches);
