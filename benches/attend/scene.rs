//! What is attended to.

use headwise::{
    attend::{Attention, Batch, CpuAttention, Head, Output, Span},
    base::CacheShape,
    format::{PageFormat, PageLayout, SlotFormat},
    store::{HostStore, PageStore, Rows, TablePages},
};

/// How the pages of a scene lie in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Anywhere: what a long-running server's free list ends up as.
    Scattered,
    /// As a planner hands them out to a prefill: tables grow in turn, a chunk of tokens each, on
    /// consecutive pages.
    Planned,
}

/// Tokens of a prefill chunk in [`Order::Planned`].
const PLANNED_CHUNK: usize = 512;

/// One sequence of one layer in a store of its own.
pub struct Scene {
    pub shape: CacheShape,
    layout: PageLayout,
    store: HostStore,
    /// Page ids of each KV head.
    tables: Vec<Vec<u32>>,
    pub slots: usize,
    pub tokens: usize,
    q: Vec<f32>,
    out: Vec<f32>,
    lse: Vec<f32>,
}

impl Scene {
    /// `slots` slots in each head, `page_slots` in each page.
    pub fn new(
        (query_heads, kv_heads, head_dim): (usize, usize, usize),
        format: SlotFormat,
        slots: usize,
        page_slots: usize,
        tokens: usize,
        order: Order,
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
        let mut tables = vec![Vec::with_capacity(per_head); kv_heads];
        match order {
            Order::Scattered => {
                for i in (1..pages.len()).rev() {
                    pages.swap(i, random() as usize % (i + 1));
                }
                for (table, pages) in tables.iter_mut().zip(pages.chunks_exact(per_head)) {
                    table.extend_from_slice(pages);
                }
            }
            Order::Planned => {
                let mut next = pages.iter().copied();
                while tables[0].len() < per_head {
                    for table in &mut tables {
                        let room = per_head - table.len();
                        let take = PLANNED_CHUNK.div_ceil(layout.slots).min(room);
                        table.extend(next.by_ref().take(take));
                    }
                }
            }
        }
        let mut store = HostStore::new(pages.len(), page_bytes).unwrap();
        let mut values = |n: usize| -> Vec<f32> {
            (0..n).map(|_| random() as f32 / (1u64 << 30) as f32 - 1.0).collect()
        };
        // A block of rows over and over: attention's time does not depend on the values.
        let block = values(256 * head_dim);
        for table in &tables {
            let table = TablePages { pages: table, layout: &layout };
            for first in (0..slots).step_by(256) {
                let rows = &block[..256.min(slots - first) * head_dim];
                let rows = Rows::dense(rows, head_dim);
                store.append(table, first, rows, rows).unwrap();
            }
        }
        let q = values(tokens * query_heads * head_dim);
        let (out, lse) = (q.clone(), vec![0.0; tokens * query_heads]);
        Self { shape, layout, store, tables, slots, tokens, q, out, lse }
    }

    /// One attention over all of it.
    pub fn attend(&mut self, cpu: &CpuAttention) {
        let heads: Vec<Head<'_>> = (self.tables.iter())
            .map(|pages| Head { pages, slots: self.slots, layout: &self.layout })
            .collect();
        let spans = [Span { tokens: self.tokens, heads: &heads }];
        let batch = Batch { layer: self.shape.layer(0), spans: &spans, q: &self.q };
        let output = Output { out: &mut self.out, lse: &mut self.lse, scores: None };
        cpu.attend(&self.store, &batch, output).unwrap();
    }

    /// Bytes of the slots in use.
    pub fn bytes(&self) -> usize {
        self.tables.len() * self.slots * self.layout.slot_bytes()
    }
}
