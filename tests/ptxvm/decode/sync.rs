//! Control flow, block barriers, mbarriers and asynchronous copies (ISA §9.7.12, §9.7.13).

use super::Cx;
use crate::ptxvm::{
    ast::Operand,
    error::Error,
    inst::{BarrierOp, BarrierReduce, CpAsync, MbarOp, Op, ReduceKind, Src, WarpOp},
    types::Ty,
};

impl Cx<'_> {
    pub(super) fn control(&mut self, name: &str) -> Result<Op, Error> {
        match name {
            "bra" => match self.operand(0)?.clone() {
                Operand::Name(l) => Ok(Op::Branch { target: self.label(&l)? }),
                _ => self.fail("branch target is not a label"),
            },
            "brx" => {
                let index = self.src(0, Ty::U(32))?;
                let Operand::Name(list) = self.operand(1)?.clone() else {
                    return self.fail("brx needs a list of targets");
                };
                let found = self.kernel.find(&self.kernel.targets, self.raw.scope, &list).cloned();
                let Some(names) = found else {
                    return self.fail(&format!("unknown list of targets {list}"));
                };
                let targets: Result<Vec<_>, _> = names.iter().map(|n| self.label(n)).collect();
                Ok(Op::BranchIndexed { index, targets: targets? })
            }
            // Entries only: `ret` at their level ends the thread.
            "ret" | "exit" => Ok(Op::Exit),
            "trap" => Ok(Op::Trap),
            "nanosleep" => Ok(Op::Nanosleep),
            "bar" | "barrier" => self.barrier(name == "bar"),
            "fence" if self.has("proxy") && self.has("async") => Ok(Op::FenceProxy),
            _ => Ok(Op::Nop),
        }
    }

    fn barrier(&mut self, bar: bool) -> Result<Op, Error> {
        if self.has("warp") {
            let members = Some(self.src(0, Ty::B(32))?);
            return Ok(Op::Warp { op: WarpOp::Bar, members });
        }
        self.only(&["cta", "sync", "arrive", "red", "popc", "and", "or", "aligned"])?;
        let aligned = bar || self.has("aligned");
        if self.has("red") {
            let dst = self.operand(0)?.clone();
            let last = self.count() - 1;
            let value = self.psrc(last)?;
            let kind = if self.has("popc") {
                ReduceKind::Popc(self.dst(0)?)
            } else {
                let Some(p) = self.pdst_of(&dst)? else { return self.fail("sink not allowed") };
                if self.has("and") { ReduceKind::And(p) } else { ReduceKind::Or(p) }
            };
            let id = self.src(1, Ty::U(32))?;
            let count = if self.count() == 4 { Some(self.src(2, Ty::U(32))?) } else { None };
            let reduce = Some(BarrierReduce { kind, value });
            return Ok(Op::Barrier(Box::new(BarrierOp {
                id,
                count,
                aligned,
                waits: true,
                reduce,
            })));
        }
        let id = self.src(0, Ty::U(32))?;
        let count = if self.count() == 2 { Some(self.src(1, Ty::U(32))?) } else { None };
        let waits = !self.has("arrive");
        if !waits && count.is_none() {
            return self.fail("barrier arrive needs a thread count");
        }
        Ok(Op::Barrier(Box::new(BarrierOp { id, count, aligned, waits, reduce: None })))
    }

    pub(super) fn mbarrier(&mut self) -> Result<Op, Error> {
        self.only(&[
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "expect_tx",
            "complete_tx",
            "test_wait",
            "try_wait",
            "parity",
            "pending_count",
            "noComplete",
            "shared",
            "shared::cta",
            "shared::cluster",
            "release",
            "acquire",
            "relaxed",
            "cta",
            "cluster",
        ])?;
        let u32s = Ty::U(32);
        let one = Src::Imm(1);
        let verb = self.raw.parts[1].clone();
        match verb.as_str() {
            "init" => {
                let count = self.src(1, u32s)?;
                Ok(Op::Mbarrier { op: MbarOp::Init { count }, addr: self.addr(0)? })
            }
            "inval" => Ok(Op::Mbarrier { op: MbarOp::Inval, addr: self.addr(0)? }),
            "arrive" | "arrive_drop" => {
                let has_state = !matches!(self.operand(0)?, Operand::Mem(..));
                let at = usize::from(has_state);
                let state = if has_state {
                    let o = self.operand(0)?.clone();
                    self.dst_of(&o)?
                } else {
                    None
                };
                let extra =
                    if self.count() > at + 1 { Some(self.src(at + 1, u32s)?) } else { None };
                let (count, expect) = match extra {
                    Some(n) if self.has("expect_tx") => (one, Some(n)),
                    Some(n) => (n, None),
                    None => (one, None),
                };
                let drop = verb == "arrive_drop";
                let op = MbarOp::Arrive { state, count, expect, drop };
                Ok(Op::Mbarrier { op, addr: self.addr(at)? })
            }
            "expect_tx" => {
                let bytes = self.src(1, u32s)?;
                Ok(Op::Mbarrier { op: MbarOp::ExpectTx { bytes }, addr: self.addr(0)? })
            }
            "complete_tx" => {
                let bytes = self.src(1, u32s)?;
                Ok(Op::Mbarrier { op: MbarOp::CompleteTx { bytes }, addr: self.addr(0)? })
            }
            "test_wait" | "try_wait" => {
                let p = self.operand(0)?.clone();
                let Some(done) = self.pdst_of(&p)? else { return self.fail("sink not allowed") };
                let parity = self.has("parity");
                let phase = self.src(2, if parity { u32s } else { Ty::B(64) })?;
                let op = MbarOp::Test { done, phase, parity };
                Ok(Op::Mbarrier { op, addr: self.addr(1)? })
            }
            "pending_count" => {
                let f: crate::ptxvm::inst::F1 = Box::new(|state| state & 0xf_ffff);
                self.alu1(Ty::B(64), f)
            }
            _ => self.fail("unsupported mbarrier operation"),
        }
    }

    pub(super) fn cp(&mut self) -> Result<Op, Error> {
        if self.raw.parts.get(1).is_none_or(|p| p != "async") {
            return self.fail("unsupported copy");
        }
        match self.raw.parts.get(2).map_or("", String::as_str) {
            "commit_group" => Ok(Op::CpAsyncCommit),
            "wait_all" => Ok(Op::CpAsyncWait { keep: 0, all: true }),
            "wait_group" => match self.operand(0)? {
                Operand::Int(n) => Ok(Op::CpAsyncWait { keep: *n as u32, all: false }),
                _ => self.fail("wait_group needs an immediate"),
            },
            "mbarrier" => Ok(Op::CpAsyncArrive { mbar: self.addr(0)?, noinc: self.has("noinc") }),
            "bulk" => self.cp_bulk(),
            _ => self.cp_async(),
        }
    }

    fn cp_async(&mut self) -> Result<Op, Error> {
        let bytes = match self.operand(2)? {
            Operand::Int(n @ (4 | 8 | 16)) => *n as usize,
            _ => return self.fail("cp.async copies 4, 8 or 16 bytes"),
        };
        if self.has("cg") && bytes != 16 {
            return self.fail("cp.async.cg copies 16 bytes");
        }
        if self.has("L2::cache_hint") {
            return self.fail("unsupported modifier .L2::cache_hint");
        }
        let (mut src_bytes, mut ignore) = (None, None);
        if self.count() > 3 {
            let o = self.operand(3)?.clone();
            if self.is_pred(&o) {
                ignore = Some(self.psrc_of(&o)?);
            } else {
                src_bytes = Some(self.src_of(&o, Ty::U(32))?);
            }
        }
        Ok(Op::CpAsync(Box::new(CpAsync {
            dst: self.addr(0)?,
            src: self.addr(1)?,
            bytes,
            src_bytes,
            ignore,
        })))
    }

    fn cp_bulk(&mut self) -> Result<Op, Error> {
        let joined = self.raw.parts[3..].join(".");
        let rest = joined.strip_suffix(".L2::cache_hint").unwrap_or(&joined);
        let to_shared = matches!(
            rest,
            "shared::cluster.global.mbarrier::complete_tx::bytes"
                | "shared::cta.global.mbarrier::complete_tx::bytes"
        );
        if !to_shared {
            return self.fail("unsupported bulk copy");
        }
        let bytes = self.src(2, Ty::U(32))?;
        Ok(Op::CpBulk { dst: self.addr(0)?, src: self.addr(1)?, bytes, mbar: self.addr(3)? })
    }
}
