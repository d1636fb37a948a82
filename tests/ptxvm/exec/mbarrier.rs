//! Mbarrier objects (ISA §9.7.13.15): arrivals, transaction bytes, phases.

use super::{
    Env, Flow,
    access::{address, shared_address},
};
use crate::ptxvm::{
    error::{FaultKind, Trap},
    inst::{Addr, MbarOp, Src},
    memory::{Who, clocks, clocks::lanes},
    warp::Warp,
};

pub(super) struct Mbar {
    expected: i64,
    pending: i64,
    /// Bytes announced and not yet there; negative while copies run ahead of the announcement.
    tx: i64,
    phase: u64,
    /// What this phase's arrivals knew, and what the last complete phase's did.
    arrivals: Vec<u32>,
    complete: Vec<u32>,
}

impl Mbar {
    fn arrive(&mut self, addr: u64, count: i64, known: &[u32]) -> Result<(), FaultKind> {
        self.arrivals.resize(known.len(), 0);
        clocks::join(&mut self.arrivals, known);
        self.pending -= count;
        if self.pending < 0 {
            let what = format!("arrival past the {} expected of this phase", self.expected);
            return Err(FaultKind::Mbarrier { addr, what });
        }
        self.settle();
        Ok(())
    }

    /// Completes the phase if nothing is outstanding.
    fn settle(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.complete = self.arrivals.clone();
        }
    }

    /// Bytes of a copy by the engine arrived, at this clock of the engine.
    pub(super) fn landed(&mut self, bytes: i64, engine: usize, clock: u32) {
        self.arrivals.resize(engine + 1, 0);
        self.arrivals[engine] = self.arrivals[engine].max(clock);
        self.tx -= bytes;
        self.settle();
    }

    /// A later asynchronous arrival is owed on top of those expected.
    pub(super) fn owe(&mut self) {
        self.pending += 1;
    }
}

impl Env<'_> {
    /// The mbarrier object at `addr`, if `who` may use it.
    pub(super) fn mbar(&mut self, addr: u64, who: Who) -> Result<&mut Mbar, Trap> {
        self.shared.check_mbarrier(addr, who, &self.clocks).map_err(|k| k.at(who.lane))?;
        let missing = FaultKind::Mbarrier { addr, what: "not the start of an object".into() };
        self.mbars.get_mut(&addr).ok_or_else(|| missing.at(who.lane))
    }

    pub(super) fn async_arrival(&mut self, addr: u64, who: Who, known: &[u32]) -> Result<(), Trap> {
        self.mbar(addr, who)?.arrive(addr, 1, known).map_err(|k| k.at(who.lane))
    }

    pub(super) fn mbarrier(
        &mut self,
        w: &mut Warp,
        active: u32,
        op: &MbarOp,
        addr: Addr,
    ) -> Result<Flow, Trap> {
        if let MbarOp::Test { done, phase, parity } = op {
            return self.test(w, active, addr, *done, *phase, *parity);
        }
        for lane in lanes(active) {
            let who = Who { warp: w.index, lane };
            let at = shared_address(address(w, addr, lane));
            let value = |s: Src| w.read_lane(s, lane) as u32;
            match op {
                MbarOp::Init { count } => {
                    let count = i64::from(value(*count));
                    if !(1..1 << 20).contains(&count) {
                        let what = format!("count {count} is not in 1..2^20");
                        return Err(FaultKind::Mbarrier { addr: at, what }.at(lane));
                    }
                    self.shared.make_mbarrier(at, who, &self.clocks).map_err(|k| k.at(lane))?;
                    let (arrivals, complete) = (Vec::new(), Vec::new());
                    let (expected, pending) = (count, count);
                    let new = Mbar { expected, pending, tx: 0, phase: 0, arrivals, complete };
                    self.mbars.insert(at, new);
                }
                MbarOp::Inval => {
                    self.mbar(at, who)?;
                    self.mbars.remove(&at);
                    self.shared.drop_mbarrier(at, who, &self.clocks);
                }
                MbarOp::Arrive { state, count, expect, drop } => {
                    let (count, expect) = (i64::from(value(*count)), expect.map_or(0, value));
                    self.mbar(at, who)?;
                    let known = self.clocks.release(who);
                    let m = self.mbar(at, who)?;
                    let token = m.phase << 20 | m.pending as u64;
                    m.tx += i64::from(expect);
                    m.expected -= if *drop { count } else { 0 };
                    m.arrive(at, count, &known).map_err(|k| k.at(lane))?;
                    if let Some(d) = state {
                        w.reg_mut(d.reg)[lane] = token & d.mask;
                    }
                }
                MbarOp::ExpectTx { bytes } => {
                    let bytes = i64::from(value(*bytes));
                    self.mbar(at, who)?.tx += bytes;
                }
                MbarOp::CompleteTx { bytes } => {
                    let bytes = i64::from(value(*bytes));
                    let m = self.mbar(at, who)?;
                    m.tx -= bytes;
                    m.settle();
                }
                MbarOp::Test { .. } => {}
            }
        }
        Ok(Flow::Next)
    }

    /// `test_wait` and `try_wait`. A wait is also the moment at which the asynchronous copies that
    /// this mbarrier tracks may land: never before somebody looks.
    fn test(
        &mut self,
        w: &mut Warp,
        active: u32,
        addr: Addr,
        done: u32,
        phase: Src,
        parity: bool,
    ) -> Result<Flow, Trap> {
        let (mut open, mut left) = (0u32, active);
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let at = address(w, addr, first);
            let same =
                lanes(left).filter(|&l| address(w, addr, l) == at).fold(0, |m, l| m | 1 << l);
            left &= !same;
            let at = shared_address(at);
            self.mbar(at, Who { warp: w.index, lane: first })?;
            self.land_for(at)?;
            let mut opened = 0;
            for lane in lanes(same) {
                let wanted = w.read_lane(phase, lane);
                let now = self.mbar(at, Who { warp: w.index, lane })?.phase;
                let passed = if parity { now & 1 != wanted & 1 } else { now > wanted >> 20 };
                opened |= u32::from(passed) << lane;
            }
            if opened != 0 {
                let complete = self.mbar(at, Who { warp: w.index, lane: first })?.complete.clone();
                self.clocks.acquire(w.index, opened, &complete);
            }
            open |= opened;
        }
        w.set_pred(done, active, open);
        if open == active {
            return Ok(Flow::Next);
        }
        w.jump(w.at + 1);
        // Whoever this wait is for goes first.
        self.stuck = true;
        w.since_stuck = 0;
        if w.group != 0 {
            w.yield_turn();
        }
        Ok(Flow::Set)
    }
}
