//! Asynchronous copies. Data lands when a wait says so and at no other time.

use super::{
    Env,
    access::{address, shared_address},
};
use crate::ptxvm::{
    error::{FaultKind, Trap},
    inst::{Addr, CpAsync, Space, Src},
    memory::{Who, clocks, clocks::lanes},
    warp::Warp,
};

/// Something a thread has in flight, in program order.
#[derive(Clone)]
pub(super) enum Pending {
    Copy {
        group: u32,
        dst: u64,
        data: [u8; 16],
        len: usize,
    },
    /// An arrival at an mbarrier once all copies before it have landed.
    Arrive {
        mbar: u64,
        clock: u32,
        known: Vec<u32>,
    },
}

/// A bulk copy in flight.
pub(super) struct Bulk {
    pub dst: u64,
    data: Vec<u8>,
    mbar: u64,
    /// Waits at the mbarrier that still find the data missing.
    delay: usize,
}

impl Env<'_> {
    pub(super) fn cp_async(&mut self, w: &Warp, active: u32, op: &CpAsync) -> Result<(), Trap> {
        let len = op.bytes;
        let ignored = op.ignore.map_or(0, |p| w.pred(p));
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for lane in lanes(active) {
            let who = Who { warp: w.index, lane };
            let (dst, src) = (shared_address(address(w, op.dst, lane)), address(w, op.src, lane));
            let wanted = op.src_bytes.map_or(len as u64, |s| w.read_lane(s, lane) & 0xffff_ffff);
            if wanted > len as u64 {
                let what = format!("source size {wanted} exceeds the copy size {len}");
                return Err(FaultKind::AsyncCopy(what).at(lane));
            }
            let wanted = if ignored >> lane & 1 == 1 { 0 } else { wanted as usize };
            let mut data = [0; 16];
            if wanted != 0 {
                self.read_bytes(w, lane, Space::Global, src, &mut data[..wanted], len)?;
                from.push(src);
                self.stats.global_read_bytes += wanted as u64;
            }
            self.shared.begin_async(dst, len, len, who, &self.clocks).map_err(|k| k.at(lane))?;
            to.push(dst);
            let thread = who.index() as usize;
            let group = self.groups[thread];
            self.copies[thread].push_back(Pending::Copy { group, dst, data, len });
        }
        if !from.is_empty() {
            self.stats.global_request(&mut from, len as u64);
        }
        self.stats.shared_request(&to, len);
        Ok(())
    }

    pub(super) fn cp_wait(
        &mut self,
        w: &Warp,
        active: u32,
        keep: u32,
        all: bool,
    ) -> Result<(), Trap> {
        for lane in lanes(active) {
            let who = Who { warp: w.index, lane };
            let thread = who.index() as usize;
            let limit = if all { u32::MAX } else { self.groups[thread].saturating_sub(keep) };
            let now = self.clocks.now(w.index);
            let mut kept = std::collections::VecDeque::new();
            let mut copies_kept = false;
            for p in std::mem::take(&mut self.copies[thread]) {
                match p {
                    Pending::Copy { group, dst, data, len } if group < limit => {
                        self.shared.land_async(dst, &data[..len], who.index(), now);
                    }
                    Pending::Arrive { mbar, known, .. } if !copies_kept => {
                        self.async_arrival(mbar, who, &known)?;
                    }
                    other => {
                        copies_kept |= matches!(other, Pending::Copy { .. });
                        kept.push_back(other);
                    }
                }
            }
            self.copies[thread] = kept;
        }
        Ok(())
    }

    pub(super) fn cp_arrive(
        &mut self,
        w: &Warp,
        active: u32,
        mbar: Addr,
        noinc: bool,
    ) -> Result<(), Trap> {
        for lane in lanes(active) {
            let who = Who { warp: w.index, lane };
            let mbar = shared_address(address(w, mbar, lane));
            let object = self.mbar(mbar, who)?;
            if !noinc {
                object.owe();
            }
            let clock = self.clocks.now(w.index);
            let known = self.clocks.release(who);
            self.copies[who.index() as usize].push_back(Pending::Arrive { mbar, clock, known });
        }
        Ok(())
    }

    /// Bulk copies are made by a proxy of their own: what was written to the same bytes otherwise comes
    /// before them only if a thread that knows of it has fenced. (That this thread's fence comes before
    /// the copy is not checked.)
    pub(super) fn fence_proxy(&mut self, w: &Warp, active: u32) {
        for lane in lanes(active) {
            let known = self.clocks.release(Who { warp: w.index, lane });
            self.fenced.resize(known.len(), 0);
            clocks::join(&mut self.fenced, &known);
        }
    }

    pub(super) fn cp_bulk(
        &mut self,
        w: &Warp,
        active: u32,
        dst: Addr,
        src: Addr,
        bytes: Src,
        mbar: Addr,
    ) -> Result<(), Trap> {
        for lane in lanes(active) {
            let who = Who { warp: w.index, lane };
            let len = w.read_lane(bytes, lane) as u32 as usize;
            if len == 0 || !len.is_multiple_of(16) {
                let what = format!("bulk copy of {len} bytes is no multiple of 16");
                return Err(FaultKind::AsyncCopy(what).at(lane));
            }
            let (dst, src) = (shared_address(address(w, dst, lane)), address(w, src, lane));
            let mbar = shared_address(address(w, mbar, lane));
            self.mbar(mbar, who)?;
            let mut data = vec![0; len];
            self.read_bytes(w, lane, Space::Global, src, &mut data, 16)?;
            let engine = self.clocks.engine_index();
            for (addr, len) in [(mbar, 8), (dst, len)] {
                let fenced = self.shared.check_fenced(addr, len, &self.fenced, engine);
                fenced.map_err(|k| k.at(lane))?;
            }
            self.shared.begin_async(dst, len, 16, who, &self.clocks).map_err(|k| k.at(lane))?;
            self.stats.global_read_bytes += len as u64;
            self.stats.global_request(&mut [src], len as u64);
            let delay = self.rng.below(3);
            self.bulk.push(Bulk { dst, data, mbar, delay });
        }
        Ok(())
    }

    /// Lets copies land that the mbarrier at `mbar` tracks, somebody being about to look at it.
    pub(super) fn land_for(&mut self, mbar: u64) -> Result<(), Trap> {
        let mut flying = Vec::new();
        for mut b in std::mem::take(&mut self.bulk) {
            if b.mbar != mbar || b.delay > 0 {
                b.delay -= usize::from(b.mbar == mbar);
                flying.push(b);
                continue;
            }
            let engine = self.clocks.engine_index();
            let clock = self.clocks.engine_tick();
            self.shared.land_async(b.dst, &b.data, engine, clock);
            if let Some(m) = self.mbars.get_mut(&mbar) {
                m.landed(b.data.len() as i64, engine as usize, clock);
            }
        }
        self.bulk = flying;
        for thread in 0..self.copies.len() {
            let here = |p: &Pending| matches!(p, Pending::Arrive { mbar: m, .. } if *m == mbar);
            while self.copies[thread].iter().any(here) && self.rng.below(2) == 0 {
                self.land_until_arrival(thread, mbar)?;
            }
        }
        Ok(())
    }

    /// Lands one thread's copies up to its first arrival at `mbar`, arrivals included.
    fn land_until_arrival(&mut self, thread: usize, mbar: u64) -> Result<(), Trap> {
        let who = Who { warp: thread / 32, lane: thread % 32 };
        let is_end = |p: &Pending| matches!(p, Pending::Arrive { mbar: m, .. } if *m == mbar);
        let end = self.copies[thread].iter().position(is_end).map_or(0, |i| i + 1);
        let stamp = self.copies[thread].iter().find_map(|p| match p {
            Pending::Arrive { clock, .. } => Some(*clock),
            Pending::Copy { .. } => None,
        });
        for p in self.copies[thread].drain(..end).collect::<Vec<_>>() {
            match p {
                Pending::Copy { dst, data, len, .. } => {
                    let clock = stamp.unwrap_or(0);
                    self.shared.land_async(dst, &data[..len], who.index(), clock);
                }
                Pending::Arrive { mbar, known, .. } => self.async_arrival(mbar, who, &known)?,
            }
        }
        Ok(())
    }
}
