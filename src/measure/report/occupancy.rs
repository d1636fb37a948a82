//! How many blocks of a kernel a multiprocessor runs at a time.

use std::fmt;

use serde::Serialize;

use crate::cuda::Arch;

/// What keeps more blocks from running on a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Its threads.
    Threads,
    /// Its blocks.
    Blocks,
    /// Its registers.
    Registers,
    /// Its shared memory.
    Shared,
}

/// Limits of a multiprocessor: the *CUDA C++ Programming Guide*, technical specifications per compute
/// capability.
struct Multiprocessor {
    threads: u32,
    blocks: u32,
    shared_bytes: u32,
}

/// Registers of a multiprocessor on every supported architecture, and the unit they are granted in
/// (per warp).
const REGISTERS: (u32, u32) = (65_536, 256);
/// Shared memory that the system takes of each block, in bytes.
const SYSTEM_SHARED: u32 = 1024;

fn multiprocessor(arch: Arch) -> Multiprocessor {
    let (threads, blocks, shared) = match arch.number() {
        80 => (2048, 32, 164),
        86 => (1536, 16, 100),
        87 => (1536, 16, 164),
        89 => (1536, 24, 100),
        90..=119 => (2048, 32, 228),
        _ => (1536, 24, 100),
    };
    Multiprocessor { threads, blocks, shared_bytes: shared << 10 }
}

/// Static and dynamic shared memory that a block can have, in bytes.
pub(super) fn most_shared_bytes(arch: Arch) -> u32 {
    multiprocessor(arch).shared_bytes - SYSTEM_SHARED
}

/// Blocks of a kernel that run on a multiprocessor at a time, and what bounds them.
pub(super) fn occupancy(
    arch: Arch,
    threads: u32,
    registers: u32,
    shared_bytes: u32,
) -> (u32, Bound) {
    let limits = multiprocessor(arch);
    let warps = threads.div_ceil(32).max(1);
    let per_warp = (registers * 32).next_multiple_of(REGISTERS.1).max(1);
    let bounds = [
        (limits.threads / (warps * 32), Bound::Threads),
        (limits.blocks, Bound::Blocks),
        (REGISTERS.0 / per_warp / warps, Bound::Registers),
        (limits.shared_bytes / (shared_bytes + SYSTEM_SHARED), Bound::Shared),
    ];
    bounds.into_iter().min_by_key(|bound| bound.0).unwrap_or((0, Bound::Threads))
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bound::Threads => "threads",
            Bound::Blocks => "blocks",
            Bound::Registers => "registers",
            Bound::Shared => "shared",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of NVIDIA's occupancy calculator.
    #[test]
    fn occupancy_is_that_of_the_calculator() {
        let sm = |number: &str| number.parse::<Arch>().unwrap();
        assert_eq!(occupancy(sm("sm_90"), 128, 32, 0), (16, Bound::Threads));
        assert_eq!(occupancy(sm("sm_90"), 128, 168, 0), (3, Bound::Registers));
        assert_eq!(occupancy(sm("sm_90"), 128, 128, 113 << 10), (2, Bound::Shared));
        assert_eq!(occupancy(sm("sm_80"), 32, 24, 0), (32, Bound::Blocks));
        assert_eq!(occupancy(sm("sm_89"), 256, 40, 49 << 10), (2, Bound::Shared));
    }

    #[test]
    fn a_block_has_what_the_system_leaves_of_a_multiprocessor() {
        let of = |number: &str| most_shared_bytes(number.parse().unwrap()) >> 10;
        assert_eq!(
            ["sm_80", "sm_86", "sm_90", "sm_100", "sm_120"].map(of),
            [163, 99, 227, 227, 99]
        );
        let arch: Arch = "sm_120".parse().unwrap();
        assert_eq!(occupancy(arch, 128, 32, 113 << 10), (0, Bound::Shared));
    }
}
