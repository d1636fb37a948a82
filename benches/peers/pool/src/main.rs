//! Taking and giving pages: headwise's pool and kvbm-logical's, in turns, on one thread.
//!
//! `cargo run --release --manifest-path benches/peers/pool/Cargo.toml`
//!
//! kvbm-logical hands out blocks as handles that give themselves back when dropped; headwise hands out
//! page ids, and `give` checks them. Neither has anything registered for reuse here.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use headwise::plan::PagePool;
use kvbm_logical::{BlockManager, BlockRegistry, manager::FrequencyTrackingCapacity};

/// Pages of each pool.
const PAGES: usize = 1 << 16;
/// Pages taken and given in each turn.
const TURN: usize = 1 << 20;
const ROUNDS: usize = 15;

/// What kvbm-logical's blocks are blocks of.
#[derive(Clone)]
struct Kv;

fn headwise(pool: &mut PagePool, batch: usize) {
    let mut held = Vec::with_capacity(batch);
    for _ in 0..TURN / batch {
        held.clear();
        pool.take(batch, &mut held).expect("pages enough");
        pool.give(black_box(&held)).expect("held");
        let step = pool.end_step();
        pool.retire(step, |_| ());
    }
}

fn kvbm(manager: &BlockManager<Kv>, batch: usize) {
    for _ in 0..TURN / batch {
        drop(black_box(manager.allocate_blocks(batch).expect("blocks enough")));
    }
}

fn time(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e9 / TURN as f64
}

fn main() {
    let mut pool = PagePool::new(PAGES).expect("a pool");
    let tracker = FrequencyTrackingCapacity::default().create_tracker();
    let registry = BlockRegistry::builder().frequency_tracker(tracker).build();
    let manager = BlockManager::<Kv>::builder()
        .block_count(PAGES)
        .block_size(16)
        .registry(registry)
        .with_lru_backend()
        .build()
        .expect("a manager");
    println!("take + give, ns per page   headwise   kvbm-logical   ratio");
    for batch in [1, 16, 1024] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let times = (time(|| headwise(&mut pool, batch)), time(|| kvbm(&manager, batch)));
            // The first round warms up.
            if round > 0 {
                ours.push(times.0);
                theirs.push(times.1);
            }
        }
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        println!(
            "  batches of {batch:>5}        {ours:>8.1} {theirs:>14.1} {:>7.1}",
            theirs / ours
        );
    }
}
