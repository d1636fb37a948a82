//! One block's shared memory: bytes, and beside each byte who touched it last and when.

use super::{SHARED_BASE, Who, clocks::Clocks};
use crate::ptxvm::error::{FaultKind, Hazard};

const NOBODY: u32 = u32::MAX;
const INIT: u8 = 1;
/// The destination of an asynchronous copy that has not landed.
const IN_FLIGHT: u8 = 2;
/// Part of an mbarrier object.
const MBARRIER: u8 = 4;

/// Reads, or atomic updates, of one warp at one clock.
#[derive(Clone, Copy)]
struct Readers {
    warp: u32,
    clock: u32,
    lanes: u32,
}

#[derive(Clone)]
struct Cell {
    flags: u8,
    writer: u32,
    written: u32,
    readers: Readers,
    more: Option<Box<More>>,
}

/// What few bytes need.
#[derive(Clone, Default)]
struct More {
    /// Reads beyond the last that it is not ordered after.
    readers: Vec<Readers>,
    /// Atomic updates since the last plain write.
    atomics: Vec<Readers>,
}

const EMPTY: Cell = Cell {
    flags: 0,
    writer: NOBODY,
    written: 0,
    readers: Readers { warp: 0, clock: 0, lanes: 0 },
    more: None,
};

/// How an access writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Plain,
    Atomic,
}

pub struct Shared {
    data: Vec<u8>,
    cells: Vec<Cell>,
}

impl Shared {
    pub fn new(bytes: usize) -> Shared {
        Shared { data: vec![0; bytes], cells: vec![EMPTY; bytes] }
    }

    fn range(&self, addr: u64, len: usize, align: usize) -> Result<usize, FaultKind> {
        if !addr.is_multiple_of(align as u64) {
            return Err(FaultKind::Misaligned { space: "shared", addr, align });
        }
        let at = addr.wrapping_sub(SHARED_BASE) as usize;
        if addr < SHARED_BASE || at.checked_add(len).is_none_or(|end| end > self.data.len()) {
            let end = SHARED_BASE + self.data.len() as u64;
            let near = format!("shared memory is {SHARED_BASE:#x}..{end:#x}");
            return Err(FaultKind::OutOfBounds { space: "shared", addr, len, near });
        }
        Ok(at)
    }

    pub fn read(
        &mut self,
        addr: u64,
        out: &mut [u8],
        align: usize,
        who: Who,
        clocks: &Clocks,
    ) -> Result<(), FaultKind> {
        let at = self.range(addr, out.len(), align)?;
        let me =
            Readers { warp: who.warp as u32, clock: clocks.now(who.warp), lanes: 1 << who.lane };
        for (i, cell) in self.cells[at..at + out.len()].iter_mut().enumerate() {
            let addr = addr + i as u64;
            if cell.flags != INIT {
                return Err(not_readable(cell.flags, addr));
            }
            if !clocks_order(clocks, who, cell.writer, cell.written) {
                return Err(race(Hazard::ReadAfterWrite, addr, cell.writer, clocks));
            }
            cell.check_atomics(Hazard::ReadAfterWrite, addr, who, clocks)?;
            let r = &mut cell.readers;
            if r.lanes == 0 || (r.warp == me.warp && r.clock == me.clock) {
                *r = Readers { lanes: r.lanes | me.lanes, ..me };
            } else {
                cell.add_reader(me, who, clocks);
            }
        }
        out.copy_from_slice(&self.data[at..at + out.len()]);
        Ok(())
    }

    pub fn write(
        &mut self,
        addr: u64,
        bytes: &[u8],
        align: usize,
        who: Who,
        kind: Write,
        clocks: &Clocks,
    ) -> Result<(), FaultKind> {
        let at = self.range(addr, bytes.len(), align)?;
        for i in 0..bytes.len() {
            let addr = addr + i as u64;
            self.cells[at + i].check_write(addr, who, kind, clocks)?;
            let cell = &mut self.cells[at + i];
            cell.flags = INIT;
            match kind {
                Write::Plain => cell.stamp(who.index(), clocks.now(who.warp)),
                Write::Atomic => cell.add_atomic(who, clocks),
            }
        }
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Reads for a read-modify-write, which orders itself against other atomics.
    pub fn peek_atomic(
        &mut self,
        addr: u64,
        out: &mut [u8],
        who: Who,
        clocks: &Clocks,
    ) -> Result<(), FaultKind> {
        let at = self.range(addr, out.len(), out.len())?;
        for (i, cell) in self.cells[at..at + out.len()].iter_mut().enumerate() {
            if cell.flags != INIT {
                return Err(not_readable(cell.flags, addr + i as u64));
            }
            cell.check_write(addr + i as u64, who, Write::Atomic, clocks)?;
        }
        out.copy_from_slice(&self.data[at..at + out.len()]);
        Ok(())
    }

    /// An asynchronous copy towards these bytes begins: until it lands nobody may touch them.
    pub fn begin_async(
        &mut self,
        addr: u64,
        len: usize,
        align: usize,
        who: Who,
        clocks: &Clocks,
    ) -> Result<(), FaultKind> {
        let at = self.range(addr, len, align)?;
        for (i, cell) in self.cells[at..at + len].iter_mut().enumerate() {
            cell.check_write(addr + i as u64, who, Write::Plain, clocks)?;
            cell.flags = IN_FLIGHT;
            cell.stamp(who.index(), clocks.now(who.warp));
        }
        Ok(())
    }

    /// Whether what threads wrote to these bytes is before bulk copies, which `fenced` says of each
    /// thread's clock. What the copy engine wrote is.
    pub fn check_fenced(
        &self,
        addr: u64,
        len: usize,
        fenced: &[u32],
        engine: u32,
    ) -> Result<(), FaultKind> {
        let at = self.range(addr, len, 1)?;
        let known = |writer: u32| fenced.get(writer as usize).copied().unwrap_or(0);
        let open = |cell: &Cell| {
            ![NOBODY, engine].contains(&cell.writer) && known(cell.writer) < cell.written
        };
        match self.cells[at..at + len].iter().position(open) {
            Some(i) => Err(FaultKind::Proxy { addr: addr + i as u64 }),
            None => Ok(()),
        }
    }

    /// An asynchronous copy lands; `writer` at `clock` is who wrote the bytes.
    pub fn land_async(&mut self, addr: u64, bytes: &[u8], writer: u32, clock: u32) {
        let at = (addr - SHARED_BASE) as usize;
        for cell in &mut self.cells[at..at + bytes.len()] {
            cell.flags = INIT;
            cell.stamp(writer, clock);
        }
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Turns eight bytes into an mbarrier object.
    pub fn make_mbarrier(&mut self, addr: u64, who: Who, clocks: &Clocks) -> Result<(), FaultKind> {
        let at = self.range(addr, 8, 8)?;
        for (i, cell) in self.cells[at..at + 8].iter_mut().enumerate() {
            cell.check_write(addr + i as u64, who, Write::Plain, clocks)?;
            cell.flags = MBARRIER;
            cell.stamp(who.index(), clocks.now(who.warp));
        }
        Ok(())
    }

    /// Gives an mbarrier's bytes back to ordinary use, uninitialised.
    pub fn drop_mbarrier(&mut self, addr: u64, who: Who, clocks: &Clocks) {
        let at = (addr - SHARED_BASE) as usize;
        for cell in &mut self.cells[at..at + 8] {
            cell.flags = 0;
            cell.stamp(who.index(), clocks.now(who.warp));
        }
    }

    /// Whether the mbarrier at `addr` was initialised before, in the order `who` knows.
    pub fn check_mbarrier(&self, addr: u64, who: Who, clocks: &Clocks) -> Result<(), FaultKind> {
        let at = self.range(addr, 8, 8)?;
        let cell = &self.cells[at];
        if cell.flags & MBARRIER == 0 {
            return Err(FaultKind::Mbarrier { addr, what: "not initialised".into() });
        }
        if !clocks.ordered(who, cell.writer, cell.written) {
            return Err(race(Hazard::ReadAfterWrite, addr, cell.writer, clocks));
        }
        Ok(())
    }
}

impl Cell {
    fn stamp(&mut self, writer: u32, clock: u32) {
        self.writer = writer;
        self.written = clock;
        self.readers.lanes = 0;
        self.more = None;
    }

    #[inline]
    fn check_write(
        &self,
        addr: u64,
        who: Who,
        kind: Write,
        clocks: &Clocks,
    ) -> Result<(), FaultKind> {
        if self.flags & (IN_FLIGHT | MBARRIER) != 0 {
            return Err(not_writable(self.flags, addr));
        }
        if kind == Write::Plain {
            self.check_atomics(Hazard::WriteAfterWrite, addr, who, clocks)?;
        }
        if !clocks_order(clocks, who, self.writer, self.written) {
            return Err(race(Hazard::WriteAfterWrite, addr, self.writer, clocks));
        }
        if self.readers.lanes != 0 {
            self.check_readers(addr, who, &self.readers, clocks)?;
            for r in self.more.iter().flat_map(|m| &m.readers) {
                self.check_readers(addr, who, r, clocks)?;
            }
        }
        Ok(())
    }

    fn check_readers(
        &self,
        addr: u64,
        who: Who,
        r: &Readers,
        clocks: &Clocks,
    ) -> Result<(), FaultKind> {
        match r.unordered(who, clocks) {
            Some(thread) => Err(race(Hazard::WriteAfterRead, addr, thread, clocks)),
            None => Ok(()),
        }
    }

    /// Atomics need an order against plain accesses, not among themselves.
    fn check_atomics(
        &self,
        hazard: Hazard,
        addr: u64,
        who: Who,
        clocks: &Clocks,
    ) -> Result<(), FaultKind> {
        let Some(more) = &self.more else { return Ok(()) };
        match more.atomics.iter().find_map(|a| a.unordered(who, clocks)) {
            Some(thread) => Err(race(hazard, addr, thread, clocks)),
            None => Ok(()),
        }
    }

    fn add_atomic(&mut self, who: Who, clocks: &Clocks) {
        let me =
            Readers { warp: who.warp as u32, clock: clocks.now(who.warp), lanes: 1 << who.lane };
        let atomics = &mut self.more.get_or_insert_default().atomics;
        if let Some(a) = atomics.iter_mut().find(|a| a.warp == me.warp && a.clock == me.clock) {
            a.lanes |= me.lanes;
        } else {
            atomics.retain(|a| a.unordered(who, clocks).is_some());
            atomics.push(me);
        }
    }

    fn add_reader(&mut self, me: Readers, who: Who, clocks: &Clocks) {
        // Reads that this one is ordered after need no memory of their own: whoever is ordered
        // after this read is ordered after them.
        let more = &mut self.more.get_or_insert_default().readers;
        more.push(self.readers);
        if let Some(r) = more.iter_mut().find(|r| r.warp == me.warp && r.clock == me.clock) {
            r.lanes |= me.lanes;
        } else {
            more.retain(|r| r.unordered(who, clocks).is_some());
            more.push(me);
        }
        if let Some(r) = more.pop() {
            self.readers = r;
        }
    }
}

impl Readers {
    /// A thread among these readers that `who` is not ordered after.
    fn unordered(&self, who: Who, clocks: &Clocks) -> Option<u32> {
        super::clocks::lanes(self.lanes)
            .map(|l| self.warp * 32 + l as u32)
            .find(|&t| !clocks.ordered(who, t, self.clock))
    }
}

#[inline]
fn clocks_order(clocks: &Clocks, who: Who, writer: u32, written: u32) -> bool {
    writer == NOBODY || clocks.ordered(who, writer, written)
}

fn not_readable(flags: u8, addr: u64) -> FaultKind {
    if flags & IN_FLIGHT != 0 {
        FaultKind::AsyncInFlight { addr }
    } else if flags & MBARRIER != 0 {
        FaultKind::Mbarrier { addr, what: "accessed as plain memory".into() }
    } else {
        let near = "shared memory starts uninitialised in every block".into();
        FaultKind::Uninitialised { space: "shared", addr, near }
    }
}

fn not_writable(flags: u8, addr: u64) -> FaultKind {
    if flags & IN_FLIGHT != 0 {
        FaultKind::AsyncInFlight { addr }
    } else {
        FaultKind::Mbarrier { addr, what: "accessed as plain memory".into() }
    }
}

/// A race fault; names the other thread.
fn race(hazard: Hazard, addr: u64, thread: u32, clocks: &Clocks) -> FaultKind {
    let other = if thread == clocks.engine_index() {
        "an asynchronous bulk copy".into()
    } else {
        format!("warp {} lane {}", thread / 32, thread % 32)
    };
    FaultKind::Race { space: "shared", hazard, addr, other }
}
