//! Rows that a kernel encodes are the rows that the host encodes.

use std::sync::Arc;

use super::{VerifyError, noise::Noise, same_bytes};
use crate::{
    cuda::{
        Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{
        CudaStore, Kernels,
        attention::{Appender, NO_SLOT, NewRows},
        eviction::SlotData,
        kernels::Specialisation,
    },
    format::{Overflow, PageFormat, PageLayout},
    store::{HostStore, PageStore, Rows, TablePages},
};

const PAGES: usize = 12;
const PAGE_BYTES: usize = 8192;

/// Appends rows on the device and on the host to pages of one format, and compares all bytes, scores and
/// positions, and how many values were saturated. Rows stand apart, slots come in no order, and one row is
/// skipped. Magnitudes are any that f32 has, and some values are none that a format holds.
pub fn append_agrees_with_the_host(
    kernels: &Kernels,
    format: PageFormat,
    head_dim: usize,
    seed: u64,
) -> Result<(), VerifyError> {
    let mut noise = Noise::new(seed);
    let layout = PageLayout::new(format, head_dim, PAGE_BYTES)?;
    let stream = Arc::new(Stream::new(kernels.context())?);
    let mut device = CudaStore::new(Arc::clone(&stream), PAGES, PAGE_BYTES)?;
    let mut host = HostStore::new(PAGES, PAGE_BYTES)?;
    let all: Vec<u32> = (0..PAGES as u32).collect();
    device.poison(&all)?;
    host.poison(&all)?;

    let count = PAGES * layout.slots / 2;
    let mut slots: Vec<u64> = (0..(PAGES * layout.slots) as u64).collect();
    for i in (1..slots.len()).rev() {
        slots.swap(i, noise.below(i + 1));
    }
    slots.truncate(count);
    slots[count / 2] = NO_SLOT;
    let stride = head_dim + 4;
    let rows = [(); 2].map(|()| wild_rows(&mut noise, count, stride));
    let mut saturated = 0;
    for (row, &slot) in slots.iter().enumerate().filter(|&(_, &slot)| slot != NO_SLOT) {
        let pages = [(slot / layout.slots as u64) as u32];
        let table = TablePages { pages: &pages, layout: &layout };
        let [k, v] = [0, 1].map(|i| Rows::dense(&rows[i][row * stride..][..head_dim], head_dim));
        let slot = slot as usize % layout.slots;
        saturated += host.append_with(table, slot, k, v, Overflow::Saturate)? as u64;
    }

    let mut staging = Staging::new(kernels.context(), 2, 1 << 16)?;
    let specialisation = Specialisation::new(layout, 1);
    // Data that no slot has yet; a page of the pool has more than this format's slots.
    let each = layout.slots + 1;
    let mut scores = vec![0xa5a5u16; PAGES * each];
    let mut places = vec![0xa5a5_a5a5u32; PAGES * each];
    let mut data = SlotData::new(kernels.context(), PAGES, each)?;
    data.write(&all, &scores, &places, &mut staging, &stream)?;
    let positions: Vec<u32> = (0..count).map(|_| noise.below(1 << 20) as u32).collect();
    for (&slot, &position) in slots.iter().zip(&positions).filter(|&(&slot, _)| slot != NO_SLOT) {
        let at = slot as usize / layout.slots * each + slot as usize % layout.slots;
        (scores[at], places[at]) = (0, position);
    }
    let mut appender = Appender::new(kernels, &specialisation, count, &stream)?;
    appender.plan(&slots, &positions, &mut staging, &stream)?;
    let mut upload = |rows: &[f32]| -> Result<DeviceBuffer, VerifyError> {
        let mut buffer = DeviceBuffer::new(kernels.context(), size_of_val(rows))?;
        staging.upload(&stream, &mut buffer, [(0, bytemuck::cast_slice(rows))])?;
        Ok(buffer)
    };
    let (keys, values) = (upload(&rows[0])?, upload(&rows[1])?);
    let new = NewRows {
        keys: keys.address(),
        values: values.address(),
        key_stride: stride as u32,
        value_stride: stride as u32,
    };
    // SAFETY: the slots are in this arena, `data` is of its pages; both buffers hold `count` rows.
    unsafe { appender.launch(device.address(), &new, data.addresses(), &stream) }?;
    let (mut got, mut got_places) = (vec![0; scores.len()], vec![0; places.len()]);
    data.read(&all, &mut got, &mut got_places, &mut staging, &stream)?;
    let pairs: [(&[u8], &[u8]); 2] = [
        (bytemuck::cast_slice(&got), bytemuck::cast_slice(&scores)),
        (bytemuck::cast_slice(&got_places), bytemuck::cast_slice(&places)),
    ];
    for (what, (got, expected)) in ["scores of new slots", "their positions"].into_iter().zip(pairs)
    {
        same_bytes(what, (format, head_dim), got, expected)?;
    }
    let mut bytes = vec![0; PAGES * PAGE_BYTES];
    device.read_pages(&all, &mut bytes)?;
    same_bytes("append", (format, head_dim), &bytes, host.bytes())?;
    let counted = appender.saturated(&mut staging, &stream)?.to_le_bytes();
    same_bytes("count of saturated values", (format, head_dim), &counted, &saturated.to_le_bytes())
}

/// Rows around a power of two each, from the least to the largest; into every fourth go values that are
/// too large for some format or for all, and NaN.
fn wild_rows(noise: &mut Noise, count: usize, stride: usize) -> Vec<f32> {
    let mut rows = noise.values(count * stride);
    for (i, row) in rows.chunks_mut(stride).enumerate() {
        // Rows of plain numbers too, and of zeros.
        let exponent = if i % 3 == 0 { 0 } else { noise.below(278) as i32 - 150 };
        let scale = if i % 16 == 5 { 0.0 } else { 2f64.powi(exponent) };
        row.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        if i % 4 == 1 {
            for wild in [7e4, -65_519.0, 65_520.0, 3.4e38, -f32::INFINITY, f32::INFINITY, f32::NAN]
            {
                if noise.below(2) == 0 {
                    row[noise.below(stride)] = wild;
                }
            }
        }
    }
    rows
}
