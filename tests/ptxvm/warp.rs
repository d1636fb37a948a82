//! One warp: registers, program counters, and which lanes run next.

use super::{
    inst::{PSrc, Src},
    memory::{clocks::lanes, local::Plain},
};

/// Instructions a group runs while other lanes of its warp could run, before they get a turn.
const TURN: u32 = 4096;

/// Why a lane does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    None,
    /// For the other lanes of `members` to reach the same kind of instruction (`key`).
    Sync {
        key: u32,
        members: u32,
    },
    Barrier {
        id: u32,
        aligned: bool,
    },
}

pub struct Warp {
    pub index: usize,
    regs: Vec<[u64; 32]>,
    pub preds: Vec<u32>,
    /// Valid for lanes outside the running group.
    pub pc: [u32; 32],
    /// Lanes that have not exited.
    pub live: u32,
    /// Live lanes that wait for nothing.
    pub runnable: u32,
    pub wait: [Wait; 32],
    pub local: Vec<Plain>,
    /// Lanes that gave up their turn.
    yielded: u32,
    /// The group that runs in lock step, and its program counter.
    pub group: u32,
    pub at: u32,
    /// Least program counter of the runnable lanes outside the group.
    others: u32,
    streak: u32,
    /// Instructions since an mbarrier last stayed closed to this warp.
    pub since_stuck: u32,
}

impl Warp {
    pub fn new(index: usize, born: u32, registers: usize, predicates: usize) -> Warp {
        Warp {
            index,
            regs: vec![[0; 32]; registers],
            preds: vec![0; predicates],
            pc: [0; 32],
            live: born,
            runnable: born,
            wait: [Wait::None; 32],
            local: Vec::new(),
            yielded: 0,
            group: 0,
            at: 0,
            others: u32::MAX,
            streak: 0,
            since_stuck: u32::MAX,
        }
    }

    #[inline]
    pub fn read(&self, s: Src) -> [u64; 32] {
        match s {
            Src::Reg(r) => self.regs[r as usize],
            Src::Imm(v) => [v; 32],
        }
    }

    #[inline]
    pub fn read_lane(&self, s: Src, lane: usize) -> u64 {
        match s {
            Src::Reg(r) => self.regs[r as usize][lane],
            Src::Imm(v) => v,
        }
    }

    #[inline]
    pub fn reg_mut(&mut self, reg: u32) -> &mut [u64; 32] {
        &mut self.regs[reg as usize]
    }

    /// The lanes in which a predicate holds.
    #[inline]
    pub fn pred(&self, p: PSrc) -> u32 {
        match p {
            PSrc::Reg { reg, negated: false } => self.preds[reg as usize],
            PSrc::Reg { reg, negated: true } => !self.preds[reg as usize],
            PSrc::Const(true) => u32::MAX,
            PSrc::Const(false) => 0,
        }
    }

    #[inline]
    pub fn set_pred(&mut self, reg: u32, lanes: u32, value: u32) {
        let p = &mut self.preds[reg as usize];
        *p = (*p & !lanes) | (value & lanes);
    }

    /// Makes sure a group is chosen. False when no lane can run.
    pub fn select(&mut self) -> bool {
        if self.group != 0 {
            return true;
        }
        if self.runnable & !self.yielded == 0 {
            self.yielded = 0;
        }
        let first = self.runnable & !self.yielded;
        let Some(at) = lanes(first).map(|l| self.pc[l]).min() else { return false };
        self.at = at;
        self.group = lanes(self.runnable).filter(|&l| self.pc[l] == at).fold(0, |m, l| m | 1 << l);
        let rest = self.runnable & !self.group;
        self.others = lanes(rest).map(|l| self.pc[l]).min().unwrap_or(u32::MAX);
        if rest == 0 {
            self.streak = 0;
        }
        true
    }

    /// Dissolves the group: each of its lanes keeps the program counter.
    pub fn dissolve(&mut self) {
        lanes(self.group).for_each(|l| self.pc[l] = self.at);
        self.group = 0;
    }

    /// Moves the whole group to `pc`, and lets other lanes join or run where they should.
    #[inline]
    pub fn jump(&mut self, pc: u32) {
        self.at = pc;
        if self.others != u32::MAX {
            self.streak += 1;
            if pc >= self.others {
                self.dissolve();
            } else if self.streak > TURN {
                self.yield_turn();
            }
        }
    }

    /// Dissolves the group at a branch that some of its lanes take.
    pub fn dissolve_split(&mut self, taken: u32, target: u32, next: u32) {
        for l in lanes(self.group) {
            self.pc[l] = if taken >> l & 1 == 1 { target } else { next };
        }
        self.group = 0;
    }

    /// Lets the other lanes of the warp go first.
    pub fn yield_turn(&mut self) {
        self.yielded |= self.group;
        self.streak = 0;
        self.dissolve();
    }

    /// Lanes `left` leave the group: they exit or wait at the current instruction.
    pub fn leave(&mut self, left: u32) {
        lanes(left).for_each(|l| self.pc[l] = self.at);
        self.group &= !left;
        self.runnable &= !left;
    }

    /// A waiting lane goes on after its instruction.
    pub fn resume(&mut self, lane: usize) {
        self.wait[lane] = Wait::None;
        self.pc[lane] += 1;
        self.runnable |= 1 << lane;
        // The group may have to merge with this lane or give way to it.
        self.others = self.others.min(self.pc[lane]);
    }
}
