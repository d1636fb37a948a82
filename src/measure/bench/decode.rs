//! Decode attention over pages.

use std::fmt;

use half::f16;

use super::{
    arena::{Arena, upload},
    clock::{Clock, Launch},
    error::BenchError,
    plan::BenchPlan,
    report::DecodeRow,
};
use crate::{
    cuda::{
        Arch, Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{
        DeviceError, Kernels,
        attention::{DecodeHead, Decoder, Scoring, Tensors},
        kernels::Specialisation,
    },
    format::{PageFormat, PageLayout, SlotFormat},
    measure::verify::Noise,
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
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, length, batch } = self;
        write!(f, "{format}, {batch} sequences of {length}")
    }
}

/// The whole grid.
pub fn cases(plan: &BenchPlan) -> Vec<Case> {
    let mut cases = Vec::new();
    for &format in &plan.formats {
        for &length in &plan.lengths {
            cases.extend(plan.batches.iter().map(|&batch| Case { format, length, batch }));
        }
    }
    cases
}

impl Case {
    /// Slots of each (sequence, KV head). Ragged or not, they are as many in all.
    fn slots(&self, plan: &BenchPlan, ragged: bool) -> Vec<u32> {
        let heads = self.batch * plan.kv_heads;
        if !ragged {
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

    /// Bytes of its pages, where they are most.
    pub fn page_bytes(&self, layout: &PageLayout, plan: &BenchPlan) -> usize {
        let pages = |ragged| pages_of(&self.slots(plan, ragged), layout);
        pages(false).max(pages(true)) * layout.page_bytes
    }
}

fn pages_of(slots: &[u32], layout: &PageLayout) -> usize {
    slots.iter().map(|&slots| (slots as usize).div_ceil(layout.slots)).sum()
}

/// One way to decode a case, ready to launch.
struct Variant {
    ragged: bool,
    bulk: bool,
    decoder: Decoder,
    pages: usize,
    bytes: usize,
}

impl Variant {
    fn new(
        kernels: &Kernels,
        layout: PageLayout,
        plan: &BenchPlan,
        case: &Case,
        (ragged, bulk): (bool, bool),
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let slots = case.slots(plan, ragged);
        let specialisation =
            Specialisation { io: SlotFormat::F16, bulk, ..Specialisation::new(layout, plan.group) };
        let mut pages = 0;
        let heads: Vec<DecodeHead> = (0u32..)
            .zip(&slots)
            .map(|(i, &slots)| {
                let head = DecodeHead { query: i * plan.group as u32, pages, slots, logits: 0 };
                pages += slots.div_ceil(layout.slots as u32);
                head
            })
            .collect();
        let mut decoder = Decoder::new(kernels, specialisation, heads.len(), stream)?;
        let mut staging = Staging::new(stream.context(), 2, 1 << 20)?;
        decoder.plan(&heads, &mut staging, stream)?;
        stream.synchronize()?;
        let slots: usize = slots.iter().map(|&slots| slots as usize).sum();
        let bytes = slots * layout.slot_bytes();
        Ok(Self { ragged, bulk, decoder, pages: pages as usize, bytes })
    }
}

/// Times one case in all its variants, by turns: heads alike and ragged, and, where the device has a
/// copy engine for pages, with and without it.
pub fn measure(
    clock: &mut Clock,
    kernels: &Kernels,
    arena: &Arena,
    plan: &BenchPlan,
    case: &Case,
) -> Result<Vec<DecodeRow>, BenchError> {
    let stream = clock.stream.clone();
    let context = stream.context();
    let bulk = context.info().arch >= Arch::FIRST_BULK;
    let variants = [(false, false), (true, false), (false, true), (true, true)]
        .into_iter()
        .filter(|variant| bulk || !variant.1)
        .map(|variant| Variant::new(kernels, arena.layout, plan, case, variant, &stream))
        .collect::<Result<Vec<_>, _>>()?;
    let rows = case.batch * plan.kv_heads * plan.group;
    let values = Noise::new(3).values(rows * plan.head_dim);
    let values: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
    let queries = upload(&values, &mut Staging::new(context, 2, 1 << 20)?, &stream)?;
    let out = DeviceBuffer::new(context, rows * plan.head_dim * size_of::<f16>())?;
    let lse = DeviceBuffer::new(context, rows * size_of::<f32>())?;
    let mut launches: Vec<_> = variants
        .iter()
        .map(|variant| {
            let (queries, out, lse) = (queries.address(), out.address(), lse.address());
            move |turn: usize, stream: &Stream| {
                let tensors = Tensors {
                    pages: arena.pages(),
                    page_ids: arena.ids(turn, variant.pages),
                    queries,
                    out,
                    lse,
                    logits: 0,
                    scoring: Scoring::scaled(1.0 / (plan.head_dim as f32).sqrt()),
                };
                // SAFETY: the ids of every turn are pages of the arena, and the buffers hold all rows.
                unsafe { variant.decoder.launch(&tensors, stream) }
            }
        })
        .collect();
    let mut launches: Vec<&mut Launch<'_>> =
        launches.iter_mut().map(|launch| launch as &mut Launch<'_>).collect();
    let times = clock.medians(&mut launches)?;
    let row = |(variant, seconds): (&Variant, f64)| DecodeRow {
        format: case.format,
        length: case.length,
        batch: case.batch,
        ragged: variant.ragged,
        bulk: variant.bulk,
        bytes: variant.bytes,
        micros: seconds * 1e6,
        gbps: variant.bytes as f64 / seconds / 1e9,
        share: 0.0,
    };
    Ok(variants.iter().zip(times).map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_heads_hold_as_much_as_uniform_ones() {
        let plan = BenchPlan::default();
        let case = Case { format: PageFormat::default(), length: 32_768, batch: 8 };
        let slots = case.slots(&plan, true);
        let sum: usize = slots.iter().map(|&slots| slots as usize).sum();
        assert!(sum.abs_diff(64 * 32_768) <= 64, "{sum}");
        let (least, most) = (slots.iter().min().unwrap(), slots.iter().max().unwrap());
        assert!(*most > 5 * *least, "{least}..{most}");
        assert_eq!(case.slots(&plan, false), [32_768; 64]);
        assert_eq!(cases(&plan).len(), 4 * 5 * 3);
    }
}
