//! Attention on a host: the reference, and every instruction set that this machine has.

#[path = "conformance/mod.rs"]
mod conformance;
#[path = "common/skipped.rs"]
mod skipped;

use headwise::{
    attend::{Attention, Batch, CpuAttention, Output, Reduce, Reference, SlotScores},
    base::{LayerShape, simd::Isa},
    format::PageFormat,
    store::HostStore,
};

use conformance::{Backend, Effort, Results, Scene, Stored, conformance, shape};

/// Attention over pages in host memory.
struct Host<A>(A);

impl<A: Attention<HostStore>> Backend for Host<A> {
    fn attend(&self, stored: &Stored, scores: SlotScores) -> Results {
        Results::of(&self.0, &stored.host, stored, scores)
    }

    fn refuses(&self, _: &LayerShape) -> bool {
        false
    }

    fn assert_refuses(&self, _: &Stored, what: &str) {
        unreachable!("a host refuses no layer: {what}");
    }

    fn tolerance(&self, _: &LayerShape, _: &[PageFormat]) -> f32 {
        2e-5
    }

    fn effort(&self) -> Effort {
        Effort { decode: DECODE, prefill: PREFILL, single: SINGLE, long: LONG, seeds: 5 }
    }
}

/// Every number of rows that is a kernel of its own, and the passes over more of them; one to eight
/// vectors of each set, whole and partial blocks of channels.
const DECODE: &[(usize, usize)] =
    &[(1, 16), (2, 512), (3, 48), (4, 64), (5, 80), (7, 128), (9, 256), (17, 32), (4, 96)];
const PREFILL: &[(usize, usize)] = &[(1, 128), (3, 64), (4, 80), (17, 16)];
/// Cut when they stream, when they take panels, when they are scored.
const LONG: &[((usize, usize), usize)] = &[((4, 512), 1100), ((1, 16), 5000)];
const SINGLE: &[(usize, usize)] = &[(3, 80), (6, 16), (1, 64)];

/// The instruction set, if this machine has it; says so if not.
fn cpu(isa: Isa, test: &mut dyn FnMut(&dyn Backend)) {
    match CpuAttention::with_isa(isa) {
        Ok(cpu) => test(&Host(cpu)),
        Err(error) => skipped::skipped(error),
    }
}

fn reference(test: &mut dyn FnMut(&dyn Backend)) {
    test(&Host(Reference));
}

fn portable(test: &mut dyn FnMut(&dyn Backend)) {
    cpu(Isa::Portable, test);
}

conformance!(reference: f32, f16, bf16, i8, mixed);
conformance!(portable: f32, f16, bf16, i8, mixed);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;

    fn avx2(test: &mut dyn FnMut(&dyn Backend)) {
        cpu(Isa::Avx2, test);
    }

    fn avx512(test: &mut dyn FnMut(&dyn Backend)) {
        cpu(Isa::Avx512, test);
    }

    conformance!(avx2: f32, f16, bf16, i8, mixed);
    conformance!(avx512: f32, f16, bf16, i8, mixed);
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::*;

    fn neon(test: &mut dyn FnMut(&dyn Backend)) {
        cpu(Isa::Neon, test);
    }

    conformance!(neon: f32, f16, bf16, i8, mixed);
}

#[test]
fn results_do_not_depend_on_threads_or_on_the_rest_of_the_batch() {
    let spans = [(1, vec![5000; 2]), (40, vec![3000; 2]), (3, vec![700; 2])];
    let mut scene = Scene::new(shape(2, (3, 64)), &spans, &[PageFormat::default()], 4);
    // Some rows in doubt, which are settled by whoever finds them.
    scene.q.chunks_exact_mut(64).step_by(50).for_each(|q| q.fill(1e30));
    let stored = scene.store();
    let cpu = CpuAttention::new();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let scores = SlotScores::new(8, Reduce::Group);
        pool.install(|| Results::of(&cpu, &stored.host, &stored, scores))
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        let other = run(threads);
        assert_eq!((&one.out, &one.lse, &one.scores), (&other.out, &other.lse, &other.scores));
    }
    stored.with_batch(|batch| {
        let mut first = 0;
        for span in batch.spans {
            let rows = first * 6..(first + span.tokens) * 6;
            let values = rows.start * 64..rows.end * 64;
            let alone = Batch { spans: &[*span], q: &batch.q[values.clone()], ..*batch };
            let (mut out, mut lse) = (vec![0.0; values.len()], vec![0.0; rows.len()]);
            let output = Output { out: &mut out, lse: &mut lse, scores: None };
            cpu.attend(&stored.host, &alone, output).unwrap();
            assert_eq!((&out[..], &lse[..]), (&one.out[values], &one.lse[rows]));
            first += span.tokens;
        }
    });
}
