//! ptxas' report: registers, memory and spills of each kernel.

use serde::{Deserialize, Serialize};

/// What one kernel needs of a multiprocessor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelUsage {
    /// The kernel's (mangled) name.
    pub kernel: String,
    /// Registers of each thread.
    pub registers: u32,
    /// Static shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Stack frame of each thread, in bytes.
    pub stack_bytes: u32,
    /// Bytes that each thread stores to spill registers.
    pub spill_stores: u32,
    /// Bytes that each thread loads to restore spilled registers.
    pub spill_loads: u32,
    /// Barriers of a block.
    pub barriers: u32,
}

impl KernelUsage {
    /// Reads the log of a compilation with `--ptxas-options=-v`, entry by entry.
    pub fn parse(log: &str) -> Vec<Self> {
        let mut kernels: Vec<Self> = Vec::new();
        for line in log.lines() {
            if let Some(name) = quoted_after(line, "Compiling entry function '") {
                kernels.push(Self { kernel: name.to_owned(), ..Self::default() });
                continue;
            }
            let Some(kernel) = kernels.last_mut() else { continue };
            if line.contains("bytes stack frame") {
                kernel.stack_bytes = number_before(line, "bytes stack frame");
                kernel.spill_stores = number_before(line, "bytes spill stores");
                kernel.spill_loads = number_before(line, "bytes spill loads");
            } else if line.contains("registers") {
                kernel.registers = number_before(line, "registers");
                kernel.shared_bytes = number_before(line, "bytes smem");
                kernel.barriers = number_before(line, "barriers");
            }
        }
        kernels
    }
}

fn quoted_after<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    line.split_once(start)?.1.split('\'').next()
}

/// The number right before `what`, or 0: ptxas leaves out what is zero.
fn number_before(line: &str, what: &str) -> u32 {
    let before = line.split_once(what).map_or("", |(before, _)| before);
    before.split_whitespace().next_back().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_entry_of_a_report() {
        let log = "\
ptxas info    : 8 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
    16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers, 16 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 1.000 ms
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
";
        let usage = KernelUsage::parse(log);
        let one = KernelUsage {
            kernel: "one".into(),
            registers: 255,
            shared_bytes: 4096,
            stack_bytes: 16,
            spill_stores: 20,
            spill_loads: 24,
            barriers: 2,
        };
        let two = KernelUsage { kernel: "two".into(), registers: 10, ..KernelUsage::default() };
        assert_eq!(usage, [one, two]);
        assert_eq!(KernelUsage::parse("nothing to see"), []);
    }
}
