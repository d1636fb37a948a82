//! Head tables with known content, and attention over them in f64.

use headwise::{
    device::kernels::Specialisation,
    format::{Codec, CodecVisitor, PageLayout, Region, SlotFormat},
};

use super::harness::{Random, words};
use crate::ptxvm::{DevicePtr, Machine};

/// What free slots hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Free {
    /// NaN, as in debug builds: reading it is harmless, using it is not.
    Nan,
    /// Nothing: reading it is a fault.
    Forbidden,
}

/// One (sequence, KV head): its pages and the values its slots decode to.
pub struct Head {
    pub pages: Vec<u32>,
    pub slots: usize,
    pub keys: Vec<Vec<f32>>,
    pub values: Vec<Vec<f32>>,
}

/// Heads whose pages lie scattered in one arena.
pub struct World {
    pub layout: PageLayout,
    pub group: usize,
    pub heads: Vec<Head>,
    pub arena: Vec<u8>,
    /// Which bytes of the arena belong to slots in use: (offset, length).
    pub used: Vec<(usize, usize)>,
    /// A row for each query head of each head.
    pub queries: Vec<Vec<f32>>,
}

/// Where a slot's payload and scales lie in its page.
pub fn slot_ranges(region: &Region, slot: usize) -> [(usize, usize); 2] {
    [
        (region.payload + slot * region.payload_stride, region.payload_stride),
        (region.scales + slot * region.scale_stride, region.scale_stride),
    ]
}

/// Stores `src` and returns what it reads back as.
pub fn encode(format: SlotFormat, src: &[f32], payload: &mut [u8], scales: &mut [u8]) -> Vec<f32> {
    struct Encode<'a>(&'a [f32], &'a mut [u8], &'a mut [u8]);
    impl CodecVisitor for Encode<'_> {
        type Output = Vec<f32>;
        fn visit<C: Codec>(self) -> Vec<f32> {
            let mut back = vec![0.0; self.0.len()];
            C::encode(self.0, self.1, self.2);
            C::decode(self.1, self.2, &mut back);
            back
        }
    }
    format.visit(Encode(src, payload, scales))
}

/// Stores `src` as a device does: what the format cannot hold is saturated. Returns how many values were.
pub fn saturate_and_encode(
    format: SlotFormat,
    src: &[f32],
    payload: &mut [u8],
    scales: &mut [u8],
) -> usize {
    struct Saturate<'a>(&'a mut [f32], &'a mut [u8], &'a mut [u8]);
    impl CodecVisitor for Saturate<'_> {
        type Output = usize;
        fn visit<C: Codec>(self) -> usize {
            let count = C::saturate(self.0);
            assert!(C::encode(self.0, self.1, self.2));
            count
        }
    }
    format.visit(Saturate(&mut src.to_vec(), payload, scales))
}

impl World {
    /// Heads of the given lengths, in pages that a shuffle deals out.
    pub fn new(spec: &Specialisation, lengths: &[usize], seed: u64) -> Self {
        let layout = spec.layout;
        let mut random = Random(seed);
        let pages: usize = lengths.iter().map(|slots| slots.div_ceil(layout.slots)).sum();
        let mut ids: Vec<u32> = (0..pages as u32 + 2).collect();
        for i in (1..ids.len()).rev() {
            ids.swap(i, random.below(i + 1));
        }
        let mut world = Self {
            layout,
            group: spec.group,
            heads: Vec::new(),
            arena: vec![0xff; ids.len() * layout.page_bytes],
            used: Vec::new(),
            queries: Vec::new(),
        };
        for &slots in lengths {
            let pages = ids.split_off(ids.len() - slots.div_ceil(layout.slots));
            let head = Head { pages, slots: 0, keys: Vec::new(), values: Vec::new() };
            world.heads.push(head);
            for _ in 0..slots {
                let key = random.floats(layout.channels.k, 2.0);
                let value = random.floats(layout.channels.k, 1.0);
                world.append(&key, &value);
            }
            let head_dim = layout.channels.k;
            let rows = (0..spec.group).map(|_| random.floats(head_dim, 2.0));
            world.queries.extend(rows);
        }
        world
    }

    /// Adds a slot to the last head.
    fn append(&mut self, key: &[f32], value: &[f32]) {
        let Some(head) = self.heads.last_mut() else { return };
        let page = head.pages[head.slots / self.layout.slots] as usize * self.layout.page_bytes;
        let slot = head.slots % self.layout.slots;
        let (k, v) = (&self.layout.k, &self.layout.v);
        for (region, format, values, back) in [
            (k, self.layout.format.k, key, &mut head.keys),
            (v, self.layout.format.v, value, &mut head.values),
        ] {
            let [(at, len), (scale_at, scale_len)] = slot_ranges(region, slot);
            let (mut payload, mut scales) = (vec![0; len], vec![0; scale_len]);
            back.push(encode(format, values, &mut payload, &mut scales));
            self.arena[page + at..page + at + len].copy_from_slice(&payload);
            self.arena[page + scale_at..page + scale_at + scale_len].copy_from_slice(&scales);
            self.used.extend([(page + at, len), (page + scale_at, scale_len)]);
        }
        head.slots += 1;
    }

    pub fn lengths(&self) -> Vec<u32> {
        self.heads.iter().map(|head| head.slots as u32).collect()
    }

    /// Bytes of the slots in use, scales included.
    pub fn used_bytes(&self) -> u64 {
        self.used.iter().map(|&(_, len)| len as u64).sum()
    }

    /// The arena on the device.
    pub fn upload(&self, vm: &mut Machine, free: Free) -> DevicePtr {
        match free {
            Free::Nan => vm.alloc_init("pages", &self.arena),
            Free::Forbidden => {
                let pages = vm.alloc_uninit("pages", self.arena.len());
                for &(at, len) in &self.used {
                    vm.write(pages, at, &self.arena[at..at + len]).unwrap();
                }
                pages
            }
        }
    }

    /// All tables one after another, and where each begins.
    pub fn tables(&self, vm: &mut Machine) -> (DevicePtr, Vec<u32>) {
        let mut ids: Vec<u32> = Vec::new();
        let mut starts = Vec::new();
        for head in &self.heads {
            starts.push(ids.len() as u32);
            ids.extend(&head.pages);
        }
        // A kernel without work must not need a table either.
        (vm.alloc_read_only("page ids", &words(ids)), starts)
    }

    /// Scaled scores of one query row over the first `visible` slots of a head.
    pub fn scores(&self, head: usize, query: &[f32], visible: usize) -> Vec<f64> {
        let scale = f64::from(self.scale());
        let dot = |key: &Vec<f32>| -> f64 {
            key.iter().zip(query).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum()
        };
        self.heads[head].keys[..visible].iter().map(|key| dot(key) * scale).collect()
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.layout.channels.k as f32).sqrt()
    }

    /// Attention of one query row over the first `visible` slots: output and log-sum-exp.
    pub fn attend(&self, head: usize, query: &[f32], visible: usize) -> (Vec<f64>, f64) {
        let scores = self.scores(head, query, visible);
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        let mut out = vec![0.0; self.layout.channels.k];
        for (score, value) in scores.iter().zip(&self.heads[head].values) {
            let p = (score - top).exp() / sum;
            out.iter_mut().zip(value).for_each(|(o, &v)| *o += p * f64::from(v));
        }
        (out, if visible == 0 { f64::NEG_INFINITY } else { top + sum.ln() })
    }
}

/// The largest difference, in units of the largest reference value; NaN is infinitely far off.
pub fn error(got: &[f32], want: &[f64]) -> f64 {
    let largest = want.iter().fold(1e-30, |m: f64, w| m.max(w.abs()));
    difference(got, want) / largest
}

/// The largest difference; NaN is infinitely far off.
pub fn difference(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let distance = |(&g, &w): (&f32, &f64)| {
        let d = if f64::from(g) == w { 0.0 } else { (f64::from(g) - w).abs() };
        if d.is_nan() { f64::INFINITY } else { d }
    };
    got.iter().zip(want).map(distance).fold(0.0, f64::max)
}
