//! What decoding costs: instructions and memory traffic for each byte of the pages.

use headwise::{
    cuda::nvrtc::Nvrtc,
    device::kernels::KernelFile,
    format::{PageFormat, PageLayout, SlotFormat},
};

use super::{
    decode::{TOLERANCE, WHOLE, decode, decode_error},
    harness::{FORMATS, arch, kernel, nvrtc, spec},
    world::{Free, World},
};

/// H100: 132 multiprocessors × 128 lanes × 1.755 GHz ÷ 3.35 TB/s is 8.9 lane-instructions per byte.
/// Five leave room for what is not issued every cycle.
const LANE_INSTRUCTIONS_PER_BYTE: f64 = 5.0;
const READ_PER_BYTE: f64 = 1.05;
const SECTORS_PER_IDEAL: f64 = 1.05;

struct Cost {
    instructions: f64,
    read: f64,
    sectors: f64,
    ways: f64,
    error: f64,
}

/// One head of `slots` slots, read by one block.
fn cost(nvrtc: Nvrtc, arch_name: &str, format: PageFormat, head_dim: usize, group: usize) -> Cost {
    // Pages of as many bytes as sixteen slots of f16 take: formats share one pool.
    let f16 = PageFormat::both(SlotFormat::F16);
    let page_bytes = PageLayout::page_bytes_for(f16, head_dim, 16).unwrap();
    let mut spec = spec(format, head_dim, group, 1);
    spec.layout = PageLayout::new(format, head_dim, page_bytes).unwrap();
    let slots = spec.layout.slots * (2048 / spec.layout.slots);
    let world = World::new(&spec, &[slots], 3);
    let kernels = [KernelFile::Decode, KernelFile::Merge]
        .map(|file| kernel(nvrtc, file, &spec, arch(arch_name)));
    let got = decode(&kernels[0], &kernels[1], &world, false, WHOLE, Free::Forbidden, 1).unwrap();
    let bytes = world.used_bytes() as f64;
    let stats = &got.stats;
    // Every byte of the pages is copied past L1, none is loaded otherwise.
    assert!(stats.opcode("cp.async.cg").lanes * 16 >= world.used_bytes());
    Cost {
        instructions: stats.lane_instructions() as f64 / bytes,
        read: stats.global_read_bytes as f64 / bytes,
        sectors: stats.sectors as f64 / stats.ideal_sectors as f64,
        ways: stats.shared_ways as f64 / stats.ideal_shared_ways as f64,
        error: decode_error(&world, &got),
    }
}

#[test]
fn decode_stays_within_its_budgets() {
    let Some(nvrtc) = nvrtc() else { return };
    println!("decode of 2,048 slots   per payload byte               per ideal");
    println!("arch   format      head_dim group  lane-instr  read  sectors  shared  max error");
    let mut over = Vec::new();
    let cases = FORMATS.map(|format| ("sm_90", format, 128, 8)).into_iter();
    let narrow = FORMATS.map(|format| ("sm_80", format, 64, 4)).into_iter();
    for (arch, format, head_dim, group) in cases.chain(narrow) {
        let cost = cost(nvrtc, arch, format, head_dim, group);
        let name = format.to_string();
        println!(
            "{arch:<7}{name:<12}{head_dim:>8}{group:>6}{:>12.2}{:>6.2}{:>9.3}{:>8.2}{:>11.1e}",
            cost.instructions, cost.read, cost.sectors, cost.ways, cost.error,
        );
        if cost.instructions > LANE_INSTRUCTIONS_PER_BYTE
            || cost.read > READ_PER_BYTE
            || cost.sectors > SECTORS_PER_IDEAL
            || cost.error > TOLERANCE
        {
            over.push(format!("{arch} {name} {head_dim}"));
        }
    }
    assert!(over.is_empty(), "over budget: {over:?}");
}
