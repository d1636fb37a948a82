//! Rows that a kernel encodes are the rows that the host encodes.

use std::sync::Arc;

use super::{Noise, VerifyError, same_bytes};
use crate::{
    cuda::{
        CudaStore, Kernels, Staging,
        attention::{Appender, NO_SLOT, NewRows},
        driver::{DeviceBuffer, Stream},
        kernels::Specialisation,
    },
    format::{PageFormat, PageLayout},
    store::{HostStore, PageStore, Rows, TablePages},
};

const PAGES: usize = 12;
const PAGE_BYTES: usize = 8192;

/// Appends rows on the device and on the host to pages of one format, and compares all bytes. Rows
/// stand apart, slots come in no order, and one row is skipped.
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
    let rows = [(); 2].map(|()| noise.values(count * stride));
    for (row, &slot) in slots.iter().enumerate().filter(|&(_, &slot)| slot != NO_SLOT) {
        let pages = [(slot / layout.slots as u64) as u32];
        let table = TablePages { pages: &pages, layout: &layout };
        let [k, v] = [0, 1].map(|i| Rows::dense(&rows[i][row * stride..][..head_dim], head_dim));
        host.append(table, slot as usize % layout.slots, k, v)?;
    }

    let mut staging = Staging::new(kernels.context(), 2, 1 << 16)?;
    let specialisation = Specialisation::new(layout, 1);
    let mut appender = Appender::new(kernels, &specialisation, count, &stream)?;
    appender.plan(&slots, &mut staging, &stream)?;
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
    // SAFETY: the slots are in this arena; both buffers hold `count` rows.
    unsafe { appender.launch(device.address(), &new, &stream) }?;
    let mut bytes = vec![0; PAGES * PAGE_BYTES];
    device.read_pages(&all, &mut bytes)?;
    same_bytes("append", (format, head_dim), &bytes, host.bytes())
}
