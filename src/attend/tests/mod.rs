//! The CPU backend against the reference, on the same stored bytes.

mod parity;
mod refusals;

use super::{AttendError, Attention, Batch, Head, Output, Reduce, SlotScores, Span};
use crate::{
    base::CacheShape,
    format::{PageFormat, PageLayout, SlotFormat},
    store::{HostStore, PageStore, Rows, TablePages},
};

/// A head table's length and format.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub slots: usize,
    pub format: PageFormat,
}

/// Spans over one store whose every byte outside the slots in use reads as NaN.
pub struct Scene {
    pub shape: CacheShape,
    pub store: HostStore,
    /// `[span]`: query tokens.
    tokens: Vec<usize>,
    /// `[span][KV head]`
    tables: Vec<(Vec<u32>, usize, PageLayout)>,
    q: Vec<f32>,
}

/// What a call returns.
pub struct Results {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    /// `[span][KV head]`
    pub scores: Vec<Vec<f32>>,
}

/// A small generator (SplitMix64), so that scenes depend on nothing but their seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Values with mean 0 and variance 1.
    pub fn values(&mut self, count: usize, amplitude: f32) -> Vec<f32> {
        let mut unit = || (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        (0..count).map(|_| 12f32.sqrt() * amplitude * unit()).collect()
    }
}

impl Scene {
    /// Spans of `(query tokens, tables)`; pages of `page_bytes`, handed out in random order.
    pub fn new(
        shape: CacheShape,
        spans: &[(usize, Vec<Table>)],
        page_bytes: usize,
        seed: u64,
    ) -> Self {
        let mut random = Random(seed);
        let dim = shape.head_dim();
        let layouts: Vec<(Table, PageLayout)> = (spans.iter().flat_map(|(_, tables)| tables))
            .map(|t| (*t, PageLayout::new(t.format, dim, page_bytes).unwrap()))
            .collect();
        let needed: usize = layouts.iter().map(|(t, l)| t.slots.div_ceil(l.slots)).sum();
        let mut free: Vec<u32> = (0..needed as u32 + 3).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, (random.next() % (i as u64 + 1)) as usize);
        }
        let mut store = HostStore::new(free.len(), page_bytes).unwrap();
        store.poison(&free).unwrap();
        let mut tables = Vec::new();
        for (table, layout) in layouts {
            let pages = free.split_off(free.len() - table.slots.div_ceil(layout.slots));
            let k = random.values(table.slots * dim, 1.0);
            let v = random.values(table.slots * dim, 1.0);
            let place = TablePages { pages: &pages, layout: &layout };
            store.append(place, 0, Rows::dense(&k, dim), Rows::dense(&v, dim)).unwrap();
            tables.push((pages, table.slots, layout));
        }
        let tokens: Vec<usize> = spans.iter().map(|(tokens, _)| *tokens).collect();
        let rows = tokens.iter().sum::<usize>() * shape.query_heads();
        // Peaked enough that single slots matter.
        let q = random.values(rows * dim, 2.0);
        Self { shape, store, tokens, tables, q }
    }

    /// Calls `f` with the batch.
    pub fn with_batch<R>(&self, f: impl FnOnce(&Batch<'_>) -> R) -> R {
        let heads: Vec<Head<'_>> = (self.tables.iter())
            .map(|(pages, slots, layout)| Head { pages, slots: *slots, layout })
            .collect();
        let spans: Vec<Span<'_>> = (self.tokens.iter())
            .zip(heads.chunks_exact(self.shape.kv_heads()))
            .map(|(&tokens, heads)| Span { tokens, heads })
            .collect();
        f(&Batch { shape: self.shape, spans: &spans, q: &self.q })
    }

    /// Runs a backend; the output buffers start as garbage.
    pub fn run(
        &self,
        backend: &impl Attention<HostStore>,
        scores: Option<&mut SlotScores>,
    ) -> Results {
        let mut out = vec![f32::NAN; self.q.len()];
        let mut lse = vec![f32::NAN; self.q.len() / self.shape.head_dim()];
        let mut scores = scores;
        self.with_batch(|batch| {
            let scores = scores.as_deref_mut();
            backend.attend(&self.store, batch, Output { out: &mut out, lse: &mut lse, scores })
        })
        .unwrap();
        let heads = self.shape.kv_heads();
        let scores = scores.map_or_else(Vec::new, |scores| {
            let at = |i: usize| scores.head(i / heads, i % heads).to_vec();
            (0..self.tables.len()).map(at).collect()
        });
        Results { out, lse, scores }
    }
}

/// Panics unless the two agree to f32 rounding.
pub fn assert_close(got: &Results, want: &Results, what: &str) {
    let near = |got: &[f32], want: &[f32], tolerance: f32, name: &str| {
        assert_eq!(got.len(), want.len(), "{what}: {name}");
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let close = g == w || (g - w).abs() <= tolerance * w.abs().max(1.0);
            assert!(close, "{what}: {name}[{i}] is {g}, expected {w}");
        }
    };
    near(&got.out, &want.out, 2e-5, "out");
    near(&got.lse, &want.lse, 1e-5, "lse");
    assert_eq!(got.scores.len(), want.scores.len());
    for (got, want) in got.scores.iter().zip(&want.scores) {
        near(got, want, 2e-5, "scores");
    }
}

/// Every pair of K and V formats.
pub fn all_formats() -> Vec<PageFormat> {
    let all = SlotFormat::ALL;
    all.iter().flat_map(|&k| all.iter().map(move |&v| PageFormat { k, v })).collect()
}
