//! Prefill attention, causal, over pages that hold the chunk already.

use headwise::{
    cuda::nvrtc::Nvrtc,
    device::kernels::{KernelFile, Specialisation},
    format::{PageFormat, SlotFormat},
};

use super::{
    harness::{FORMATS, Kernel, Random, arch, floats, kernel, nvrtc, spec, words},
    world::{Free, World, difference},
};
use crate::ptxvm::{Arg, Error, Machine};

/// Errors against f64, where values are up to 1. Operands are rounded once to the 16-bit float
/// of the format's products (11 bits for f16, 8 for bf16 and i8), twice for f32.
pub fn tolerance(format: PageFormat) -> f64 {
    let of = |format| match format {
        SlotFormat::F32 => 5e-5_f64,
        SlotFormat::F16 => 2e-3,
        SlotFormat::Bf16 | SlotFormat::I8 => 2e-2,
    };
    of(format.k).max(of(format.v))
}

/// Query rows of a chunk: `[tokens][heads × group]`.
pub struct Chunk {
    pub tokens: usize,
    pub queries: Vec<Vec<f32>>,
}

impl Chunk {
    pub fn new(world: &World, tokens: usize) -> Self {
        let mut random = Random(77);
        let rows = tokens * world.heads.len() * world.group;
        let queries = (0..rows).map(|_| random.floats(world.layout.channels.k, 2.0)).collect();
        Self { tokens, queries }
    }

    /// Where the row of (token, head, query head of its group) is.
    pub fn row(&self, world: &World, token: usize, head: usize, of_group: usize) -> usize {
        (token * world.heads.len() + head) * world.group + of_group
    }
}

pub struct Prefilled {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
}

/// Every head attends to a chunk that is its newest slots.
pub fn prefill(
    kernel: &Kernel,
    world: &World,
    chunk: &Chunk,
    free: Free,
    seed: u64,
) -> Result<Prefilled, Error> {
    let mut vm = Machine::new(seed);
    let pages = world.upload(&mut vm, free);
    let (ids, starts) = world.tables(&mut vm);
    let rows = (chunk.tokens * world.group) as u32;
    let most = kernel.rows.unwrap();
    let mut items = Vec::new();
    for (index, head) in world.heads.iter().enumerate() {
        let query = chunk.row(world, 0, index, 0) as u32;
        let before = (head.slots - chunk.tokens) as u32;
        for first in (0..rows).step_by(most as usize) {
            let count = most.min(rows - first);
            items.extend([query, starts[index], head.slots as u32, before, first, count]);
        }
    }
    let grid = [items.len() as u32 / 6, 1, 1];
    let items = vm.alloc_read_only("items", &words(items));
    let queries = words(chunk.queries.concat().into_iter().map(f32::to_bits));
    let out = vm.alloc_uninit("out", queries.len());
    let queries = vm.alloc_read_only("queries", &queries);
    let lse = vm.alloc_uninit("lse", 4 * chunk.queries.len());
    let stride = (world.heads.len() * world.group) as u32;
    let args = [pages, ids, items, queries, out, lse].map(Arg::ptr);
    let args: Vec<Arg> =
        args.into_iter().chain([Arg::u32(stride), Arg::f32(world.scale())]).collect();
    kernel.run(&mut vm, grid, &args)?;
    Ok(Prefilled { out: floats(vm.read(out)?), lse: floats(vm.read(lse)?) })
}

/// The largest error of outputs and of log-sum-exps.
pub fn prefill_error(world: &World, chunk: &Chunk, got: &Prefilled) -> f64 {
    let d = world.layout.channels.k;
    let mut worst = 0f64;
    for (index, head) in world.heads.iter().enumerate() {
        for token in 0..chunk.tokens {
            for of_group in 0..world.group {
                let row = chunk.row(world, token, index, of_group);
                let visible = head.slots - chunk.tokens + token + 1;
                let (out, lse) = world.attend(index, &chunk.queries[row], visible);
                // Outputs are means of values up to 1, whose rounding is what differs.
                worst = worst.max(difference(&got.out[row * d..(row + 1) * d], &out));
                worst = worst.max(difference(&got.lse[row..=row], &[lse]));
            }
        }
    }
    worst
}

fn check(nvrtc: Nvrtc, spec: &Specialisation, arch_name: &str, lengths: &[usize], tokens: usize) {
    let kernel = kernel(nvrtc, KernelFile::Prefill, spec, arch(arch_name));
    let world = World::new(spec, lengths, 21);
    let chunk = Chunk::new(&world, tokens);
    for (free, seed) in [(Free::Nan, 1), (Free::Forbidden, 2)] {
        let got = prefill(&kernel, &world, &chunk, free, seed)
            .unwrap_or_else(|e| panic!("{spec:?} {arch_name}: {e}"));
        let error = prefill_error(&world, &chunk, &got);
        println!(
            "{:<14}{:>5}{:>3}{error:>10.1e}",
            spec.layout.format, spec.layout.channels.k, spec.group
        );
        assert!(error <= tolerance(spec.layout.format), "{spec:?} {arch_name}: {error:e}");
    }
}

#[test]
fn prefill_matches_f64_for_every_format_and_width() {
    let Some(nvrtc) = nvrtc() else { return };
    for format in FORMATS {
        let slots = if format.k == SlotFormat::I8 { 31 } else { 16 };
        for (head_dim, group) in [(64, 3), (128, 8), (256, 4)] {
            check(nvrtc, &spec(format, head_dim, group, slots), "sm_90", &[7, 58], 7);
        }
    }
}

#[test]
fn prefill_of_a_whole_prompt() {
    let Some(nvrtc) = nvrtc() else { return };
    for (arch, format) in [("sm_80", SlotFormat::F16), ("sm_100", SlotFormat::I8)] {
        check(nvrtc, &spec(PageFormat::both(format), 64, 1, 16), arch, &[75], 75);
    }
}
