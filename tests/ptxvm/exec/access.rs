//! Loads, stores and atomics in every state space.

use super::Env;
use crate::ptxvm::{
    error::{FaultKind, Trap},
    inst::{Addr, Atomic, Dst, Space, Src},
    memory::{Who, clocks::lanes, global::Accessor, resolve, shared::Write, window},
    types::{Ty, sign_extend},
    warp::Warp,
};

/// The addresses of a warp's request in one space, for the counters.
#[derive(Default)]
struct Requests {
    global: Vec<u64>,
    shared: Vec<u64>,
}

impl Requests {
    fn note(&mut self, space: Space, addr: u64) {
        match space {
            Space::Global => self.global.push(addr),
            Space::Shared => self.shared.push(addr),
            _ => {}
        }
    }
}

pub(super) fn address(w: &Warp, a: Addr, lane: usize) -> u64 {
    w.read_lane(a.base, lane).wrapping_add(a.off)
}

fn placed(space: Space, addr: u64) -> (Space, u64) {
    match space {
        Space::Generic => resolve(addr),
        // Shared addresses are 32 bits; their upper half never counts.
        Space::Shared => (space, addr & 0xffff_ffff),
        _ => (space, addr),
    }
}

impl Env<'_> {
    /// Reads `out` for one lane from wherever the address lies.
    pub(super) fn read_bytes(
        &mut self,
        w: &Warp,
        lane: usize,
        space: Space,
        addr: u64,
        out: &mut [u8],
        align: usize,
    ) -> Result<(), Trap> {
        let who = Who { warp: w.index, lane };
        match space {
            Space::Shared => self.shared.read(addr, out, align, who, &self.clocks),
            Space::Local => w.local[lane].read(addr, out),
            Space::Const => self.launch.consts.read(addr, out),
            Space::Param => self.launch.params.read(addr, out),
            Space::Global | Space::Generic => {
                let by = Accessor { block: self.block_index, who, clocks: &self.clocks };
                self.global.read(addr, out, align, by)
            }
        }
        .map_err(|kind| kind.at(lane))
    }

    fn count(&mut self, mut requests: Requests, bytes: usize, atomic: bool, write: bool) {
        if !requests.global.is_empty() {
            let total = (requests.global.len() * bytes) as u64;
            if write || atomic {
                self.stats.global_written_bytes += total;
            }
            if !write || atomic {
                self.stats.global_read_bytes += total;
            }
            self.stats.global_request(&mut requests.global, bytes as u64);
        }
        if !requests.shared.is_empty() {
            self.stats.shared_request(&requests.shared, bytes);
        }
    }

    pub(super) fn load(
        &mut self,
        w: &mut Warp,
        active: u32,
        space: Space,
        ty: Ty,
        dst: &[Option<Dst>],
        addr: Addr,
    ) -> Result<(), Trap> {
        let bytes = ty.bytes();
        let total = bytes * dst.len();
        let mut requests = Requests::default();
        let base = w.read(addr.base);
        for lane in lanes(active) {
            let (space, at) = placed(space, base[lane].wrapping_add(addr.off));
            requests.note(space, at);
            let mut buffer = [0; 64];
            if matches!(space, Space::Shared | Space::Global) {
                self.read_bytes(w, lane, space, at, &mut buffer[..total], total)?;
            } else {
                for (i, part) in buffer[..total].chunks_mut(bytes).enumerate() {
                    self.read_bytes(w, lane, space, at + (i * bytes) as u64, part, bytes)?;
                }
            }
            for (d, part) in dst.iter().zip(buffer.chunks(bytes)) {
                let Some(d) = d else { continue };
                let mut cell = [0; 8];
                cell[..bytes].copy_from_slice(part);
                let v = u64::from_le_bytes(cell);
                let v = if ty.signed() { sign_extend(v, ty.bits()) as u64 } else { v };
                w.reg_mut(d.reg)[lane] = v & d.mask;
            }
        }
        self.count(requests, total, false, false);
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        w: &mut Warp,
        active: u32,
        space: Space,
        bytes: usize,
        src: &[Src],
        addr: Addr,
    ) -> Result<(), Trap> {
        let total = bytes * src.len();
        let mut requests = Requests::default();
        for lane in lanes(active) {
            let (space, at) = placed(space, address(w, addr, lane));
            requests.note(space, at);
            let mut buffer = [0; 64];
            for (s, part) in src.iter().zip(buffer.chunks_mut(bytes)) {
                part.copy_from_slice(&w.read_lane(*s, lane).to_le_bytes()[..bytes]);
            }
            let (buffer, who) = (&buffer[..total], Who { warp: w.index, lane });
            match space {
                Space::Shared => {
                    self.shared.write(at, buffer, total, who, Write::Plain, &self.clocks)
                }
                Space::Local => buffer
                    .chunks(bytes)
                    .enumerate()
                    .try_for_each(|(i, p)| w.local[lane].write(at + (i * bytes) as u64, p)),
                Space::Const | Space::Param => Err(FaultKind::ReadOnly {
                    space: space.name(),
                    addr: at,
                    near: "this state space is read-only".into(),
                }),
                Space::Global | Space::Generic => {
                    let by = Accessor { block: self.block_index, who, clocks: &self.clocks };
                    self.global.write(at, buffer, total, by)
                }
            }
            .map_err(|kind| kind.at(lane))?;
        }
        self.count(requests, total, false, true);
        Ok(())
    }

    pub(super) fn atomic(&mut self, w: &mut Warp, active: u32, a: &Atomic) -> Result<(), Trap> {
        let total = a.bytes * a.value.len();
        let mut requests = Requests::default();
        for lane in lanes(active) {
            let (space, at) = placed(a.space, address(w, a.addr, lane));
            requests.note(space, at);
            if !at.is_multiple_of(total as u64) {
                let space = space.name();
                return Err(FaultKind::Misaligned { space, addr: at, align: total }.at(lane));
            }
            let compare = a.compare.map_or(0, |c| w.read_lane(c, lane));
            for (i, &value) in a.value.iter().enumerate() {
                let value = w.read_lane(value, lane);
                let at = at + (i * a.bytes) as u64;
                let who = Who { warp: w.index, lane };
                let old = match space {
                    Space::Global => {
                        self.global.update(at, a.bytes, |old| (a.f)(old, value, compare))
                    }
                    Space::Shared => self.shared_atomic(at, who, a, value, compare),
                    _ => Err(FaultKind::Undefined(format!("atomic on {} memory", space.name()))),
                };
                let old = old.map_err(|kind| kind.at(lane))?;
                if let Some(d) = a.dst {
                    w.reg_mut(d.reg)[lane] = old & d.mask;
                }
            }
            self.stats.atomics += 1;
        }
        self.count(requests, total, true, true);
        Ok(())
    }

    fn shared_atomic(
        &mut self,
        at: u64,
        who: Who,
        a: &Atomic,
        value: u64,
        compare: u64,
    ) -> Result<u64, FaultKind> {
        let mut old = [0; 8];
        self.shared.peek_atomic(at, &mut old[..a.bytes], who, &self.clocks)?;
        let old = u64::from_le_bytes(old);
        let new = (a.f)(old, value, compare).to_le_bytes();
        self.shared.write(at, &new[..a.bytes], a.bytes, who, Write::Atomic, &self.clocks)?;
        Ok(old)
    }

    pub(super) fn isspacep(&mut self, w: &mut Warp, active: u32, dst: u32, space: Space, a: Src) {
        let holds = lanes(active)
            .filter(|&l| resolve(w.read_lane(a, l)).0 == space)
            .fold(0, |m, l| m | 1 << l);
        w.set_pred(dst, active, holds);
    }
}

/// The address in its own space of an operand that must lie in shared memory.
pub(super) fn shared_address(addr: u64) -> u64 {
    if addr >= window(Space::Shared) { resolve(addr).1 } else { addr & 0xffff_ffff }
}
