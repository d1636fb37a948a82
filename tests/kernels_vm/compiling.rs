//! What ptxas makes of every kernel.

use headwise::cuda::{
    Arch,
    kernels::KernelFile,
    nvrtc::{KernelUsage, Nvrtc},
};

use super::harness::{BULK, FORMATS, nvrtc, spec};

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
    println!("arch    kernel                 format         head_dim group registers");
    print!("{}", tables.concat());
}

fn check(nvrtc: Nvrtc, arch: Arch) -> String {
    let mut table = String::new();
    for (nth, format) in FORMATS.into_iter().enumerate() {
        for (head_dim, group) in [(64, 3), (128, 8), (256, 4)] {
            for &file in KernelFile::ALL {
                if nth > 0 && !depends_on_format(file) {
                    continue;
                }
                let mut options = vec![spec(format, head_dim, group, 16).defines()];
                if file == KernelFile::Decode && arch.number() >= 90 {
                    options.push([options[0].clone(), vec![BULK.to_owned()]].concat());
                }
                for usage in options.iter().flat_map(|options| usage(nvrtc, file, options, arch)) {
                    let spilled = (usage.spill_stores, usage.spill_loads, usage.stack_bytes);
                    assert_eq!(spilled, (0, 0, 0), "{usage:?} {format} {head_dim} {arch}");
                    table += &format!(
                        "{:<8}{:<23}{:<15}{head_dim:>8}{group:>6}{:>10}\n",
                        arch.to_string(),
                        usage.kernel,
                        format.to_string(),
                        usage.registers,
                    );
                }
            }
        }
    }
    table
}

fn usage(nvrtc: Nvrtc, file: KernelFile, options: &[String], arch: Arch) -> Vec<KernelUsage> {
    let cubin = nvrtc.cubin(&file.source(), options, arch).unwrap();
    assert!(!cubin.log.contains("warning"), "{}", cubin.log);
    assert!(!cubin.usage.is_empty(), "{}", cubin.log);
    cubin.usage
}
