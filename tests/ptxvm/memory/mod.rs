//! Memory with every byte's bounds, initialisation and ordering known.

pub mod clocks;
pub mod global;
pub mod local;
pub mod shared;

use super::inst::Space;

/// Shared memory starts here in its own state space, so that address 0 is never valid.
pub const SHARED_BASE: u64 = 1024;

/// First buffer address in global memory.
pub const GLOBAL_BASE: u64 = 0x7f00_0000_0000;

/// Size of the window that each non-global space has in the generic space.
const WINDOW: u64 = 1 << 32;

/// Where a state space begins in generic addresses; global addresses are generic ones.
pub fn window(space: Space) -> u64 {
    match space {
        Space::Shared => 0x1000_0000_0000,
        Space::Local => 0x1001_0000_0000,
        Space::Const => 0x1002_0000_0000,
        Space::Param => 0x1003_0000_0000,
        Space::Global | Space::Generic => 0,
    }
}

/// The space a generic address lies in, and the address inside it.
pub fn resolve(addr: u64) -> (Space, u64) {
    for space in [Space::Shared, Space::Local, Space::Const, Space::Param] {
        let base = window(space);
        if (base..base + WINDOW).contains(&addr) {
            return (space, addr - base);
        }
    }
    (Space::Global, addr)
}

/// The thread that makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub warp: usize,
    pub lane: usize,
}

impl Who {
    /// Index in the block, counting whole warps.
    pub fn index(self) -> u32 {
        (self.warp * 32 + self.lane) as u32
    }
}
