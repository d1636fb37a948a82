//! Global memory: named buffers with guard gaps, and who stored each byte in this launch.

use super::{GLOBAL_BASE, Who, clocks::Clocks};
use crate::ptxvm::error::{FaultKind, Hazard};

/// Bytes between two buffers that belong to nobody.
const GUARD: u64 = 1 << 16;

#[derive(Clone, Copy)]
struct Writer {
    /// Block index plus one; 0 for a byte not stored to in this launch.
    block: u32,
    thread: u32,
    clock: u32,
}

struct Buffer {
    name: String,
    base: u64,
    data: Vec<u8>,
    /// `None` once every byte is initialised.
    init: Option<Vec<bool>>,
    read_only: bool,
    /// Empty until the launch's first store.
    writers: Vec<Writer>,
}

/// The block and thread that make an access, with the block's clocks.
#[derive(Clone, Copy)]
pub struct Accessor<'a> {
    pub block: u32,
    pub who: Who,
    pub clocks: &'a Clocks,
}

#[derive(Default)]
pub struct Global {
    buffers: Vec<Buffer>,
    /// The buffer found last; kernels walk one buffer at a time.
    recent: usize,
}

impl Global {
    /// Adds a buffer and returns its address. `init` false leaves the bytes uninitialised.
    pub fn add(&mut self, name: &str, data: Vec<u8>, init: bool, read_only: bool) -> u64 {
        let last = self.buffers.last().map_or(GLOBAL_BASE, |b| b.end().max(GLOBAL_BASE));
        let base = (last + GUARD).next_multiple_of(512);
        let init = if init { None } else { Some(vec![false; data.len()]) };
        self.buffers.push(Buffer {
            name: name.into(),
            base,
            data,
            init,
            read_only,
            writers: Vec::new(),
        });
        base
    }

    /// Puts a module's variable at its address, unless it is there already.
    pub fn map(&mut self, name: &str, base: u64, data: &[u8], init: bool) {
        let at = self.buffers.partition_point(|b| b.base < base);
        if self.buffers.get(at).is_some_and(|b| b.base == base) {
            return;
        }
        let buffer = Buffer {
            name: name.into(),
            base,
            data: data.into(),
            init: if init { None } else { Some(vec![false; data.len()]) },
            read_only: false,
            writers: Vec::new(),
        };
        self.buffers.insert(at, buffer);
    }

    /// Forgets who stored what: a launch begins.
    pub fn begin_launch(&mut self) {
        self.buffers.iter_mut().for_each(|b| b.writers.clear());
    }

    fn find(&mut self, addr: u64) -> Option<usize> {
        let holds = |b: &Buffer| addr >= b.base && addr - b.base < b.data.len() as u64;
        if self.buffers.get(self.recent).is_some_and(holds) {
            return Some(self.recent);
        }
        let at = self.buffers.partition_point(|b| b.base <= addr).checked_sub(1)?;
        if !holds(&self.buffers[at]) {
            return None;
        }
        self.recent = at;
        Some(at)
    }

    fn range(
        &mut self,
        addr: u64,
        len: usize,
        align: usize,
    ) -> Result<(&mut Buffer, usize), FaultKind> {
        if !addr.is_multiple_of(align as u64) {
            return Err(FaultKind::Misaligned { space: "global", addr, align });
        }
        let found = self.find(addr);
        match found {
            Some(i)
                if self.buffers[i].data.len() - (addr - self.buffers[i].base) as usize >= len =>
            {
                let b = &mut self.buffers[i];
                let at = (addr - b.base) as usize;
                Ok((b, at))
            }
            _ => {
                let near = self.near(addr);
                Err(FaultKind::OutOfBounds { space: "global", addr, len, near })
            }
        }
    }

    fn near(&self, addr: u64) -> String {
        let distance = |b: &&Buffer| addr.abs_diff(b.base).min(addr.abs_diff(b.end()));
        match self.buffers.iter().min_by_key(distance) {
            None => "no buffer exists".into(),
            Some(b) if addr < b.base => format!("{} before {}", b.base - addr, b.name),
            Some(b) => {
                format!("offset {} of {}, which has {} bytes", addr - b.base, b.name, b.data.len())
            }
        }
    }

    pub fn read(
        &mut self,
        addr: u64,
        out: &mut [u8],
        align: usize,
        by: Accessor<'_>,
    ) -> Result<(), FaultKind> {
        let (b, at) = self.range(addr, out.len(), align)?;
        b.check_init(at, out.len())?;
        if !b.writers.is_empty() {
            for (i, w) in b.writers[at..at + out.len()].iter().enumerate() {
                if w.block == by.block + 1 && !by.clocks.ordered(by.who, w.thread, w.clock) {
                    return Err(w.race(Hazard::ReadAfterWrite, addr + i as u64));
                }
            }
        }
        out.copy_from_slice(&b.data[at..at + out.len()]);
        Ok(())
    }

    pub fn write(
        &mut self,
        addr: u64,
        bytes: &[u8],
        align: usize,
        by: Accessor<'_>,
    ) -> Result<(), FaultKind> {
        let (b, at) = self.range(addr, bytes.len(), align)?;
        b.check_writable(at)?;
        if b.writers.is_empty() {
            b.writers = vec![Writer { block: 0, thread: 0, clock: 0 }; b.data.len()];
        }
        let clock = by.clocks.now(by.who.warp);
        let me = Writer { block: by.block + 1, thread: by.who.index(), clock };
        for (i, w) in b.writers[at..at + bytes.len()].iter_mut().enumerate() {
            if w.block != 0 && b.data[at + i] != bytes[i] {
                let same_block = w.block == me.block;
                if !(same_block && by.clocks.ordered(by.who, w.thread, w.clock)) {
                    return Err(w.race(Hazard::WriteAfterWrite, addr + i as u64));
                }
            }
            *w = me;
        }
        b.data[at..at + bytes.len()].copy_from_slice(bytes);
        b.mark_init(at, bytes.len());
        Ok(())
    }

    /// Atomic read-modify-write of at most eight bytes; returns the old value.
    pub fn update(
        &mut self,
        addr: u64,
        len: usize,
        f: impl FnOnce(u64) -> u64,
    ) -> Result<u64, FaultKind> {
        let (b, at) = self.range(addr, len, len)?;
        b.check_writable(at)?;
        b.check_init(at, len)?;
        let mut old = [0; 8];
        old[..len].copy_from_slice(&b.data[at..at + len]);
        let old = u64::from_le_bytes(old);
        b.data[at..at + len].copy_from_slice(&f(old).to_le_bytes()[..len]);
        Ok(old)
    }

    /// A buffer's bytes, for the host.
    pub fn bytes(&self, base: u64) -> Option<&[u8]> {
        self.buffers.iter().find(|b| b.base == base).map(|b| b.data.as_slice())
    }

    /// Whether the host may trust every byte of a buffer, or the first byte that nobody wrote.
    pub fn first_uninitialised(&self, base: u64) -> Option<usize> {
        let b = self.buffers.iter().find(|b| b.base == base)?;
        b.init.as_ref()?.iter().position(|i| !i)
    }

    /// Replaces bytes of a buffer from the host. False when they do not fit.
    pub fn fill(&mut self, base: u64, offset: usize, bytes: &[u8]) -> bool {
        let Some(b) = self.buffers.iter_mut().find(|b| b.base == base) else { return false };
        let Some(end) = offset.checked_add(bytes.len()).filter(|e| *e <= b.data.len()) else {
            return false;
        };
        b.data[offset..end].copy_from_slice(bytes);
        b.mark_init(offset, bytes.len());
        true
    }
}

impl Buffer {
    fn end(&self) -> u64 {
        self.base + self.data.len() as u64
    }

    fn check_writable(&self, at: usize) -> Result<(), FaultKind> {
        if self.read_only {
            let addr = self.base + at as u64;
            return Err(FaultKind::ReadOnly { space: "global", addr, near: self.name.clone() });
        }
        Ok(())
    }

    fn check_init(&self, at: usize, len: usize) -> Result<(), FaultKind> {
        let Some(init) = &self.init else { return Ok(()) };
        match init[at..at + len].iter().position(|i| !i) {
            None => Ok(()),
            Some(i) => {
                let near = format!("offset {} of {}", at + i, self.name);
                let addr = self.base + (at + i) as u64;
                Err(FaultKind::Uninitialised { space: "global", addr, near })
            }
        }
    }

    fn mark_init(&mut self, at: usize, len: usize) {
        if let Some(init) = &mut self.init {
            init[at..at + len].fill(true);
        }
    }
}

impl Writer {
    fn race(&self, hazard: Hazard, addr: u64) -> FaultKind {
        let (warp, lane) = (self.thread / 32, self.thread % 32);
        let other = format!("block {} warp {warp} lane {lane}", self.block - 1);
        FaultKind::Race { space: "global", hazard, addr, other }
    }
}
