//! Data of slots that stands by page: scores at rest, positions.

use super::{harness::Random, world::World};
use crate::ptxvm::{DevicePtr, Machine};

/// Tables of given lengths whose pages a shuffle deals out, and how far apart a page's data stand.
pub struct Paged {
    pub ids: Vec<u32>,
    /// Where each table starts in the ids.
    pub starts: Vec<u32>,
    pub stride: usize,
    lengths: Vec<usize>,
    page_slots: usize,
    pages: usize,
}

/// Data by page; what no slot has is not there.
pub struct Stored {
    bytes: Vec<u8>,
    used: Vec<(usize, usize)>,
}

impl Paged {
    pub fn new(lengths: &[usize], page_slots: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let (mut starts, mut held) = (Vec::new(), 0);
        for slots in lengths {
            starts.push(held as u32);
            held += slots.div_ceil(page_slots);
        }
        // A page that nobody holds, and more data a page than this format has slots.
        let (pages, stride) = (held + 1, page_slots + 3);
        let mut ids: Vec<u32> = (0..pages as u32).collect();
        for i in (1..pages).rev() {
            ids.swap(i, random.below(i + 1));
        }
        Self { ids, starts, stride, lengths: lengths.to_vec(), page_slots, pages }
    }

    /// The tables of a world.
    pub fn of(world: &World) -> Self {
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        for head in &world.heads {
            starts.push(ids.len() as u32);
            ids.extend(&head.pages);
        }
        let page_slots = world.layout.slots;
        let pages = ids.iter().max().map_or(0, |&id| id as usize + 1);
        let lengths = world.heads.iter().map(|head| head.slots).collect();
        Self { ids, starts, stride: page_slots + 1, lengths, page_slots, pages }
    }

    /// Where a slot's datum stands.
    pub fn at(&self, table: usize, slot: usize) -> usize {
        let id = self.ids[self.starts[table] as usize + slot / self.page_slots] as usize;
        id * self.stride + slot % self.page_slots
    }

    /// Bytes of all data of `size` bytes each.
    pub fn bytes(&self, size: usize) -> usize {
        self.pages * self.stride * size
    }

    /// Puts the values of each table, in the order of its slots, where they stand.
    pub fn store<'a, T: bytemuck::Pod>(&self, tables: impl IntoIterator<Item = &'a [T]>) -> Stored {
        let size = size_of::<T>();
        let mut stored = Stored { bytes: vec![0; self.bytes(size)], used: Vec::new() };
        for (table, values) in tables.into_iter().enumerate() {
            assert_eq!(values.len(), self.lengths[table]);
            for (slot, value) in values.iter().enumerate() {
                let at = self.at(table, slot) * size;
                stored.bytes[at..at + size].copy_from_slice(bytemuck::bytes_of(value));
                stored.used.push((at, size));
            }
        }
        stored
    }
}

impl Stored {
    /// On the device; what no slot has may not be read.
    pub fn upload(&self, vm: &mut Machine, name: &'static str) -> DevicePtr {
        let memory = vm.alloc_uninit(name, self.bytes.len());
        for &(at, len) in &self.used {
            vm.write(memory, at, &self.bytes[at..at + len]).unwrap();
        }
        memory
    }
}
