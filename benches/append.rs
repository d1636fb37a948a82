//! What it costs to look whether every key and value can be stored: encoding with the check beside the
//! plain conversion, in one run.
//!
//! `cargo bench --no-default-features --bench append`

use std::{hint::black_box, time::Instant};

use half::{bf16, f16, slice::HalfFloatSliceExt};
use headwise::{
    format::{Codec, CodecVisitor, PageFormat, PageLayout, SlotFormat},
    store::{HostStore, PageStore, Rows, TablePages},
};

const HEAD_DIM: usize = 128;
const PAGES: usize = 2048;
const ROUNDS: usize = 41;

/// What the first version stored: no check of floats, and for bytes half-precision scales and a product
/// with the reciprocal.
fn plain(format: SlotFormat, src: &[f32], payload: &mut [u8], scales: &mut [u8]) {
    match format {
        SlotFormat::F32 => payload.copy_from_slice(bytemuck::cast_slice(src)),
        SlotFormat::F16 => {
            bytemuck::cast_slice_mut::<u8, f16>(payload).convert_from_f32_slice(src);
        }
        SlotFormat::Bf16 => {
            bytemuck::cast_slice_mut::<u8, bf16>(payload).convert_from_f32_slice(src);
        }
        SlotFormat::I8 => {
            let groups = src.chunks(32).zip(payload.chunks_mut(32));
            for ((values, bytes), scale) in groups.zip(scales.chunks_exact_mut(2)) {
                let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
                let stored = f16::from_f32((largest / 127.0).min(65_504.0));
                scale.copy_from_slice(&stored.to_le_bytes());
                let step = stored.to_f32();
                let inverse = if step > 0.0 { step.recip() } else { 0.0 };
                for (byte, value) in bytes.iter_mut().zip(values) {
                    *byte = (value * inverse).round_ties_even() as i8 as u8;
                }
            }
        }
    }
}

struct Checked<'a>(&'a [f32], &'a mut [u8], &'a mut [u8]);
impl CodecVisitor for Checked<'_> {
    type Output = bool;
    fn visit<C: Codec>(self) -> bool {
        C::encode(self.0, self.1, self.2)
    }
}

/// Nanoseconds a row of the middle of the rounds, for each of the bodies by turns.
fn medians<const N: usize>(rows: usize, mut bodies: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut times = [(); N].map(|()| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for (body, times) in bodies.iter_mut().zip(&mut times) {
            let start = Instant::now();
            body();
            times.push(start.elapsed().as_nanos() as f64 / rows as f64);
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    })
}

fn main() {
    let values: Vec<f32> =
        (0..PAGES * HEAD_DIM).map(|i| ((i * 7919) % 2003) as f32 / 500.0 - 2.0).collect();
    let rows = || values.chunks_exact(HEAD_DIM);
    println!("{HEAD_DIM} channels, ns a row           plain  checked  ratio   append (K and V)");
    for &format in SlotFormat::ALL {
        let layout = PageLayout::new(PageFormat::both(format), HEAD_DIM, 64 * HEAD_DIM).unwrap();
        let (payload, scales) = (layout.k.payload_stride, layout.k.scale_stride);
        let mut bytes = vec![0u8; PAGES * payload];
        let mut steps = vec![0u8; PAGES * scales + 16];
        let mut again = (bytes.clone(), steps.clone());
        let mut store = HostStore::new(PAGES, layout.page_bytes).unwrap();
        let ids: Vec<u32> = (0..PAGES as u32).map(|i| i * 1223 % PAGES as u32).collect();
        let mut held = true;
        let [plain, checked, append] = medians(
            PAGES,
            [
                &mut || {
                    for (i, row) in rows().enumerate() {
                        let scales = &mut steps[i * scales..][..scales];
                        plain(black_box(format), row, &mut bytes[i * payload..][..payload], scales);
                    }
                },
                &mut || {
                    for (i, row) in rows().enumerate() {
                        let payload = &mut again.0[i * payload..][..payload];
                        let scales = &mut again.1[i * scales..][..scales];
                        held &= black_box(format).visit(Checked(row, payload, scales));
                    }
                },
                // As a decode step does: a row to each of many tables.
                &mut || {
                    for (row, id) in rows().zip(&ids) {
                        let table = TablePages { pages: std::slice::from_ref(id), layout: &layout };
                        let row = Rows::dense(row, HEAD_DIM);
                        store.append(table, 3, row, row).unwrap();
                    }
                },
            ],
        );
        assert!(held);
        let (format, ratio) = (format.to_string(), checked / plain);
        println!("{format:<30}{plain:>9.1}{checked:>9.1}{ratio:>7.2}{append:>10.1}");
    }
}
