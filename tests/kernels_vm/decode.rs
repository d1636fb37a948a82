//! Decode attention and the merge of its partial results.

use headwise::{
    cuda::nvrtc::Nvrtc,
    device::{
        kernels::{KernelFile, Specialisation},
        work::{WorkCost, WorkLimits, WorkPlan},
    },
    format::{PageFormat, SlotFormat},
};

use super::{
    harness::{FORMATS, Kernel, Random, arch, bulk_decode, floats, kernel, nvrtc, spec, words},
    world::{Free, World, difference, error},
};
use crate::ptxvm::{Arg, DevicePtr, Error, Machine, Stats};

/// Errors of decoding against f64, relative to the largest output: queries and probabilities keep
/// 16 bits or more, so what is left is far below any page format's own error.
pub const TOLERANCE: f64 = 5e-5;

/// How a decode is divided.
#[derive(Clone, Copy)]
pub struct Split {
    pub lists: u32,
    pub min_slots: u32,
}

/// Heads are never cut.
pub const WHOLE: Split = Split { lists: 2, min_slots: u32::MAX };

pub struct Decoded {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    /// `[slots, group]`, tables one after another; empty for kernels without logits.
    pub logits: Vec<f32>,
    pub stats: Stats,
    pub partials: u32,
}

/// Runs decode over a world, and merge if heads were cut.
pub fn decode(
    decode: &Kernel,
    merge: &Kernel,
    world: &World,
    logits: bool,
    split: Split,
    free: Free,
    seed: u64,
) -> Result<Decoded, Error> {
    let mut vm = Machine::new(seed);
    // A mutant that never ends is caught too.
    vm.set_budget(1 << 24);
    let (group, head_dim) = (world.group as u32, world.layout.channels.k);
    let cost = WorkCost {
        page_slots: world.layout.slots as u32,
        slot_bytes: world.layout.slot_bytes() as u32,
        page: 128,
        range: 2048,
    };
    let limits = WorkLimits { lists: split.lists, min_slots: split.min_slots };
    let plan = WorkPlan::new(&world.lengths(), &cost, &limits);

    let pages = world.upload(&mut vm, free);
    let (ids, starts) = world.tables(&mut vm);
    let slots: usize = world.heads.iter().map(|head| head.slots).sum();
    let before = |head: u32| -> u32 { world.lengths()[..head as usize].iter().sum() };
    let items = plan.ranges.iter().flat_map(|range| {
        let logits = before(range.head) + range.first_page * cost.page_slots;
        let pages = starts[range.head as usize] + range.first_page;
        [range.head * group, pages, range.slots, range.partial, logits, 0]
    });
    let items = vm.alloc_read_only("items", &words(items));
    let lists = vm.alloc_read_only("lists", &words(plan.lists.iter().copied()));
    let rows = world.queries.len();
    let queries = world.queries.concat().into_iter().map(f32::to_bits);
    let queries = vm.alloc_read_only("queries", &words(queries));
    let out = vm.alloc_uninit("out", 4 * rows * head_dim);
    let lse = vm.alloc_uninit("lse", 4 * rows);
    let partial_rows = plan.partials as usize * world.group;
    let partial_out = vm.alloc_uninit("partial out", 4 * partial_rows * head_dim);
    let partial_lse = vm.alloc_uninit("partial lse", 4 * partial_rows);
    let raw =
        if logits { vm.alloc_uninit("logits", 4 * slots * world.group) } else { DevicePtr(0) };
    let args = [pages, ids, items, lists, queries, out, lse, partial_out, partial_lse, raw]
        .map(Arg::ptr)
        .into_iter()
        .chain([Arg::f32(world.scale())]);
    let grid = [split.lists, group.div_ceil(16), 1];
    let stats = decode.run(&mut vm, grid, &args.collect::<Vec<_>>())?;
    if !plan.merges.is_empty() {
        let merges = plan.merges.iter().flat_map(|m| [m.head * group, m.first, m.count]);
        let merges = vm.alloc_read_only("merges", &words(merges));
        let args = [merges, partial_out, partial_lse, out, lse].map(Arg::ptr);
        merge.run(&mut vm, [plan.merges.len() as u32, group, 1], &args)?;
    }
    Ok(Decoded {
        out: floats(vm.read(out)?),
        lse: floats(vm.read(lse)?),
        logits: if logits { floats(vm.read(raw)?) } else { Vec::new() },
        stats,
        partials: plan.partials,
    })
}

/// The largest relative error of outputs, or absolute one of log-sum-exps.
pub fn decode_error(world: &World, got: &Decoded) -> f64 {
    let mut worst = 0f64;
    for (row, query) in world.queries.iter().enumerate() {
        let head = row / world.group;
        let d = world.layout.channels.k;
        let (out, lse) = world.attend(head, query, world.heads[head].slots);
        worst = worst.max(error(&got.out[row * d..(row + 1) * d], &out));
        worst = worst.max(difference(&got.lse[row..=row], &[lse]));
    }
    worst
}

/// Empty, one slot, a partial page, a whole page, a page and a slot, many pages.
pub fn ragged(page_slots: usize) -> Vec<usize> {
    vec![0, 1, page_slots - 1, page_slots, page_slots + 1, 5 * page_slots + 3]
}

fn check(nvrtc: Nvrtc, spec: &Specialisation, arch_name: &str, split: Split) -> f64 {
    let decode = kernel(nvrtc, KernelFile::Decode, spec, arch(arch_name));
    check_kernel(&decode, nvrtc, spec, arch_name, split)
}

fn check_kernel(
    decode_kernel: &Kernel,
    nvrtc: Nvrtc,
    spec: &Specialisation,
    arch_name: &str,
    split: Split,
) -> f64 {
    let merge = kernel(nvrtc, KernelFile::Merge, spec, arch(arch_name));
    let world = World::new(spec, &ragged(spec.layout.slots), 11);
    let mut worst = 0f64;
    for (free, seed) in [(Free::Nan, 1), (Free::Forbidden, 2)] {
        let got = decode(decode_kernel, &merge, &world, spec.logits, split, free, seed);
        let got = got.unwrap_or_else(|e| panic!("{spec:?} {arch_name}: {e}"));
        assert_eq!(got.partials > 0, split.min_slots < u32::MAX);
        let error = decode_error(&world, &got);
        assert!(error <= TOLERANCE, "{spec:?} {arch_name}: {error:e}");
        worst = worst.max(error);
    }
    worst
}

/// Page slots that make tiles partial, one tile, and several tiles.
fn page_slots(format: PageFormat) -> usize {
    if format.k == SlotFormat::I8 { 31 } else { 16 }
}

#[test]
fn decode_matches_f64_for_every_format_and_width() {
    let Some(nvrtc) = nvrtc() else { return };
    println!("{:<14}{:>9}{:>7}{:>12}", "format", "head_dim", "group", "error");
    for format in FORMATS {
        for (head_dim, group) in [(64, 3), (128, 8), (256, 4), (128, 1)] {
            let spec = spec(format, head_dim, group, page_slots(format));
            let error = check(nvrtc, &spec, "sm_90", WHOLE);
            println!("{:<14}{head_dim:>9}{group:>7}{error:>12.1e}", format.to_string());
        }
    }
}

#[test]
fn decode_matches_f64_on_every_architecture() {
    let Some(nvrtc) = nvrtc() else { return };
    for arch in ["sm_80", "sm_89", "sm_100"] {
        for format in [SlotFormat::F16, SlotFormat::I8].map(PageFormat::both) {
            check(nvrtc, &spec(format, 128, 4, page_slots(format)), arch, WHOLE);
        }
    }
}

#[test]
fn loads_by_the_copy_engine_give_the_same() {
    let Some(nvrtc) = nvrtc() else { return };
    for format in FORMATS {
        let spec = spec(format, 128, 4, page_slots(format));
        for name in ["sm_90", "sm_100"] {
            let decode = bulk_decode(nvrtc, &spec, arch(name), &[]);
            check_kernel(&decode, nvrtc, &spec, name, WHOLE);
            check_kernel(&decode, nvrtc, &spec, name, Split { lists: 3, min_slots: 16 });
        }
    }
}

#[test]
fn partial_results_merge_to_the_whole() {
    let Some(nvrtc) = nvrtc() else { return };
    for format in [SlotFormat::F16, SlotFormat::I8].map(PageFormat::both) {
        let split = Split { lists: 5, min_slots: 16 };
        check(nvrtc, &spec(format, 64, 3, 16), "sm_90", split);
    }
}

/// More partials than a block takes at once; some of no slots, a merge of nothing else, and padding.
#[test]
fn many_partial_results_merge() {
    let Some(nvrtc) = nvrtc() else { return };
    let group = 3;
    for head_dim in [64, 80, 256] {
        let spec = spec(PageFormat::default(), head_dim, group, 16);
        let merge = kernel(nvrtc, KernelFile::Merge, &spec, arch("sm_90"));
        let counts = [300, 2, 4];
        let total: usize = counts.iter().sum();
        let mut random = Random(7);
        let out = random.floats(total * group * head_dim, 1.0);
        let mut lse = random.floats(total * group, 20.0);
        for (i, lse) in lse.iter_mut().enumerate() {
            if i / group % 5 == 1 || i >= 302 * group {
                *lse = f32::NEG_INFINITY;
            }
        }
        let mut vm = Machine::new(2);
        let merges = [[0, 0, 300], [u32::MAX, 0, 0], [3, 300, 2], [6, 302, 4]];
        let bits = |values: &[f32]| words(values.iter().map(|v| v.to_bits()));
        let rows = counts.len() * group;
        let got_out = vm.alloc_uninit("out", 4 * rows * head_dim);
        let got_lse = vm.alloc_uninit("lse", 4 * rows);
        let args = [
            vm.alloc_read_only("merges", &words(merges.into_iter().flatten())),
            vm.alloc_read_only("partial_out", &bits(&out)),
            vm.alloc_read_only("partial_lse", &bits(&lse)),
            got_out,
            got_lse,
        ];
        merge.run(&mut vm, [4, group as u32, 1], &args.map(Arg::ptr)).unwrap();
        let (got_out, got_lse) =
            (floats(vm.read(got_out).unwrap()), floats(vm.read(got_lse).unwrap()));
        let mut first = 0;
        for (merge, count) in counts.into_iter().enumerate() {
            for head in 0..group {
                let parts = (first..first + count).map(|i| i * group + head);
                let weight = |i: usize| f64::from(lse[i]).exp2();
                let sum: f64 = parts.clone().map(weight).sum();
                let row = merge * group + head;
                let expected = if sum == 0.0 { f64::NEG_INFINITY } else { sum.ln() };
                let got = f64::from(got_lse[row]);
                assert!(got == expected || (got - expected).abs() < 1e-5, "{got} {expected}");
                for channel in 0..head_dim {
                    let value = |i: usize| weight(i) * f64::from(out[i * head_dim + channel]);
                    let expected =
                        if sum == 0.0 { 0.0 } else { parts.clone().map(value).sum::<f64>() / sum };
                    let got = f64::from(got_out[row * head_dim + channel]);
                    assert!((got - expected).abs() < 1e-5, "{row} {channel}: {got} {expected}");
                }
            }
            first += count;
        }
    }
}

/// Groups beyond eight multiply twice instead of packing; beyond sixteen they take more blocks.
#[test]
fn large_groups_and_odd_widths() {
    let Some(nvrtc) = nvrtc() else { return };
    for (format, head_dim, group) in
        [(SlotFormat::F16, 128, 12), (SlotFormat::I8, 64, 20), (SlotFormat::I8, 80, 4)]
    {
        check(nvrtc, &spec(PageFormat::both(format), head_dim, group, 24), "sm_90", WHOLE);
    }
    for format in [SlotFormat::F32, SlotFormat::Bf16].map(PageFormat::both) {
        check(nvrtc, &spec(format, 96, 2, 40), "sm_90", WHOLE);
    }
}

#[test]
fn half_precision_queries_and_outputs() {
    let Some(nvrtc) = nvrtc() else { return };
    let mut spec = spec(PageFormat::both(SlotFormat::F16), 64, 4, 16);
    spec.io = SlotFormat::F16;
    let kernels =
        [KernelFile::Decode, KernelFile::Merge].map(|f| kernel(nvrtc, f, &spec, arch("sm_90")));
    let mut world = World::new(&spec, &[40], 5);
    for value in world.queries.iter_mut().flatten() {
        *value = half::f16::from_f32(*value).to_f32();
    }
    let mut vm = Machine::new(3);
    let pages = world.upload(&mut vm, Free::Forbidden);
    let (ids, _) = world.tables(&mut vm);
    let items = vm.alloc_read_only("items", &words([0, 0, 40, u32::MAX, 0, 0]));
    let lists = vm.alloc_read_only("lists", &words([0, 1]));
    let halves = |v: &f32| half::f16::from_f32(*v).to_le_bytes();
    let queries: Vec<u8> = world.queries.iter().flatten().flat_map(halves).collect();
    let queries = vm.alloc_read_only("queries", &queries);
    let out = vm.alloc_uninit("out", 2 * 4 * 64);
    let lse = vm.alloc_uninit("lse", 4 * 4);
    let none = DevicePtr(0);
    let args = [pages, ids, items, lists, queries, out, lse, none, none, none].map(Arg::ptr);
    let args: Vec<Arg> = args.into_iter().chain([Arg::f32(world.scale())]).collect();
    kernels[0].run(&mut vm, [1, 1, 1], &args).unwrap();
    let got: Vec<f32> = vm.read(out).unwrap().chunks_exact(2).map(half_at).collect();
    for (row, query) in world.queries.iter().enumerate() {
        let (want, _) = world.attend(0, query, 40);
        let error = error(&got[row * 64..(row + 1) * 64], &want);
        assert!(error <= 5e-4, "row {row}: {error:e}");
    }
}

fn half_at(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

#[test]
fn logits_are_the_scaled_scores_of_every_slot() {
    let Some(nvrtc) = nvrtc() else { return };
    for (format, group) in [(SlotFormat::F16, 3), (SlotFormat::I8, 12)] {
        let mut spec = spec(PageFormat::both(format), 64, group, 16);
        spec.logits = true;
        let kernels =
            [KernelFile::Decode, KernelFile::Merge].map(|f| kernel(nvrtc, f, &spec, arch("sm_90")));
        let world = World::new(&spec, &[5, 0, 37], 9);
        let split = Split { lists: 3, min_slots: 16 };
        let got =
            decode(&kernels[0], &kernels[1], &world, true, split, Free::Forbidden, 4).unwrap();
        let mut at = 0;
        for (index, head) in world.heads.iter().enumerate() {
            for row in 0..group {
                let query = &world.queries[index * group + row];
                let want = world.scores(index, query, head.slots);
                let want: Vec<f64> = want.iter().map(|s| s * std::f64::consts::LOG2_E).collect();
                let got: Vec<f32> =
                    (0..head.slots).map(|slot| got.logits[(at + slot) * group + row]).collect();
                assert!(error(&got, &want) <= TOLERANCE, "head {index} row {row}");
            }
            at += head.slots;
        }
    }
}
