//! What ptxas makes of every kernel.

use headwise::{
    cuda::{
        Arch,
        nvrtc::{KernelUsage, Nvrtc, Source},
    },
    device::kernels::{KernelFile, Specialisation, Terms},
    format::SlotFormat,
};

use super::harness::{FORMATS, arch, nvrtc, spec};

/// Files whose code does not depend on the page format, or only on its size.
fn depends_on_format(file: KernelFile) -> bool {
    !matches!(file, KernelFile::Merge | KernelFile::Select | KernelFile::Copy)
}

/// No kernel spills or uses a stack, on any architecture, for any format and width.
#[test]
fn no_kernel_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    let tables: Vec<String> = std::thread::scope(|scope| {
        let threads = Arch::TESTED.map(|arch| scope.spawn(move || check(nvrtc, arch)));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    println!("arch    kernel                 format         head_dim group io   registers layers");
    print!("{}", tables.concat());
}

/// All that layers do beside plain attention, and windows alone, which most such layers have.
const ALL_TERMS: Terms = Terms { window: true, softcap: true, sink_logits: true };
const WINDOW: Terms = Terms { window: true, ..Terms::NONE };

/// Every kernel for f32 queries, and the two of decoding as engines launch them: f16 queries, logits,
/// more than eight query heads.
fn cases(nth: usize) -> Vec<(KernelFile, Specialisation)> {
    let format = FORMATS[nth];
    let mut cases = Vec::new();
    for &file in KernelFile::ALL.iter().filter(|&&file| nth == 0 || depends_on_format(file)) {
        let shapes = [(64, 3), (128, 8), (256, 4)];
        cases.extend(shapes.map(|(head_dim, group)| (file, spec(format, head_dim, group, 16))));
        // The widest have the fewest registers to spare.
        let layered = |terms| Specialisation { terms, ..spec(format, 256, 4, 16) };
        match file {
            KernelFile::Decode | KernelFile::Prefill => {
                cases.push((file, layered(ALL_TERMS)));
                if format.k == SlotFormat::F16 {
                    cases.push((file, layered(WINDOW)));
                }
            }
            KernelFile::Score => cases.push((file, layered(ALL_TERMS).of_score())),
            KernelFile::Merge => cases.push((file, layered(ALL_TERMS).of_merge())),
            _ => {}
        }
        if matches!(file, KernelFile::Decode | KernelFile::Merge) {
            let shapes: &[(usize, usize)] = match (file, format.k, format.v) {
                (KernelFile::Merge, ..) => &[(128, 4), (256, 12)],
                (_, SlotFormat::F32, _) => &[(256, 12)],
                (_, SlotFormat::F16, _) => &[(128, 4), (256, 12)],
                (_, SlotFormat::I8, SlotFormat::I8) => &[(128, 4)],
                _ => &[],
            };
            cases.extend(shapes.iter().map(|&(head_dim, group)| {
                let spec = spec(format, head_dim, group, 16);
                (file, Specialisation { io: SlotFormat::F16, logits: true, ..spec })
            }));
        }
    }
    cases
}

fn check(nvrtc: Nvrtc, arch: Arch) -> String {
    let mut table = String::new();
    for (file, spec) in (0..FORMATS.len()).flat_map(cases) {
        let bulk = file == KernelFile::Decode && arch >= Arch::FIRST_BULK;
        for bulk in [false, true].into_iter().filter(|&of| bulk || !of) {
            let spec = Specialisation { bulk, ..spec };
            let (format, head_dim, group) =
                (spec.layout.format, spec.layout.channels.k, spec.group);
            for usage in usage(nvrtc, file, &spec.defines(), arch) {
                let spilled = (usage.spill_stores, usage.spill_loads, usage.stack_bytes);
                assert_eq!(spilled, (0, 0, 0), "{usage:?} {spec:?} {arch}");
                table += &format!(
                    "{:<8}{:<23}{:<15}{head_dim:>8}{group:>6} {:<5}{:>9} {}\n",
                    arch.to_string(),
                    usage.kernel,
                    format.to_string(),
                    spec.io.to_string(),
                    usage.registers,
                    spec.terms,
                );
            }
        }
    }
    table
}

fn usage(nvrtc: Nvrtc, file: KernelFile, options: &[String], arch: Arch) -> Vec<KernelUsage> {
    let cubin = nvrtc.cubin(&file.source(), options, arch).unwrap_or_else(|e| panic!("{e}"));
    assert!(!cubin.log.contains("warning"), "{}", cubin.log);
    assert!(!cubin.usage.is_empty(), "{}", cubin.log);
    cubin.usage
}

/// The same for the kernels of a model's forward pass, in every specialisation.
#[cfg(feature = "engine")]
#[test]
fn no_kernel_between_products_spills() {
    use headwise::engine::cuda::ArithmeticKernel;
    let Some(nvrtc) = nvrtc() else { return };
    let check = |arch: Arch| {
        let mut table = String::new();
        for &kernel in ArithmeticKernel::ALL {
            for options in kernel.specialisations() {
                let cubin = nvrtc.cubin(&kernel.source(), &options, arch);
                let cubin = cubin.unwrap_or_else(|error| panic!("{error}"));
                assert!(!cubin.log.contains("warning"), "{}", cubin.log);
                let [usage] = &cubin.usage[..] else { panic!("{:?}", cubin.usage) };
                assert_eq!(usage.kernel, kernel.entry());
                let spilled = (usage.spill_stores, usage.spill_loads, usage.stack_bytes);
                assert_eq!(spilled, (0, 0, 0), "{usage:?} {options:?} {arch}");
                let (name, shared) = (&usage.kernel, usage.shared_bytes);
                let options = options[1..].join(" ");
                table += &format!(
                    "{:<8}{name:<23}{:>9}{shared:>9}  {options}\n",
                    arch.to_string(),
                    usage.registers,
                );
            }
        }
        table
    };
    let tables: Vec<String> = std::thread::scope(|scope| {
        let threads = Arch::TESTED.map(|arch| scope.spawn(move || check(arch)));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    println!("arch    kernel                 registers   shared  options");
    print!("{}", tables.concat());
}

/// The shared memory that kernels plan with is what a block can have, on every architecture that the
/// compiler knows from sm_80 on; two blocks fit where the kernels' budget says so.
#[test]
fn blocks_have_the_shared_memory_that_kernels_plan_with() {
    let Some(nvrtc) = nvrtc() else { return };
    // KiB of a multiprocessor (the CUDA C++ Programming Guide, compute capabilities); the system takes
    // one of each block.
    let limits = [
        ("sm_80", 164, 2),
        ("sm_86", 100, 1),
        ("sm_87", 164, 2),
        ("sm_89", 100, 1),
        ("sm_90", 228, 2),
        ("sm_100", 228, 2),
        ("sm_103", 228, 2),
        ("sm_110", 228, 2),
        ("sm_120", 100, 1),
        ("sm_121", 100, 1),
    ];
    let probe = Source {
        name: "probe.cu",
        text: "#include \"attend.cuh\"\n\
               extern \"C\" __device__ const unsigned probe_budget = hw::SHARED_BUDGET;\n\
               extern \"C\" __global__ void probe(unsigned* to) { *to = probe_budget; }",
        headers: KernelFile::Decode.source().headers,
    };
    let options = spec(FORMATS[0], 64, 1, 16).defines();
    for (name, multiprocessor, blocks) in limits {
        let compiled =
            nvrtc.compile(&probe, &options, arch(name)).unwrap_or_else(|e| panic!("{e}"));
        let (_, value) = compiled.ptx.split_once("probe_budget = ").unwrap();
        let budget: u32 = value.split(';').next().unwrap().parse().unwrap();
        let room = |budget: u32| blocks * (budget + 1024) <= multiprocessor << 10;
        assert!(room(budget) && !room(budget + 1024), "{name}: {budget}");
    }
}
