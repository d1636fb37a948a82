//! The serving benchmark's decode loop on a device, real or not: tables, scores, evictions and outputs are
//! those of the host.

use half::f16;
use headwise::{
    attend::{Attention, Batch, Head, Output, Reduce, Reference, SlotScores, Span},
    base::{LayerShape, Positions},
    cuda::{
        Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{Kernels, eviction::SlotData},
    evict::{Budget, Cost, HeadExtent, HeadSlots, Policy, Score, accumulate, plan},
    format::{Overflow, PageFormat, PageLayout},
    measure::{
        serving::{Cache, CacheSetup, Memory, ModelShape, Phases, Prompt, Tables},
        verify::{Noise, row_error},
    },
    store::{HostStore, PageStore, Rows, TablePages},
};

/// The model of the loop.
pub const SHAPE: ModelShape = ModelShape {
    layers: 2,
    hidden: 64,
    query_heads: 4,
    kv_heads: 2,
    head_dim: 32,
    mlp: 96,
    vocab: 50,
};

fn halves(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&v| f16::from_f32(v)).collect()
}

fn floats(values: &[f16]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

/// What the host knows of a run: pages, scores at rest of each sequence's heads, and how many values it
/// had to saturate.
struct Host {
    store: HostStore,
    scores: Vec<Vec<Vec<Score>>>,
    saturated: u64,
}

struct Setup<'a> {
    stream: &'a Stream,
    staging: Staging,
    memory: Memory,
    layout: PageLayout,
    noise: Noise,
}

impl Setup<'_> {
    /// The pages and slots of a sequence's heads of one layer.
    fn heads(&self, cache: &Cache, layer: usize, unborn: usize) -> Vec<(Vec<u32>, usize)> {
        let mut heads = Vec::new();
        for sequence in cache.tables() {
            for h in 0..SHAPE.kv_heads {
                let head = layer * SHAPE.kv_heads + h;
                if sequence.plan().heads() == 1 {
                    let table = sequence.head(0);
                    let page = |&block: &u32| block * SHAPE.heads() as u32 + head as u32;
                    heads.push((table.pages.iter().map(page).collect(), table.slots - unborn));
                } else {
                    let table = sequence.head(head);
                    heads.push((table.pages.to_vec(), table.slots - unborn));
                }
            }
        }
        heads
    }

    /// One step: random rows through the device's append, attention and scores, and through the host's.
    fn step(&mut self, cache: &Cache, host: &mut Host, unborn: usize, scored: bool) {
        let (width, dim, batch) = (SHAPE.qkv(), SHAPE.head_dim, cache.sequences());
        let seen: Vec<u32> = cache.tables().iter().map(|s| (s.tokens() - unborn) as u32).collect();
        let context = self.stream.context().clone();
        // SAFETY: the cache's tokens are one word for each sequence.
        let mut tokens = unsafe { DeviceBuffer::from_raw(&context, cache.tokens(), 4 * batch) };
        let bytes = bytemuck::cast_slice(&seen);
        self.staging.upload(self.stream, &mut tokens, [(0, bytes)]).unwrap();
        let mut qkv = DeviceBuffer::new(&context, 2 * batch * width).unwrap();
        let out = DeviceBuffer::new(&context, 2 * batch * width).unwrap();
        for layer in 0..SHAPE.layers {
            let rows: Vec<f32> = self.noise.values(batch * width).iter().map(|v| 2.0 * v).collect();
            let mut rows = halves(&rows);
            // One key or value that no format holds: it is stored as zero, and counted.
            let (q_width, kv) = (SHAPE.query_heads * dim, SHAPE.kv_heads);
            let spoilt = self.noise.below(batch) * width + q_width;
            rows[spoilt + self.noise.below(2 * kv * dim)] = f16::NAN;
            let bytes = bytemuck::cast_slice(&rows);
            self.staging.upload(self.stream, &mut qkv, [(0, bytes)]).unwrap();
            let addresses = [qkv.address(), out.address()];
            // SAFETY: the plan has the step; both buffers have a row for each sequence.
            unsafe { cache.attend(layer, addresses, scored, self.stream, &mut Phases::default()) }
                .unwrap();
            let mut got = vec![f16::ZERO; batch * width];
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut got);
            let range = 0..bytes.len();
            self.staging.download(self.stream, &out, std::slice::from_ref(&range), bytes).unwrap();

            let rows = floats(&rows);
            let heads = self.heads(cache, layer, unborn);
            for (i, (pages, slots)) in heads.iter().enumerate() {
                let row = &rows[i / kv * width..][..width];
                let k = &row[q_width + i % kv * dim..][..dim];
                let v = &row[q_width + (kv + i % kv) * dim..][..dim];
                let table = TablePages { pages, layout: &self.layout };
                let (k, v) = (Rows::dense(k, dim), Rows::dense(v, dim));
                let stored = host.store.append_with(table, slots - 1, k, v, Overflow::Saturate);
                host.saturated += stored.unwrap() as u64;
            }
            let flat: Vec<Head<'_>> = heads
                .iter()
                .map(|(pages, slots)| Head { pages, slots: *slots, layout: &self.layout })
                .collect();
            let spans: Vec<Span<'_>> =
                flat.chunks_exact(kv).map(|heads| Span { tokens: 1, heads }).collect();
            let q: Vec<f32> =
                rows.chunks_exact(width).flat_map(|row| &row[..q_width]).copied().collect();
            let of = LayerShape::new(kv, SHAPE.query_heads, dim).unwrap();
            let (mut want, mut lse) = (vec![0f32; q.len()], vec![0f32; batch * SHAPE.query_heads]);
            let mut scores = SlotScores::new(1, Reduce::Group);
            let output = Output { out: &mut want, lse: &mut lse, scores: Some(&mut scores) };
            Reference
                .attend(&host.store, &Batch { layer: &of, spans: &spans, q: &q }, output)
                .unwrap();
            let got: Vec<f32> =
                got.chunks_exact(width).flat_map(|row| floats(&row[..q_width])).collect();
            let error = row_error(&got, &want, dim);
            assert!(error <= 4e-3, "out: {error}");
            if scored {
                for (s, &step) in seen.iter().enumerate() {
                    for h in 0..kv {
                        let head = layer * kv + h;
                        let at = &mut host.scores[s][head];
                        at.push(Score::ZERO);
                        accumulate(at, scores.head(s, h), head, step.into()).unwrap();
                    }
                }
            }
        }
    }

    /// The device's scores and positions of a sequence's head.
    fn data(&mut self, cache: &Cache, s: usize, head: usize) -> (Vec<Score>, Vec<u32>) {
        let table = cache.tables()[s].head(head);
        let page_slots = self.layout.slots;
        let (staging, stream) = (&mut self.staging, self.stream);
        self.memory.data.download(table.pages, page_slots, table.slots, staging, stream).unwrap()
    }

    /// The device's scores are the host's up to the rounding of their increments, its positions the
    /// planner's. The host goes on with the device's, so that both decide alike.
    fn compare_data(&mut self, cache: &Cache, host: &mut Host) {
        for s in 0..cache.sequences() {
            for head in 0..SHAPE.heads() {
                let (scores, positions) = self.data(cache, s, head);
                let table = cache.tables()[s].head(head);
                let known: Vec<u32> =
                    (0..table.slots).map(|slot| table.position(slot) as u32).collect();
                assert_eq!(positions, known, "sequence {s}, head {head}");
                assert_eq!(scores.len(), host.scores[s][head].len());
                let mut off = 0u32;
                for (slot, (got, want)) in scores.iter().zip(&host.scores[s][head]).enumerate() {
                    let distance = got.to_bits().abs_diff(want.to_bits());
                    assert!(distance <= 4, "slot {slot}: {got:?}, expected {want:?}");
                    off += u32::from(distance);
                }
                // The same dither: nearly all slots round alike.
                assert!(off as usize <= scores.len() / 4, "{off} steps off in {}", scores.len());
                host.scores[s][head] = scores;
            }
        }
    }

    /// An eviction on the device is the host's plan of it, moves, pages and all.
    fn evict(&mut self, cache: &mut Cache, host: &mut Host, rate: f64) -> usize {
        let policy = Policy { sinks: 2, window: 8, cost: Cost::MaxVictim, ..Policy::default() };
        let mut planned = Vec::new();
        for (s, sequence) in cache.tables().iter().enumerate() {
            let tokens = sequence.tokens();
            let positions: Vec<Vec<u32>> = sequence
                .heads()
                .map(|table| (0..table.slots).map(|i| table.position(i) as u32).collect())
                .collect();
            let heads: Vec<HeadSlots<'_>> = (host.scores[s].iter().zip(&positions))
                .map(|(scores, positions)| HeadSlots {
                    scores,
                    positions: Positions::Explicit(positions),
                    slots_per_page: self.layout.slots,
                })
                .collect();
            let extents: Vec<HeadExtent> = heads.iter().map(HeadSlots::extent).collect();
            let free = Budget::Ratio(rate).pages_to_free(&extents, tokens, &policy).unwrap();
            let plan = plan(&heads, tokens, &policy, free).unwrap();
            for (table, head) in sequence.heads().zip(plan.heads()) {
                let table = TablePages { pages: table.pages, layout: &self.layout };
                host.store.move_slots(table, head.moves()).unwrap();
            }
            plan.apply_to(&mut host.scores[s]).unwrap();
            planned.push((plan, positions));
        }
        let done = cache.evict(rate, &policy, &mut self.staging, self.stream).unwrap();
        let sums = |of: fn(&headwise::evict::EvictionPlan) -> usize| -> usize {
            planned.iter().map(|(plan, _)| of(plan)).sum()
        };
        assert_eq!((done.pages, done.moved), (sums(|p| p.pages_freed()), sums(|p| p.moves())));
        for (s, (plan, mut positions)) in planned.into_iter().enumerate() {
            plan.apply_to(&mut positions).unwrap();
            for (head, want) in positions.iter().enumerate() {
                let (scores, got) = self.data(cache, s, head);
                assert_eq!(&got, want, "sequence {s}, head {head}");
                assert_eq!(scores, host.scores[s][head], "sequence {s}, head {head}");
                let table = cache.tables()[s].head(head);
                let known: Vec<u32> =
                    (0..table.slots).map(|slot| table.position(slot) as u32).collect();
                assert_eq!(&known, want);
            }
        }
        cache.audit().unwrap();
        done.pages
    }
}

/// Two sequences of so many tokens decode on the device and on the host: outputs, scores, evictions, moves
/// and positions agree.
pub fn decode_loop(kernels: &Kernels, format: PageFormat, tables: Tables, tokens: [usize; 2]) {
    let scored = tables == Tables::PerHead { scores: Some(1) };
    let rates = if scored { [2.0, 2.0] } else { [1.0, 1.0] };
    evicting_loop(kernels, format, tables, tokens, rates, &[5, 1, 7, 11]);
}

/// The same for prompts and evictions of other rates, and windows of other lengths.
pub fn evicting_loop(
    kernels: &Kernels,
    format: PageFormat,
    tables: Tables,
    tokens: [usize; 2],
    [rate, evicted]: [f64; 2],
    windows: &[usize],
) {
    let pages = 6 * tokens.iter().sum::<usize>() / 8 + 80;
    let scored = tables == Tables::PerHead { scores: Some(1) };
    let context = kernels.context();
    let bytes = PageLayout::page_bytes_for(format, SHAPE.head_dim, 8).unwrap();
    let layout = PageLayout::new(format, SHAPE.head_dim, bytes).unwrap();
    let stream = Stream::new(context).unwrap();
    let mut noise = Noise::new(9);
    let mut staging = Staging::new(context, 4, 1 << 16).unwrap();
    // Random rows in all pages, the same here and there.
    let mut store = HostStore::new(pages, bytes).unwrap();
    let all: Vec<u32> = (0..pages as u32).collect();
    let values = pages * layout.slots * SHAPE.head_dim;
    let (k, v) = (noise.values(values), noise.values(values));
    let table = TablePages { pages: &all, layout: &layout };
    let dense = |values| Rows::dense(values, SHAPE.head_dim);
    store.append(table, 0, dense(&k), dense(&v)).unwrap();
    let mut arena = DeviceBuffer::new(context, pages * bytes).unwrap();
    staging.upload(&stream, &mut arena, [(0, store.bytes())]).unwrap();
    let data = SlotData::new(context, pages, layout.slots).unwrap();
    let memory = Memory { arena, data, pages };
    let mut setup = Setup { stream: &stream, staging, memory, layout, noise };

    let policy = Policy { sinks: 2, window: 8, ..Policy::default() };
    let prompts: Vec<Prompt> = tokens
        .iter()
        .map(|&tokens| {
            Prompt::new(tokens, SHAPE.heads(), layout.slots, rate, &policy, tokens as u64).unwrap()
        })
        .collect();
    let prompts: Vec<&Prompt> = prompts.iter().collect();
    let (memory, staging) = (&mut setup.memory, &mut setup.staging);
    let of = CacheSetup { shape: SHAPE, layout, tables };
    let mut cache = Cache::new(kernels, memory, of, &prompts, staging, &stream).unwrap();
    let scores = |prompt: &&Prompt| -> Vec<Vec<Score>> {
        let codes = |codes: &Vec<u16>| codes.iter().map(|&c| Score::from_bits(c)).collect();
        prompt.heads.iter().map(|head| codes(&head.scores)).collect()
    };
    let mut host = Host { store, scores: prompts.iter().map(scores).collect(), saturated: 0 };
    let mut freed = 0;
    for &window in windows {
        cache.plan(window, &mut setup.staging, &stream).unwrap();
        for step in 0..window {
            setup.step(&cache, &mut host, window - 1 - step, scored);
        }
        if scored {
            setup.compare_data(&cache, &mut host);
            freed += setup.evict(&mut cache, &mut host, evicted);
        }
    }
    assert_eq!(freed > 0, scored);
    let steps: usize = windows.iter().sum();
    assert_eq!(host.saturated, (steps * SHAPE.layers) as u64);
    assert_eq!(cache.saturated(&mut setup.staging, &stream).unwrap(), host.saturated);
}
