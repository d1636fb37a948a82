//! What is attended to: any keys, values and queries, infinities and NaN included.

use headwise::{
    attend::{Batch, Head, Span},
    base::LayerShape,
    format::{Codec, CodecVisitor, PageFormat, PageLayout, Region, SlotFormat},
    store::{HostStore, PageStore},
};

const PAGE_BYTES: usize = 8192;

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

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }

    /// Values with mean 0 and this standard deviation.
    pub fn values(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        let mut unit = || (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        (0..count).map(|_| 12f32.sqrt() * deviation * unit()).collect()
    }
}

/// A head table.
pub struct Table {
    pub format: PageFormat,
    /// `[slots][k_dim]` and `[slots][v_dim]`; no values where they are a part of the keys.
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// Behind how many slots how many tokens are missing: what has left the window.
    pub gap: (usize, usize),
}

/// Sequences, before they are in pages.
pub struct Scene {
    pub layer: LayerShape,
    /// Query tokens of each span, and its tables.
    pub spans: Vec<(usize, Vec<Table>)>,
    /// `[tokens][query heads][k_dim]`
    pub q: Vec<f32>,
    pub seed: u64,
}

impl Scene {
    /// Spans of `(query tokens, slots of each head)`; tables take `formats` in turn.
    pub fn new(
        layer: LayerShape,
        spans: &[(usize, Vec<usize>)],
        formats: &[PageFormat],
        seed: u64,
    ) -> Self {
        let mut random = Random(seed);
        let channels = layer.channels();
        let mut formats = formats.iter().copied().cycle().skip(seed as usize % formats.len());
        let mut table = |tokens: usize, slots: usize| {
            let mut format = formats.next().unwrap();
            if channels.v_in_k {
                format.v = format.k;
            }
            let mut gap = (0, 0);
            if let Some(window) = layer.window() {
                // Anywhere between the sinks and what the span's first token sees.
                let first = (slots + 1).saturating_sub(tokens + window.tokens);
                if first >= window.sinks && first > 0 {
                    let at = window.sinks + random.below(first + 1 - window.sinks);
                    gap = (at, random.below(60));
                }
            }
            let k = random.values(slots * channels.k, 1.0);
            let v = random.values(slots * channels.v_stored(), 1.0);
            Table { format, k, v, gap }
        };
        let spans: Vec<(usize, Vec<Table>)> = (spans.iter())
            .map(|(tokens, slots)| (*tokens, slots.iter().map(|&n| table(*tokens, n)).collect()))
            .collect();
        let rows = spans.iter().map(|(tokens, _)| tokens).sum::<usize>() * layer.query_heads();
        // Peaked enough that single slots matter.
        let q = random.values(rows * channels.k, 2.0);
        Self { layer, spans, q, seed }
    }

    pub fn formats(&self) -> Vec<PageFormat> {
        self.tables().map(|table| table.format).collect()
    }

    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.spans.iter().flat_map(|(_, tables)| tables)
    }

    pub fn tables_mut(&mut self) -> impl Iterator<Item = &mut Table> {
        self.spans.iter_mut().flat_map(|(_, tables)| tables)
    }

    /// Every query all zeros but for its first channel.
    pub fn point_queries(&mut self, value: f32) {
        let dim = self.layer.k_dim();
        self.q.fill(0.0);
        self.q.iter_mut().step_by(dim).for_each(|q| *q = value);
    }

    /// In pages, in an order of their own; whatever is not a slot in use reads as NaN.
    pub fn store(&self) -> Stored {
        let channels = self.layer.channels();
        let mut random = Random(self.seed ^ 0x5eed);
        let layout = |format| PageLayout::new(format, channels, PAGE_BYTES).unwrap();
        let slots_of = |table: &Table| table.k.len() / channels.k;
        let pages_of = |table: &Table| slots_of(table).div_ceil(layout(table.format).slots);
        // More than are needed, and never none.
        let count = self.tables().map(pages_of).sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..count as u32).collect();
        for i in (1..count).rev() {
            free.swap(i, random.below(i + 1));
        }
        let mut host = HostStore::new(count, PAGE_BYTES).unwrap();
        host.poison(&free).unwrap();
        let tables = self.tables().map(|table| {
            let layout = layout(table.format);
            let pages = free.split_off(free.len() - pages_of(table));
            let slots = slots_of(table);
            let (mut k, mut v) = (vec![0.0; table.k.len()], vec![0.0; slots * channels.v]);
            for at in 0..slots {
                let (page, slot) = (pages[at / layout.slots], at % layout.slots);
                let (k, v) = (&mut k[at * channels.k..], &mut v[at * channels.v..]);
                let (k, v) = (&mut k[..channels.k], &mut v[..channels.v]);
                let key = &table.k[at * channels.k..][..channels.k];
                // Not `append`: what it refuses may come about all the same.
                let mut bytes = host.page(page).unwrap().to_vec();
                write(layout.format.k, &layout.k, &mut bytes, slot, key, k);
                if channels.v_in_k {
                    v.copy_from_slice(&k[..channels.v]);
                } else {
                    let value = &table.v[at * channels.v..][..channels.v];
                    write(layout.format.v, &layout.v, &mut bytes, slot, value, v);
                }
                host.write_page(page, &bytes).unwrap();
            }
            let (behind, missing) = table.gap;
            let position = |slot| if slot < behind { slot } else { slot + missing };
            let positions = (0..slots).map(position).collect();
            StoredTable { pages, layout, slots, positions, k, v }
        });
        let tables = tables.collect();
        let tokens = self.spans.iter().map(|(tokens, _)| *tokens).collect();
        Stored { layer: self.layer.clone(), host, tokens, tables, q: self.q.clone() }
    }
}

/// Encodes `row` into a slot of a page, and what it reads back as into `back`.
fn write(
    format: SlotFormat,
    region: &Region,
    page: &mut [u8],
    slot: usize,
    row: &[f32],
    back: &mut [f32],
) {
    struct Write<'a>(&'a [f32], &'a mut [u8], &'a mut [u8], &'a mut [f32]);
    impl CodecVisitor for Write<'_> {
        type Output = ();
        fn visit<C: Codec>(self) {
            C::encode(self.0, self.1, self.2);
            C::decode(self.1, self.2, self.3);
        }
    }
    let payload = region.payload + slot * region.payload_stride;
    let scales = region.scales + slot * region.scale_stride;
    let (mut bytes, mut steps) = (vec![0; region.payload_stride], vec![0; region.scale_stride]);
    format.visit(Write(row, &mut bytes, &mut steps, back));
    page[payload..payload + bytes.len()].copy_from_slice(&bytes);
    page[scales..scales + steps.len()].copy_from_slice(&steps);
}

/// A table in pages.
pub struct StoredTable {
    pub pages: Vec<u32>,
    pub layout: PageLayout,
    pub slots: usize,
    /// The token that each slot holds.
    pub positions: Vec<usize>,
    /// What the slots read as, `[slots][k_dim]` and `[slots][v_dim]`.
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// A scene in a store.
pub struct Stored {
    pub layer: LayerShape,
    pub host: HostStore,
    /// Query tokens of each span.
    pub tokens: Vec<usize>,
    /// `[span][KV head]`
    pub tables: Vec<StoredTable>,
    pub q: Vec<f32>,
}

impl Stored {
    /// Calls `f` with the batch.
    pub fn with_batch<R>(&self, f: impl FnOnce(&Batch<'_>) -> R) -> R {
        let heads: Vec<Head<'_>> = (self.tables.iter())
            .map(|table| Head { pages: &table.pages, slots: table.slots, layout: &table.layout })
            .collect();
        let spans: Vec<Span<'_>> = (self.tokens.iter())
            .zip(heads.chunks_exact(self.layer.kv_heads()))
            .map(|(&tokens, heads)| Span { tokens, heads })
            .collect();
        f(&Batch { layer: &self.layer, spans: &spans, q: &self.q })
    }
}
