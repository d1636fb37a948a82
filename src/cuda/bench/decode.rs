//! Decode attention over pages.

use std::fmt;

use half::f16;

use super::{
    BenchError, BenchPlan, DecodeRow,
    arena::{Arena, upload},
    clock::Clock,
};
use crate::{
    cuda::{
        Arch, Kernels, Staging,
        attention::{DecodeHead, Decoder, Tensors},
        driver::DeviceBuffer,
        kernels::Specialisation,
        verify::Noise,
    },
    format::{PageFormat, PageLayout, SlotFormat},
};

/// Spread of ragged lengths: the standard deviation of their natural logarithm. At 0.7, one head in
/// forty is four times as long as the middle one, as after a global eviction.
const SPREAD: f32 = 0.7;

/// One place of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub format: PageFormat,
    pub length: usize,
    pub batch: usize,
    pub ragged: bool,
    pub bulk: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, length, batch, .. } = self;
        write!(f, "{format}, {batch} sequences of {length}")?;
        f.write_str(if self.ragged { ", ragged" } else { "" })?;
        f.write_str(if self.bulk { ", bulk copies" } else { "" })
    }
}

/// The whole grid.
pub fn cases(plan: &BenchPlan, arch: Arch) -> Vec<Case> {
    let mut cases = Vec::new();
    for &format in &plan.formats {
        for &length in &plan.lengths {
            for &batch in &plan.batches {
                for bulk in [false, true] {
                    if bulk && arch < Arch::FIRST_BULK {
                        continue;
                    }
                    for ragged in [false, true] {
                        cases.push(Case { format, length, batch, ragged, bulk });
                    }
                }
            }
        }
    }
    cases
}

impl Case {
    /// Slots of each (sequence, KV head). Ragged or not, they are as many in all.
    fn slots(&self, plan: &BenchPlan) -> Vec<u32> {
        let heads = self.batch * plan.kv_heads;
        if !self.ragged {
            return vec![self.length as u32; heads];
        }
        let mut noise = Noise::new(self.length as u64 ^ (heads as u64) << 32);
        // The sum of twelve uniform values is near enough to a normal one.
        let mut weight = || {
            let normal: f32 = (0..12).map(|_| noise.value()).sum::<f32>() / 2.0;
            f64::from((SPREAD * normal).exp())
        };
        let weights: Vec<f64> = (0..heads).map(|_| weight()).collect();
        let scale = (self.length * heads) as f64 / weights.iter().sum::<f64>();
        weights.iter().map(|weight| (weight * scale).round().max(1.0) as u32).collect()
    }

    /// Bytes of its pages.
    pub fn page_bytes(&self, layout: &PageLayout, plan: &BenchPlan) -> usize {
        pages_of(&self.slots(plan), layout) * layout.page_bytes
    }
}

fn pages_of(slots: &[u32], layout: &PageLayout) -> usize {
    slots.iter().map(|&slots| (slots as usize).div_ceil(layout.slots)).sum()
}

/// Times one case.
pub fn measure(
    clock: &mut Clock,
    kernels: &Kernels,
    arena: &Arena,
    plan: &BenchPlan,
    case: &Case,
) -> Result<DecodeRow, BenchError> {
    let (layout, stream) = (arena.layout, clock.stream.clone());
    let context = stream.context();
    let slots = case.slots(plan);
    let specialisation = Specialisation {
        io: SlotFormat::F16,
        bulk: case.bulk,
        ..Specialisation::new(layout, plan.group)
    };
    let mut staging = Staging::new(context, 2, 1 << 20)?;
    let mut pages = 0;
    let heads: Vec<DecodeHead> = (0u32..)
        .zip(&slots)
        .map(|(i, &slots)| {
            let head = DecodeHead { query: i * plan.group as u32, pages, slots, logits: 0 };
            pages += slots.div_ceil(layout.slots as u32);
            head
        })
        .collect();
    let mut decoder = Decoder::new(kernels, specialisation, heads.len(), &stream)?;
    decoder.plan(&heads, &mut staging, &stream)?;
    let rows = heads.len() * plan.group;
    let values = Noise::new(3).values(rows * plan.head_dim);
    let values: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
    let queries = upload(&values, &mut staging, &stream)?;
    let out = DeviceBuffer::new(context, rows * plan.head_dim * size_of::<f16>())?;
    let lse = DeviceBuffer::new(context, rows * size_of::<f32>())?;
    let tensors = |turn: usize| Tensors {
        pages: arena.pages(),
        page_ids: arena.ids(turn, pages as usize),
        queries: queries.address(),
        out: out.address(),
        lse: lse.address(),
        logits: 0,
        scale: 1.0 / (plan.head_dim as f32).sqrt(),
    };
    let seconds = clock.median(&mut |turn, stream| {
        // SAFETY: the ids of every turn are pages of the arena, and the buffers hold all rows.
        unsafe { decoder.launch(&tensors(turn), stream) }
    })?;
    let bytes = slots.iter().map(|&slots| slots as usize).sum::<usize>() * layout.slot_bytes();
    Ok(DecodeRow {
        format: case.format,
        length: case.length,
        batch: case.batch,
        ragged: case.ragged,
        bulk: case.bulk,
        bytes,
        micros: seconds * 1e6,
        gbps: bytes as f64 / seconds / 1e9,
        share: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_heads_hold_as_much_as_uniform_ones() {
        let plan = BenchPlan::default();
        let case = Case {
            format: PageFormat::default(),
            length: 32_768,
            batch: 8,
            ragged: true,
            bulk: false,
        };
        let slots = case.slots(&plan);
        let sum: usize = slots.iter().map(|&slots| slots as usize).sum();
        assert!(sum.abs_diff(64 * 32_768) <= 64, "{sum}");
        let (least, most) = (slots.iter().min().unwrap(), slots.iter().max().unwrap());
        assert!(*most > 5 * *least, "{least}..{most}");
        let even = Case { ragged: false, ..case };
        assert_eq!(even.slots(&plan), [32_768; 64]);
    }

    #[test]
    fn bulk_copies_are_measured_where_there_are_any() {
        let plan = BenchPlan::default();
        let old = cases(&plan, Arch::OLDEST);
        let new = cases(&plan, Arch::FIRST_BULK);
        assert!(old.iter().all(|case| !case.bulk));
        assert_eq!((old.len(), new.len()), (4 * 5 * 3 * 2, 4 * 5 * 3 * 4));
    }
}
