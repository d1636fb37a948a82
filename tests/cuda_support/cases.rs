//! What must hold on every device, real or not.

use std::sync::Arc;

use headwise::{
    attend::{Attention, Batch, Head, Output, Reduce, Reference, SlotScores, Span},
    base::{CacheShape, SlotMove},
    cuda::{
        CudaAttention, CudaStore, Kernels,
        driver::{Context, Stream},
    },
    format::{PageFormat, PageLayout, SlotFormat},
    store::{HostStore, PageStore, Rows, TablePages},
};

/// A generator whose numbers are the same everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}

/// All pairs of formats.
pub fn formats() -> impl Iterator<Item = PageFormat> {
    let all = SlotFormat::ALL;
    all.iter().flat_map(move |&k| all.iter().map(move |&v| PageFormat { k, v }))
}

/// A device store and a host store that are told the same hold the same bytes, with and without
/// kernels that move slots.
pub fn store_agrees_with_the_host(context: &Context, kernels: Option<&Arc<Kernels>>, seed: u64) {
    const PAGES: usize = 24;
    const PAGE_BYTES: usize = 4096;
    let mut rng = Rng::new(seed);
    let stream = Arc::new(Stream::new(context).unwrap());
    let mut device = CudaStore::new(stream, PAGES, PAGE_BYTES).unwrap();
    if let Some(kernels) = kernels {
        device = device.with_kernels(Arc::clone(kernels)).unwrap();
    }
    let mut host = HostStore::new(PAGES, PAGE_BYTES).unwrap();
    let all: Vec<u32> = (0..PAGES as u32).collect();
    for format in formats() {
        let dim = 16 * (1 + rng.below(5));
        let layout = PageLayout::new(format, dim, PAGE_BYTES).unwrap();
        // Five pages in an order of their own.
        let first = rng.below(PAGES);
        let pages: Vec<u32> = (0..5).map(|i| ((first + 7 * i) % PAGES) as u32).collect();
        let table = TablePages { pages: &pages, layout: &layout };
        let count = 1 + rng.below(4 * layout.slots);
        let first = rng.below(5 * layout.slots - count);
        let (k, v) = (rng.values(count * dim), rng.values(count * dim));
        let (k, v) = (Rows::dense(&k, dim), Rows::dense(&v, dim));
        device.append(table, first, k, v).unwrap();
        host.append(table, first, k, v).unwrap();
        // Moves that depend on their order, then survivors into holes as an eviction makes them.
        let mut any = |count: usize| (first + rng.below(count)) as u32;
        let chain: Vec<SlotMove> =
            (0..5).map(|_| SlotMove { from: any(count), to: any(count) }).collect();
        let slots = (first + count) as u32;
        let holes = (0..count as u32 / 3).map(|i| SlotMove { from: slots - 1 - i, to: 2 * i / 3 });
        let holes: Vec<SlotMove> = holes.collect();
        for moves in [chain, holes] {
            device.move_slots(table, &moves).unwrap();
            host.move_slots(table, &moves).unwrap();
        }
        let copies = [(pages[0], pages[1]), (pages[2], pages[3])];
        device.copy_pages(&copies).unwrap();
        host.copy_pages(&copies).unwrap();
        if rng.below(3) == 0 {
            device.poison(&pages[4..]).unwrap();
            host.poison(&pages[4..]).unwrap();
        }
        let mut bytes = vec![0; PAGES * PAGE_BYTES];
        device.read_pages(&all, &mut bytes).unwrap();
        assert!(bytes == host.bytes(), "{format}, head_dim {dim}");
        let mut read = [(); 6].map(|()| vec![0f32; count * dim]);
        let [dk, dv, hk, hv, dk_only, hk_only] = &mut read;
        device.read(table, first, dk, dv).unwrap();
        host.read(table, first, hk, hv).unwrap();
        device.read_keys(table, first, dk_only).unwrap();
        host.read_keys(table, first, hk_only).unwrap();
        let bits = |x: &Vec<f32>| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(dk), bits(dv), bits(dk_only)), (bits(hk), bits(hv), bits(hk_only)));
    }
    // Swapped out and in again elsewhere.
    let mut bytes = vec![0; 3 * PAGE_BYTES];
    device.read_pages(&[3, 9, 1], &mut bytes).unwrap();
    device.write_pages(&[20, 0, 11], &bytes).unwrap();
    let mut again = vec![0; 3 * PAGE_BYTES];
    device.read_pages(&[20, 0, 11], &mut again).unwrap();
    assert!(bytes == again);
}

/// Attention over ragged tables of these formats is that of the f64 reference.
pub fn attention_agrees_with_the_reference(
    kernels: &Arc<Kernels>,
    shape: CacheShape,
    formats: &[PageFormat],
    longest: usize,
    seed: u64,
    tolerance: f32,
) {
    const PAGE_BYTES: usize = 8192;
    let mut rng = Rng::new(seed);
    let dim = shape.head_dim();
    let layout = |&format: &PageFormat| PageLayout::new(format, dim, PAGE_BYTES).unwrap();
    let layouts: Vec<PageLayout> = formats.iter().map(layout).collect();
    // Query tokens, and slots of each head: empty heads, one slot, whole pages, long ones, heads that
    // lost slots of the chunk itself.
    let lengths = [0, 1, 2, 31, 64, 65, 300, longest];
    let spans: Vec<(usize, Vec<(usize, usize)>)> = [1, 1, 5, 40, 1, 0]
        .into_iter()
        .map(|tokens| {
            let head = |_| (lengths[rng.below(lengths.len())], rng.below(layouts.len()));
            (tokens, (0..shape.kv_heads()).map(head).collect())
        })
        .collect();
    let needed: usize = spans
        .iter()
        .flat_map(|(_, heads)| heads)
        .map(|&(slots, layout)| slots.div_ceil(layouts[layout].slots))
        .sum();
    let mut host = HostStore::new(needed + 1, PAGE_BYTES).unwrap();
    let mut free: Vec<u32> = (0..=needed as u32).collect();
    // Whatever is not written reads as NaN.
    host.poison(&free).unwrap();
    let mut tables: Vec<Vec<u32>> = Vec::new();
    for &(slots, layout) in spans.iter().flat_map(|(_, heads)| heads) {
        let layout = &layouts[layout];
        let take = |_| free.swap_remove(rng.below(free.len()));
        let pages: Vec<u32> = (0..slots.div_ceil(layout.slots)).map(take).collect();
        let (k, v) = (rng.values(slots * dim), rng.values(slots * dim));
        let table = TablePages { pages: &pages, layout };
        host.append(table, 0, Rows::dense(&k, dim), Rows::dense(&v, dim)).unwrap();
        tables.push(pages);
    }
    let stream = Arc::new(Stream::new(kernels.context()).unwrap());
    let mut device = CudaStore::new(stream, needed + 1, PAGE_BYTES).unwrap();
    let all: Vec<u32> = (0..=needed as u32).collect();
    device.write_pages(&all, host.bytes()).unwrap();

    let flat: Vec<Head<'_>> = (spans.iter().flat_map(|(_, heads)| heads).zip(&tables))
        .map(|(&(slots, layout), pages)| Head { pages, slots, layout: &layouts[layout] })
        .collect();
    let heads = flat.chunks_exact(shape.kv_heads());
    let spans: Vec<Span<'_>> = spans
        .iter()
        .zip(heads)
        .map(|((tokens, _), heads)| Span { tokens: *tokens, heads })
        .collect();
    let tokens: usize = spans.iter().map(|span| span.tokens).sum();
    let rows = tokens * shape.query_heads();
    let q: Vec<f32> = rng.values(rows * dim).iter().map(|x| 3.0 * x).collect();
    let batch = Batch { shape, spans: &spans, q: &q };
    let attention = CudaAttention::new(Arc::clone(kernels)).unwrap();
    for (reduce, skip) in [(Reduce::Group, 0), (Reduce::PerQueryHead, 0), (Reduce::PerQueryHead, 3)]
    {
        let scores = SlotScores::new(4, reduce).skipping(skip);
        let mut results =
            [(); 2].map(|()| (vec![7f32; rows * dim], vec![7f32; rows], scores.clone()));
        let [(out, lse, scores), (expected_out, expected_lse, expected_scores)] = &mut results;
        let output = Output { out, lse, scores: Some(scores) };
        attention.attend(&device, &batch, output).unwrap();
        let output = Output { out: expected_out, lse: expected_lse, scores: Some(expected_scores) };
        Reference.attend(&host, &batch, output).unwrap();
        close("out", out, expected_out, tolerance);
        close("lse", lse, expected_lse, tolerance);
        for (s, span) in spans.iter().enumerate() {
            for head in 0..span.heads.len() {
                // Squared probabilities have twice the relative error of the log-sum-exp they are
                // replayed from, and sum it over the window.
                let (got, expected) = (scores.head(s, head), expected_scores.head(s, head));
                close("scores", got, expected, 4.0 * tolerance);
            }
        }
    }
}

/// Equal up to a relative (below 1: absolute) error.
pub fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let near = (got - expected).abs() <= tolerance * expected.abs().max(1.0);
        assert!(near || got == expected, "{what}[{i}]: {got}, expected {expected}");
    }
}
