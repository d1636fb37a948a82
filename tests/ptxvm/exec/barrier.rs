//! Block barriers (`bar`, `barrier`), and what a block that cannot go on is told.

use super::{Env, describe};
use crate::ptxvm::{
    error::{FaultKind, Trap},
    inst::{BarrierOp, Op, ReduceKind},
    memory::clocks::lanes,
    memory::{Who, clocks},
    warp::{Wait, Warp},
};

/// One of the sixteen barriers of a block.
#[derive(Default)]
pub(super) struct BlockBarrier {
    /// Threads that arrived, waiting or not.
    arrived: u32,
    /// Threads expected; `None` for all that have not exited.
    expected: Option<u32>,
    /// What threads that did not wait knew when they arrived.
    left: Vec<u32>,
    votes: u32,
}

impl Env<'_> {
    pub(super) fn arrive(&mut self, w: &mut Warp, active: u32, op: &BarrierOp) -> Result<(), Trap> {
        let votes = op.reduce.as_ref().map_or(0, |r| w.pred(r.value));
        for lane in lanes(active) {
            let id = w.read_lane(op.id, lane);
            let Some(b) = self.barriers.get_mut(id as usize) else {
                return Err(FaultKind::Undefined(format!("barrier {id} of 16")).at(lane));
            };
            let expected = op.count.map(|c| w.read_lane(c, lane) as u32);
            if expected.is_some_and(|n| n == 0 || n % 32 != 0) {
                let what = format!("barrier thread count {expected:?} is no multiple of 32");
                return Err(FaultKind::Undefined(what).at(lane));
            }
            if b.arrived != 0 && b.expected != expected {
                let what = format!("barrier {id} met with different thread counts");
                return Err(FaultKind::BarrierDivergence(what).at(lane));
            }
            b.expected = expected;
            b.arrived += 1;
            b.votes += votes >> lane & 1;
            if op.waits {
                w.wait[lane] = Wait::Barrier { id: id as u32, aligned: op.aligned };
            } else {
                let known = self.clocks.release(Who { warp: w.index, lane });
                b.left.resize(known.len(), 0);
                clocks::join(&mut b.left, &known);
            }
        }
        if op.waits {
            w.leave(active);
        }
        self.barrier_news = true;
        Ok(())
    }

    /// Opens every barrier that all its threads have reached.
    pub(super) fn release_barriers(
        &mut self,
        warps: &mut [Warp],
    ) -> Result<(), (usize, FaultKind)> {
        let live: u32 = warps.iter().map(|w| w.live.count_ones()).sum();
        for id in 0..16u32 {
            let b = &self.barriers[id as usize];
            let expected = b.expected.unwrap_or(live);
            if b.arrived == 0 || b.arrived < expected {
                continue;
            }
            if b.arrived > expected {
                let what = format!("{} threads met barrier {id} for {expected}", b.arrived);
                return Err((0, FaultKind::BarrierDivergence(what)));
            }
            let b = std::mem::take(&mut self.barriers[id as usize]);
            let parties = waiting(warps, id)?;
            self.clocks.sync_block(&parties, &b.left);
            for &(warp, members) in &parties {
                let w = &mut warps[warp];
                for lane in lanes(members) {
                    self.give_votes(w, lane, b.votes, expected);
                    w.resume(lane);
                }
            }
        }
        Ok(())
    }

    fn give_votes(&self, w: &mut Warp, lane: usize, votes: u32, threads: u32) {
        let inst = &self.launch.kernel.code[w.pc[lane] as usize];
        let Op::Barrier(op) = &inst.op else { return };
        let Some(r) = &op.reduce else { return };
        let bit = 1 << lane;
        match r.kind {
            ReduceKind::Popc(d) => w.reg_mut(d.reg)[lane] = u64::from(votes) & d.mask,
            ReduceKind::And(p) => w.set_pred(p, bit, u32::from(votes == threads) << lane),
            ReduceKind::Or(p) => w.set_pred(p, bit, u32::from(votes != 0) << lane),
        }
    }

    /// Names the fault of a block in which no warp can run: the warp to report it at, and why.
    pub(super) fn stalled(&self, warps: &[Warp]) -> (usize, FaultKind) {
        for w in warps.iter().filter(|w| w.live != 0) {
            let mut places: Vec<(Wait, u32)> =
                lanes(w.live).map(|l| (w.wait[l], w.pc[l])).collect();
            let barrier = places.iter().any(|(wait, _)| matches!(wait, Wait::Barrier { .. }));
            places.dedup();
            if barrier && places.len() > 1 {
                let what =
                    format!("lanes of one warp wait at different places: {}", describe(warps));
                return (w.index, FaultKind::BarrierDivergence(what));
            }
        }
        let first = warps.iter().find(|w| w.live != 0).map_or(0, |w| w.index);
        (first, FaultKind::Deadlock(describe(warps)))
    }
}

/// The lanes that wait at barrier `id`, warp by warp.
fn waiting(warps: &[Warp], id: u32) -> Result<Vec<(usize, u32)>, (usize, FaultKind)> {
    let mut parties = Vec::new();
    for w in warps {
        let here = |l: &usize| matches!(w.wait[*l], Wait::Barrier { id: i, .. } if i == id);
        let members = lanes(w.live).filter(here).fold(0, |m, l| m | 1u32 << l);
        if members == 0 {
            continue;
        }
        let first = members.trailing_zeros() as usize;
        let aligned = matches!(w.wait[first], Wait::Barrier { aligned: true, .. });
        if aligned && (members != w.live || lanes(members).any(|l| w.pc[l] != w.pc[first])) {
            let what = format!(
                "lanes {members:#010x} of the warp's {:#010x} met aligned barrier {id} together",
                w.live
            );
            return Err((w.index, FaultKind::BarrierDivergence(what)));
        }
        parties.push((w.index, members));
    }
    Ok(parties)
}
