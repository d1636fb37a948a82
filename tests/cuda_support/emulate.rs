//! What the kernels do, written down plainly in host memory: it stands in for a device in tests of
//! what surrounds the kernels. The kernels themselves are tested by executing their PTX.

use std::{cell::RefCell, ffi::c_int, slice};

use crate::fake::{Launch, RawLaunch};
use headwise::{
    device::attention::{MergeItem, PrefillItem, ScoreItem, WorkItem},
    format::{Codec, CodecVisitor, PageLayout, Region, SlotFormat},
};

/// What kernels were compiled for: PTX does not say, so a test uses one specialisation at a time.
#[derive(Clone, Copy)]
pub struct Compiled {
    pub layout: PageLayout,
    pub group: usize,
}

thread_local! {
    /// Launches that ran, with their grids.
    pub static LAUNCHES: RefCell<Vec<(String, [u32; 3])>> = const { RefCell::new(Vec::new()) };
    /// What the kernels that run now were compiled for.
    pub static COMPILED: RefCell<Option<Compiled>> = const { RefCell::new(None) };
}

/// Runs a launch; unknown kernels fail it.
///
/// # Safety
/// As a launch: the arguments are those of the kernel.
pub unsafe extern "C" fn on_launch(raw: *const RawLaunch) -> c_int {
    // SAFETY: the driver calls with a launch of its own.
    let Launch { name, ptx, grid, threads, shared, arguments, sizes } = unsafe { Launch::new(raw) };
    let whole = threads > 0 && threads.is_multiple_of(32) && shared <= 227 << 10;
    if !whole || !ptx.contains(name) || sizes.len() != arguments.len() {
        return 700;
    }
    LAUNCHES.with_borrow_mut(|launches| launches.push((name.to_owned(), grid)));
    let Some(compiled) = COMPILED.with_borrow(|compiled| *compiled) else { return 700 };
    match (name, arguments) {
        ("headwise_decode", &[pages, ids, items, lists, q, out, lse, p_out, p_lse, _, scale]) => {
            let lists: &[u32] = view(lists, grid[0] as usize + 1);
            let items: &[WorkItem] = view(items, lists[grid[0] as usize] as usize);
            for item in items {
                for g in 0..compiled.group {
                    let row = item.query as usize + g;
                    let keys = compiled.read(pages, ids, item.pages, item.slots, true);
                    let values = compiled.read(pages, ids, item.pages, item.slots, false);
                    let (o, l) = attend(compiled.row(q, row), &keys, &values, float(scale));
                    if item.partial == u32::MAX {
                        compiled.row_mut(out, row).copy_from_slice(&o);
                        view_mut::<f32>(lse, row + 1)[row] = l;
                    } else {
                        let at = item.partial as usize * compiled.group + g;
                        compiled.row_mut(p_out, at).copy_from_slice(&o);
                        view_mut::<f32>(p_lse, at + 1)[at] = l * std::f32::consts::LOG2_E;
                    }
                }
            }
        }
        ("headwise_merge", &[merges, p_out, p_lse, out, lse]) => {
            for merge in view::<MergeItem>(merges, grid[0] as usize) {
                for g in 0..compiled.group.min(grid[1] as usize) {
                    if merge.query == u32::MAX {
                        continue;
                    }
                    let parts = (merge.first..merge.first + merge.count)
                        .map(|partial| partial as usize * compiled.group + g);
                    let lse_of = |at: usize| f64::from(view::<f32>(p_lse, at + 1)[at]).exp2();
                    let sum: f64 = parts.clone().map(lse_of).sum();
                    let row = merge.query as usize + g;
                    let o = compiled.row_mut(out, row);
                    o.fill(0.0);
                    for at in parts {
                        let weight = (lse_of(at) / sum) as f32;
                        o.iter_mut()
                            .zip(compiled.row(p_out, at))
                            .for_each(|(o, p)| *o += weight * p);
                    }
                    view_mut::<f32>(lse, row + 1)[row] = sum.ln() as f32;
                }
            }
        }
        ("headwise_prefill", &[pages, ids, items, q, out, lse, stride, scale]) => {
            for item in view::<PrefillItem>(items, grid[0] as usize) {
                let keys = compiled.read(pages, ids, item.pages, item.slots, true);
                let values = compiled.read(pages, ids, item.pages, item.slots, false);
                for r in item.first_row..item.first_row + item.rows {
                    let (token, g) = (r as usize / compiled.group, r as usize % compiled.group);
                    let row = item.query as usize + token * stride as usize + g;
                    let seen = (item.before as usize + token + 1).min(item.slots as usize);
                    let (keys, values) = (&keys[..seen], &values[..seen]);
                    let (o, l) = attend(compiled.row(q, row), keys, values, float(scale));
                    compiled.row_mut(out, row).copy_from_slice(&o);
                    view_mut::<f32>(lse, row + 1)[row] = l;
                }
            }
        }
        ("headwise_score", &[pages, ids, items, q, lse, sums, stride, scale]) => {
            for item in view::<ScoreItem>(items, grid[0] as usize) {
                let keys = compiled.read(pages, ids, item.pages, item.slots, true);
                for (slot, key) in keys.iter().enumerate() {
                    for g in 0..compiled.group.min(grid[1] as usize) {
                        let mut sum = 0f32;
                        for token in 0..item.window {
                            let row = item.query as usize + (token * stride as u32) as usize + g;
                            if item.first_slot + slot as u32 <= item.before + token {
                                let x = float(scale) * dot(compiled.row(q, row), key);
                                let l = view::<f32>(lse, row + 1)[row];
                                sum += (2.0 * (x - l)).exp();
                            }
                        }
                        let at = (item.sums as usize + slot) * compiled.group + g;
                        view_mut::<f32>(sums, at + 1)[at] = sum;
                    }
                }
            }
        }
        (
            "headwise_append",
            &[
                pages,
                slots,
                keys,
                values,
                places,
                scores,
                positions,
                stride,
                k_stride,
                v_stride,
                rows,
                saturated,
            ],
        ) => {
            let slots: &[u64] = view(slots, rows as usize);
            for (row, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != u64::MAX) {
                let total = &mut view_mut::<u64>(saturated, 1)[0];
                *total += compiled.write(pages, slot, row, (keys, k_stride), true);
                *total += compiled.write(pages, slot, row, (values, v_stride), false);
                let page_slots = compiled.layout.slots as u64;
                let at = (slot / page_slots * stride + slot % page_slots) as usize;
                if scores != 0 {
                    view_mut::<u16>(scores, at + 1)[at] = 0;
                }
                if positions != 0 {
                    view_mut::<u32>(positions, at + 1)[at] = view::<u32>(places, row + 1)[row];
                }
            }
        }
        _ => return 700,
    }
    0
}

impl Compiled {
    fn side(&self, key: bool) -> (SlotFormat, Region) {
        let layout = &self.layout;
        if key { (layout.format.k, layout.k) } else { (layout.format.v, layout.v) }
    }

    fn page(&self, pages: u64, page: u32) -> &'static mut [u8] {
        let at = pages + u64::from(page) * self.layout.page_bytes as u64;
        view_mut(at, self.layout.page_bytes)
    }

    /// K or V of slots from page id `first` on.
    fn read(&self, pages: u64, ids: u64, first: u32, slots: u32, key: bool) -> Vec<Vec<f32>> {
        struct Decode<'a>(&'a [u8], Region, usize, usize);
        impl CodecVisitor for Decode<'_> {
            type Output = Vec<f32>;
            fn visit<C: Codec>(self) -> Vec<f32> {
                let Decode(page, region, slot, dim) = self;
                let payload = &page[region.payload + slot * region.payload_stride..];
                let scales = &page[region.scales + slot * region.scale_stride..];
                let mut row = vec![0.0; dim];
                let payload = &payload[..region.payload_stride];
                C::decode(payload, &scales[..region.scale_stride], &mut row);
                row
            }
        }
        let (format, region) = self.side(key);
        (0..slots as usize)
            .map(|slot| {
                let id = first as usize + slot / self.layout.slots;
                let page = self.page(pages, view::<u32>(ids, id + 1)[id]);
                let slot = slot % self.layout.slots;
                format.visit(Decode(page, region, slot, self.layout.channels.k))
            })
            .collect()
    }

    /// Returns how many values were saturated.
    fn write(&self, pages: u64, slot: u64, row: usize, rows: (u64, u64), key: bool) -> u64 {
        struct Encode<'a>(&'a mut [u8], Region, usize, &'a [f32]);
        impl CodecVisitor for Encode<'_> {
            type Output = u64;
            fn visit<C: Codec>(self) -> u64 {
                let Encode(page, region, slot, row) = self;
                let mut row = row.to_vec();
                let saturated = C::saturate(&mut row) as u64;
                let payload = region.payload + slot * region.payload_stride;
                let payload = payload..payload + region.payload_stride;
                let (front, back) = page.split_at_mut(region.scales + slot * region.scale_stride);
                assert!(C::encode(&row, &mut front[payload], &mut back[..region.scale_stride]));
                saturated
            }
        }
        let (format, region) = self.side(key);
        let (dim, slots) = (self.layout.channels.k, self.layout.slots as u64);
        let page = self.page(pages, (slot / slots) as u32);
        let values: &[f32] = view(rows.0 + 4 * row as u64 * rows.1, dim);
        format.visit(Encode(page, region, (slot % slots) as usize, values))
    }

    fn row(&self, rows: u64, row: usize) -> &'static [f32] {
        let dim = self.layout.channels.k;
        view(rows + 4 * (row * dim) as u64, dim)
    }

    fn row_mut(&self, rows: u64, row: usize) -> &'static mut [f32] {
        let dim = self.layout.channels.k;
        view_mut(rows + 4 * (row * dim) as u64, dim)
    }
}

fn attend(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scale: f32) -> (Vec<f32>, f32) {
    let logits: Vec<f64> = keys.iter().map(|k| f64::from(scale * dot(q, k))).collect();
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    let mut out = vec![0.0; q.len()];
    for (x, v) in logits.iter().zip(values) {
        out.iter_mut().zip(v).for_each(|(o, v)| *o += (x.exp() / sum) as f32 * v);
    }
    (out, sum.ln() as f32)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn float(argument: u64) -> f32 {
    f32::from_bits(argument as u32)
}

fn view<T: bytemuck::Pod>(address: u64, len: usize) -> &'static [T] {
    // SAFETY: the fake's device memory is host memory, and launches run alone. What a kernel would
    // read out of bounds, this does too: the tests run under their own allocator's checks.
    unsafe { slice::from_raw_parts(address as *const T, len) }
}

fn view_mut<T: bytemuck::Pod>(address: u64, len: usize) -> &'static mut [T] {
    // SAFETY: as above.
    unsafe { slice::from_raw_parts_mut(address as *mut T, len) }
}
