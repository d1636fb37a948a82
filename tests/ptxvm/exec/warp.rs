//! Instructions that the lanes of a member mask execute together.

use super::{
    Env,
    access::{address, shared_address},
    mma,
};
use crate::ptxvm::{
    error::{FaultKind, Trap},
    inst::{Addr, Dst, Op, ShflMode, Space, Src, VoteMode, WarpOp},
    memory::{Who, clocks::lanes, resolve, shared::Write},
    types::mask,
    warp::{Wait, Warp},
};

/// `bar.warp.sync` matches any other; the rest match at the same place only.
const ANY_BAR: u32 = u32::MAX;

impl Env<'_> {
    /// Runs `op` for every member mask whose live lanes have all arrived; the others wait.
    pub(super) fn warp_sync(
        &mut self,
        w: &mut Warp,
        active: u32,
        op: &WarpOp,
        members: Option<Src>,
    ) -> Result<(), Trap> {
        let key = if matches!(op, WarpOp::Bar) { ANY_BAR } else { w.at };
        let mut left = active;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let mask = |w: &Warp, l: usize| members.map_or(u32::MAX, |m| w.read_lane(m, l) as u32);
            let named = mask(w, first);
            let here = lanes(left).filter(|&l| mask(w, l) == named).fold(0, |m, l| m | 1u32 << l);
            left &= !here;
            if here & !named != 0 {
                let lane = (here & !named).trailing_zeros() as usize;
                let what = format!("lane {lane} is not in its own member mask {named:#010x}");
                return Err(FaultKind::WarpSync(what).at(lane));
            }
            if members.is_none() && w.live != u32::MAX {
                let what = format!("needs all 32 lanes, {:#010x} are left", w.live);
                return Err(FaultKind::WarpSync(what).at(first));
            }
            let waiting = waiting(w, key, named);
            let all = here | waiting;
            if all & w.live == named & w.live {
                self.run_warp_op(w, all, op, named)?;
                lanes(waiting).for_each(|l| w.resume(l));
            } else {
                lanes(here).for_each(|l| w.wait[l] = Wait::Sync { key, members: named });
                w.leave(here);
            }
        }
        Ok(())
    }

    /// Some lanes exited: those that waited for them may go on.
    pub(super) fn retry_syncs(&mut self, w: &mut Warp) -> Result<(), Trap> {
        let kernel = self.launch.kernel;
        let mut left = w.live & !w.runnable;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            left &= left - 1;
            let Wait::Sync { key, members } = w.wait[first] else { continue };
            let here = waiting(w, key, members);
            left &= !here;
            if here & w.live != members & w.live {
                continue;
            }
            let Op::Warp { op, members: source } = &kernel.code[w.pc[first] as usize].op else {
                continue;
            };
            if source.is_none() {
                let what = format!("needs all 32 lanes, {:#010x} are left", w.live);
                return Err(FaultKind::WarpSync(what).at(first));
            }
            self.run_warp_op(w, here, op, members)?;
            lanes(here).for_each(|l| w.resume(l));
        }
        Ok(())
    }

    fn run_warp_op(
        &mut self,
        w: &mut Warp,
        lanes_in: u32,
        op: &WarpOp,
        members: u32,
    ) -> Result<(), Trap> {
        match op {
            // Fragment instructions are no barriers: memory needs its own synchronisation.
            WarpOp::Ldmatrix { .. } | WarpOp::Stmatrix { .. } | WarpOp::Mma(_) => {}
            _ => self.clocks.sync_warp(w.index, lanes_in),
        }
        match op {
            WarpOp::Bar => {}
            WarpOp::Shfl { mode, dst, valid, value, b, c } => {
                shuffle(w, lanes_in, *mode, *dst, *valid, [*value, *b, *c])?;
            }
            WarpOp::Vote { mode, dst, pred_dst, value } => {
                let yes = w.pred(*value) & lanes_in;
                let answer = match mode {
                    VoteMode::All => yes == lanes_in,
                    VoteMode::Any => yes != 0,
                    VoteMode::Uni => yes == 0 || yes == lanes_in,
                    VoteMode::Ballot => false,
                };
                if let Some(p) = pred_dst {
                    w.set_pred(*p, lanes_in, if answer { u32::MAX } else { 0 });
                }
                if let Some(d) = dst {
                    broadcast(w, lanes_in, *d, yes.into());
                }
            }
            WarpOp::MatchAny { dst, value, bits } => {
                let v = w.read(*value).map(|v| v & mask(*bits));
                for l in lanes(lanes_in) {
                    let same = lanes(lanes_in).filter(|&o| v[o] == v[l]).fold(0, |m, o| m | 1 << o);
                    w.reg_mut(dst.reg)[l] = same;
                }
            }
            WarpOp::MatchAll { dst, pred, value, bits } => {
                let v = w.read(*value).map(|v| v & mask(*bits));
                let first = lanes_in.trailing_zeros() as usize;
                let all = lanes(lanes_in).all(|l| v[l] == v[first]);
                broadcast(w, lanes_in, *dst, if all { members.into() } else { 0 });
                if let Some(p) = pred {
                    w.set_pred(*p, lanes_in, if all { u32::MAX } else { 0 });
                }
            }
            WarpOp::Redux { dst, value, f } => {
                let v = w.read(*value);
                if let Some(r) = lanes(lanes_in).map(|l| v[l]).reduce(f) {
                    broadcast(w, lanes_in, *dst, r);
                }
            }
            WarpOp::Elect { dst, pred } => {
                let leader = lanes_in.trailing_zeros();
                w.set_pred(*pred, lanes_in, 1 << leader);
                if let Some(d) = dst {
                    broadcast(w, lanes_in, *d, leader.into());
                }
            }
            WarpOp::Ldmatrix { dst, addr, space, trans } => {
                self.ldmatrix(w, dst, *addr, *space, *trans)?;
            }
            WarpOp::Stmatrix { src, addr, space, trans } => {
                self.stmatrix(w, src, *addr, *space, *trans)?;
            }
            WarpOp::Mma(m) => mma::multiply(w, m),
        }
        Ok(())
    }

    /// The row addresses of matrix `i`, which lanes 8i to 8i+7 supply.
    fn rows(&mut self, w: &Warp, addr: Addr, space: Space, i: usize) -> Result<[u64; 8], Trap> {
        let mut rows = [0; 8];
        for (r, row) in rows.iter_mut().enumerate() {
            let lane = i * 8 + r;
            let at = address(w, addr, lane);
            if space == Space::Generic && resolve(at).0 != Space::Shared {
                let what = "matrix row outside shared memory".into();
                return Err(FaultKind::Undefined(what).at(lane));
            }
            *row = shared_address(at);
            if !row.is_multiple_of(16) {
                let (space, addr) = ("shared", *row);
                return Err(FaultKind::Misaligned { space, addr, align: 16 }.at(lane));
            }
        }
        self.stats.shared_request(&rows, 16);
        Ok(rows)
    }

    /// Lane l receives elements (l/4, 2(l%4)) and (l/4, 2(l%4)+1) of each matrix, or of its
    /// transpose (ISA §9.7.14.5.15).
    fn ldmatrix(
        &mut self,
        w: &mut Warp,
        dst: &[Dst],
        addr: Addr,
        space: Space,
        trans: bool,
    ) -> Result<(), Trap> {
        for (i, d) in dst.iter().enumerate() {
            let rows = self.rows(w, addr, space, i)?;
            for lane in 0..32 {
                let who = Who { warp: w.index, lane };
                let mut pair = [0; 4];
                for (half, out) in pair.chunks_mut(2).enumerate() {
                    let at = element(&rows, lane, half, trans);
                    self.shared.read(at, out, 2, who, &self.clocks).map_err(|k| k.at(lane))?;
                }
                w.reg_mut(d.reg)[lane] = u64::from(u32::from_le_bytes(pair));
            }
        }
        Ok(())
    }

    fn stmatrix(
        &mut self,
        w: &Warp,
        src: &[Src],
        addr: Addr,
        space: Space,
        trans: bool,
    ) -> Result<(), Trap> {
        for (i, &s) in src.iter().enumerate() {
            let rows = self.rows(w, addr, space, i)?;
            for lane in 0..32 {
                let who = Who { warp: w.index, lane };
                let pair = (w.read_lane(s, lane) as u32).to_le_bytes();
                for (half, bytes) in pair.chunks(2).enumerate() {
                    let at = element(&rows, lane, half, trans);
                    self.shared
                        .write(at, bytes, 2, who, Write::Plain, &self.clocks)
                        .map_err(|k| k.at(lane))?;
                }
            }
        }
        Ok(())
    }
}

fn element(rows: &[u64; 8], lane: usize, half: usize, trans: bool) -> u64 {
    let (row, col) = (lane / 4, 2 * (lane % 4) + half);
    let (row, col) = if trans { (col, row) } else { (row, col) };
    rows[row] + 2 * col as u64
}

/// Lanes that wait at `key` with this member mask.
fn waiting(w: &Warp, key: u32, members: u32) -> u32 {
    let here = |l: &usize| w.wait[*l] == Wait::Sync { key, members };
    lanes(w.live & !w.runnable).filter(here).fold(0, |m, l| m | 1 << l)
}

fn broadcast(w: &mut Warp, to: u32, dst: Dst, value: u64) {
    let cells = w.reg_mut(dst.reg);
    lanes(to).for_each(|l| cells[l] = value & dst.mask);
}

/// The source lane and the bounds come from `b` and `c` as the ISA's pseudo-code says (§9.7.9.6).
fn shuffle(
    w: &mut Warp,
    members: u32,
    mode: ShflMode,
    dst: Dst,
    valid: Option<u32>,
    [value, b, c]: [Src; 3],
) -> Result<(), Trap> {
    let (value, b, c) = (w.read(value), w.read(b), w.read(c));
    let mut in_range = 0;
    for lane in lanes(members) {
        let l = lane as i64;
        let (b, clamp, segment) = ((b[lane] & 31) as i64, (c[lane] & 31) as i64, c[lane] >> 8 & 31);
        let segment = segment as i64;
        let max = (l & segment) | (clamp & !segment);
        let min = l & segment;
        let (from, ok) = match mode {
            ShflMode::Up => (l - b, l - b >= max),
            ShflMode::Down => (l + b, l + b <= max),
            ShflMode::Bfly => (l ^ b, (l ^ b) <= max),
            ShflMode::Idx => {
                let from = min | (b & !segment);
                (from, from <= max)
            }
        };
        let from = if ok { from as usize } else { lane };
        if members >> from & 1 == 0 {
            let what =
                format!("lane {lane} reads lane {from}, outside the members {members:#010x}");
            return Err(FaultKind::WarpSync(what).at(lane));
        }
        w.reg_mut(dst.reg)[lane] = value[from] & dst.mask;
        in_range |= u32::from(ok) << lane;
    }
    if let Some(p) = valid {
        w.set_pred(p, members, in_range);
    }
    Ok(())
}
