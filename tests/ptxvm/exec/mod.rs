//! Runs one block: picks warps at random, each for a random number of instructions.

mod access;
mod alu;
mod barrier;
mod copy;
mod mbarrier;
mod mma;
mod warp;

use std::collections::{HashMap, VecDeque};

use super::{
    counters::Stats,
    error::{Error, Fault, FaultKind, Trap},
    inst::{Inst, Kernel, Op, Special},
    memory::{
        clocks::{Clocks, lanes},
        global::Global,
        local::Plain,
        shared::Shared,
    },
    rng::Rng,
    warp::{Wait, Warp},
};
use barrier::BlockBarrier;
use copy::{Bulk, Pending};
use mbarrier::Mbar;

/// Longest run of one warp before another gets a chance.
const MAX_TURN: usize = 64;

/// A warp that met a closed mbarrier this few instructions ago does nothing but wait.
const SPIN: u32 = 64;

/// Turns in a row in which every warp only waits, after which nothing will open an mbarrier.
const MAX_IDLE_TURNS: u32 = 2_000;

/// What all blocks of a launch share.
pub struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub consts: &'a Plain,
    pub params: &'a Plain,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: usize,
    pub dynamic_shared: u32,
}

/// Everything of a running block but its warps.
struct Env<'a> {
    launch: &'a Launch<'a>,
    global: &'a mut Global,
    stats: &'a mut Stats,
    rng: &'a mut Rng,
    budget: &'a mut u64,
    block_index: u32,
    shared: Shared,
    clocks: Clocks,
    barriers: [BlockBarrier; 16],
    /// Set when a lane arrived at a block barrier or exited.
    barrier_news: bool,
    mbars: HashMap<u64, Mbar>,
    /// Asynchronous copies of each thread that have not landed, and its open group.
    copies: Vec<VecDeque<Pending>>,
    groups: Vec<u32>,
    bulk: Vec<Bulk>,
    /// Up to which clock of each thread its writes are before bulk copies.
    fenced: Vec<u32>,
    /// The running turn ended because an mbarrier did not open.
    stuck: bool,
    clock: u64,
}

/// How an instruction left the program counter of its group.
enum Flow {
    Next,
    /// The program counters are set already.
    Set,
}

/// Runs the block with the given index.
pub fn run_block(
    launch: &Launch<'_>,
    block_index: u32,
    global: &mut Global,
    stats: &mut Stats,
    rng: &mut Rng,
    budget: &mut u64,
) -> Result<(), Error> {
    let [gx, gy, _] = launch.grid;
    let at = [block_index % gx, block_index / gx % gy, block_index / gx / gy];
    let threads = launch.block.iter().product::<u32>();
    let born: Vec<u32> = (0..threads.div_ceil(32))
        .map(|w| if threads - w * 32 >= 32 { u32::MAX } else { (1 << (threads - w * 32)) - 1 })
        .collect();
    let mut warps: Vec<Warp> =
        born.iter().enumerate().map(|(i, &b)| launch.warp(i, b, at)).collect();
    let mut env = Env {
        launch,
        global,
        stats,
        rng,
        budget,
        block_index,
        shared: Shared::new(launch.shared_bytes),
        clocks: Clocks::new(&born),
        barriers: Default::default(),
        barrier_news: false,
        mbars: HashMap::new(),
        copies: vec![VecDeque::new(); born.len() * 32],
        groups: vec![0; born.len() * 32],
        bulk: Vec::new(),
        fenced: Vec::new(),
        stuck: false,
        clock: 0,
    };
    let mut idle = 0;
    loop {
        let ready: Vec<usize> = (0..warps.len()).filter(|&i| warps[i].runnable != 0).collect();
        if ready.is_empty() {
            if warps.iter().all(|w| w.live == 0) {
                break;
            }
            let (warp, kind) = env.stalled(&warps);
            return Err(env.fault(&warps[warp], warp_place(&warps[warp]), kind.into()));
        }
        let turn_of = ready[env.rng.below(ready.len())];
        let w = &mut warps[turn_of];
        let turn = 1 + env.rng.below(MAX_TURN);
        env.stuck = false;
        if let Err(trap) = env.run(w, turn) {
            return Err(env.fault(w, w.at, trap));
        }
        let waits = |w: &Warp| w.runnable == 0 || w.since_stuck <= SPIN;
        idle = if warps.iter().all(waits) { idle + 1 } else { 0 };
        let w = &warps[turn_of];
        if idle > MAX_IDLE_TURNS && w.runnable != 0 {
            let what = "every warp that could run waits at an mbarrier that nothing completes";
            let trap = FaultKind::Deadlock(what.into()).into();
            return Err(env.fault(w, warp_place(w), trap));
        }
        if env.barrier_news {
            env.barrier_news = false;
            if let Err((warp, kind)) = env.release_barriers(&mut warps) {
                return Err(env.fault(&warps[warp], warp_place(&warps[warp]), kind.into()));
            }
        }
    }
    if let Some(b) = env.bulk.first() {
        let what = format!("the block ended with a bulk copy to {:#x} in flight", b.dst);
        return Err(env.fault(&warps[0], warp_place(&warps[0]), FaultKind::AsyncCopy(what).into()));
    }
    Ok(())
}

/// An instruction that stands for where a warp is: that of its first live lane.
fn warp_place(w: &Warp) -> u32 {
    let lane = if w.live == 0 { 0 } else { w.live.trailing_zeros() as usize };
    w.pc[lane]
}

impl Launch<'_> {
    /// A warp at the kernel's start, its special registers set.
    fn warp(&self, index: usize, born: u32, at: [u32; 3]) -> Warp {
        let mut w = Warp::new(index, born, self.kernel.registers, self.kernel.predicates);
        w.local = (0..32).map(|_| Plain::new("local", self.kernel.local_bytes)).collect();
        let [bx, by, bz] = self.block;
        let warps = (bx * by * bz).div_ceil(32);
        for &(special, reg) in &self.kernel.specials {
            for (lane, cell) in w.reg_mut(reg).iter_mut().enumerate() {
                let t = index as u32 * 32 + lane as u32;
                let bit = 1u32 << lane;
                *cell = u64::from(match special {
                    Special::Tid(0) => t % bx,
                    Special::Tid(1) => t / bx % by,
                    Special::Tid(_) => t / bx / by,
                    Special::Ntid(a) => self.block[a],
                    Special::Ctaid(a) => at[a],
                    Special::Nctaid(a) => self.grid[a],
                    Special::Lane => lane as u32,
                    Special::Warp => index as u32,
                    Special::Nwarp => warps,
                    Special::MaskEq => bit,
                    Special::MaskLt => bit - 1,
                    Special::MaskLe => (bit - 1) | bit,
                    Special::MaskGt => !((bit - 1) | bit),
                    Special::MaskGe => !(bit - 1),
                    Special::DynamicShared => self.dynamic_shared,
                    Special::TotalShared => self.shared_bytes as u32,
                    Special::Zero => 0,
                    Special::One => 1,
                });
            }
        }
        w
    }
}

impl Env<'_> {
    fn fault(&self, w: &Warp, at: u32, trap: Trap) -> Error {
        let kernel = self.launch.kernel;
        let inst = &kernel.code[(at as usize).min(kernel.code.len() - 1)];
        let [gx, gy, _] = self.launch.grid;
        let b = self.block_index;
        Error::Fault(Box::new(Fault {
            kernel: kernel.name.clone(),
            line: inst.line,
            text: inst.text.clone(),
            block: [b % gx, b / gx % gy, b / gx / gy],
            warp: w.index,
            lane: trap.lane,
            kind: trap.kind,
        }))
    }

    /// Runs up to `turn` instructions of one warp.
    fn run(&mut self, w: &mut Warp, turn: usize) -> Result<(), Trap> {
        let kernel = self.launch.kernel;
        for _ in 0..turn {
            if self.stuck || !w.select() {
                return Ok(());
            }
            if *self.budget == 0 {
                return Err(FaultKind::Budget(self.stats.warp_instructions()).into());
            }
            *self.budget -= 1;
            w.since_stuck = w.since_stuck.saturating_add(1);
            self.clock += 1;
            let inst = &kernel.code[w.at as usize];
            let active = match inst.guard {
                None => w.group,
                Some(p) => w.pred(p) & w.group,
            };
            let count = &mut self.stats.opcodes[inst.opcode as usize];
            count.warps += 1;
            count.lanes += u64::from(active.count_ones());
            count.predicated_off += u64::from((w.group & !active).count_ones());
            let flow = if active == 0 { Flow::Next } else { self.step(w, inst, active)? };
            if matches!(flow, Flow::Next) && w.group != 0 {
                w.jump(w.at + 1);
            }
        }
        w.dissolve();
        Ok(())
    }

    fn step(&mut self, w: &mut Warp, inst: &Inst, active: u32) -> Result<Flow, Trap> {
        match &inst.op {
            Op::Alu { dst, alu } => alu::compute(w, active, *dst, alu),
            Op::Setp { p, q, a, b, cmp, combine } => {
                let holds = alu::compare(w, active, *a, *b, cmp);
                let (yes, no) = match combine {
                    None => (holds, !holds),
                    Some((logic, c)) => {
                        let c = w.pred(*c);
                        (alu::combine(*logic, holds, c), alu::combine(*logic, !holds, c))
                    }
                };
                p.iter().for_each(|&p| w.set_pred(p, active, yes));
                q.iter().for_each(|&q| w.set_pred(q, active, no));
            }
            Op::Set { dst, a, b, cmp, truth, combine } => {
                let mut holds = alu::compare(w, active, *a, *b, cmp);
                if let Some((logic, c)) = combine {
                    holds = alu::combine(*logic, holds, w.pred(*c));
                }
                let cells = w.reg_mut(dst.reg);
                for l in lanes(active) {
                    cells[l] = if holds >> l & 1 == 1 { truth & dst.mask } else { 0 };
                }
            }
            Op::Selp { dst, a, b, p } => {
                let (a, b, p) = (w.read(*a), w.read(*b), w.pred(*p));
                let cells = w.reg_mut(dst.reg);
                for l in lanes(active) {
                    cells[l] = (if p >> l & 1 == 1 { a[l] } else { b[l] }) & dst.mask;
                }
            }
            Op::PredLogic { dst, a, b, logic } => {
                let v = alu::combine(*logic, w.pred(*a), w.pred(*b));
                w.set_pred(*dst, active, v);
            }
            Op::PredMov { dst, a } => w.set_pred(*dst, active, w.pred(*a)),
            Op::Pack { dst, parts, bits } => alu::pack(w, active, *dst, parts, *bits),
            Op::Unpack { dst, a, bits } => alu::unpack(w, active, dst, *a, *bits),
            Op::Load { space, ty, dst, addr } => self.load(w, active, *space, *ty, dst, *addr)?,
            Op::Store { space, bytes, src, addr } => {
                self.store(w, active, *space, *bytes, src, *addr)?;
            }
            Op::Atomic(a) => self.atomic(w, active, a)?,
            Op::Isspacep { dst, space, a } => self.isspacep(w, active, *dst, *space, *a),
            Op::Branch { target } => return Ok(branch(w, active, *target)),
            Op::BranchIndexed { index, targets } => {
                let index = w.read(*index);
                w.dissolve();
                for l in lanes(active) {
                    let Some(&t) = targets.get(index[l] as usize) else {
                        let what = format!("brx.idx index {} of {}", index[l], targets.len());
                        return Err(FaultKind::Undefined(what).at(l));
                    };
                    w.pc[l] = t;
                }
                return Ok(Flow::Set);
            }
            Op::Exit => {
                w.leave(active);
                w.live &= !active;
                self.barrier_news = true;
                self.retry_syncs(w)?;
            }
            Op::Trap => return Err(FaultKind::Trap.at(active.trailing_zeros() as usize)),
            Op::Nop => {}
            Op::FenceProxy => self.fence_proxy(w, active),
            Op::Nanosleep => {
                w.jump(w.at + 1);
                w.yield_turn();
                return Ok(Flow::Set);
            }
            Op::Clock { dst } => {
                let now = self.clock & dst.mask;
                let cells = w.reg_mut(dst.reg);
                lanes(active).for_each(|l| cells[l] = now);
            }
            Op::ActiveMask { dst } => {
                let cells = w.reg_mut(dst.reg);
                lanes(active).for_each(|l| cells[l] = u64::from(active));
            }
            Op::Warp { op, members } => self.warp_sync(w, active, op, *members)?,
            Op::Barrier(b) => self.arrive(w, active, b)?,
            Op::CpAsync(c) => self.cp_async(w, active, c)?,
            Op::CpAsyncCommit => {
                lanes(active).for_each(|l| self.groups[w.index * 32 + l] += 1);
            }
            Op::CpAsyncWait { keep, all } => self.cp_wait(w, active, *keep, *all)?,
            Op::CpAsyncArrive { mbar, noinc } => self.cp_arrive(w, active, *mbar, *noinc)?,
            Op::CpBulk { dst, src, bytes, mbar } => {
                self.cp_bulk(w, active, *dst, *src, *bytes, *mbar)?;
            }
            Op::Mbarrier { op, addr } => return self.mbarrier(w, active, op, *addr),
        }
        Ok(Flow::Next)
    }
}

fn branch(w: &mut Warp, active: u32, target: u32) -> Flow {
    if active == w.group {
        w.jump(target);
        return Flow::Set;
    }
    let next = w.at + 1;
    w.dissolve_split(active, target, next);
    Flow::Set
}

/// The threads that a stalled block's message names.
fn describe(warps: &[Warp]) -> String {
    let mut parts = Vec::new();
    for w in warps.iter().filter(|w| w.live != 0) {
        for lane in lanes(w.live) {
            let text = match w.wait[lane] {
                Wait::None => continue,
                Wait::Sync { members, .. } => format!("for lanes {members:#010x}"),
                Wait::Barrier { id, .. } => format!("at barrier {id}"),
            };
            let text = format!("warp {} waits {text}", w.index);
            if parts.last() != Some(&text) {
                parts.push(text);
            }
        }
    }
    parts.dedup();
    parts.truncate(8);
    parts.join(", ")
}
