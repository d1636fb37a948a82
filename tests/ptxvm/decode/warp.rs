//! Instructions that a warp's lanes execute together (ISA §9.7.9, §9.7.13, §9.7.14).

use super::Cx;
use crate::ptxvm::{
    ast::Operand,
    error::Error,
    inst::{Mma, MmaKind, Op, ShflMode, VoteMode, WarpOp},
    types::Ty,
};

impl Cx<'_> {
    pub(super) fn warp(&mut self, name: &str) -> Result<Op, Error> {
        if name == "activemask" {
            return Ok(Op::ActiveMask { dst: self.dst(0)? });
        }
        if !self.has("sync") {
            return self.fail("forms without .sync do not exist from sm_70 on");
        }
        let members = self.count() - 1;
        let (op, members) = match name {
            "shfl" => (self.shfl()?, Some(self.src(members, Ty::B(32))?)),
            "vote" => (self.vote()?, Some(self.src(members, Ty::B(32))?)),
            "match" => (self.matching()?, Some(self.src(members, Ty::B(32))?)),
            "redux" => (self.redux()?, Some(self.src(members, Ty::B(32))?)),
            "elect" => {
                let Operand::Pair(d, p) = self.operand(0)?.clone() else {
                    return self.fail("elect.sync needs d|p");
                };
                let dst = self.dst_of(&d)?;
                let Some(pred) = self.pdst_of(&p)? else { return self.fail("sink not allowed") };
                (WarpOp::Elect { dst, pred }, Some(self.src(1, Ty::B(32))?))
            }
            "ldmatrix" | "stmatrix" => (self.matrix(name == "ldmatrix")?, None),
            _ => (self.mma()?, None),
        };
        Ok(Op::Warp { op, members })
    }

    fn shfl(&mut self) -> Result<WarpOp, Error> {
        let mode = match self.raw.parts[2].as_str() {
            "idx" => ShflMode::Idx,
            "up" => ShflMode::Up,
            "down" => ShflMode::Down,
            "bfly" => ShflMode::Bfly,
            _ => return self.fail("unsupported shuffle mode"),
        };
        let (dst, valid) = match self.operand(0)?.clone() {
            Operand::Pair(d, p) => (self.dst_of(&d)?, self.pdst_of(&p)?),
            o => (self.dst_of(&o)?, None),
        };
        let Some(dst) = dst else { return self.fail("sink not allowed") };
        let value = self.src(1, Ty::B(32))?;
        let (b, c) = (self.src(2, Ty::B(32))?, self.src(3, Ty::B(32))?);
        Ok(WarpOp::Shfl { mode, dst, valid, value, b, c })
    }

    fn vote(&mut self) -> Result<WarpOp, Error> {
        let mode = match self.raw.parts[2].as_str() {
            "all" => VoteMode::All,
            "any" => VoteMode::Any,
            "uni" => VoteMode::Uni,
            "ballot" => VoteMode::Ballot,
            _ => return self.fail("unsupported vote"),
        };
        let o = self.operand(0)?.clone();
        let ballot = matches!(mode, VoteMode::Ballot);
        let dst = if ballot { self.dst_of(&o)? } else { None };
        let pred_dst = if ballot { None } else { self.pdst_of(&o)? };
        Ok(WarpOp::Vote { mode, dst, pred_dst, value: self.psrc(1)? })
    }

    fn matching(&mut self) -> Result<WarpOp, Error> {
        let ty = self.ty()?;
        let value = self.src(1, ty)?;
        if self.has("any") {
            return Ok(WarpOp::MatchAny { dst: self.dst(0)?, value, bits: ty.bits() });
        }
        let (d, pred) = match self.operand(0)?.clone() {
            Operand::Pair(d, p) => (self.dst_of(&d)?, self.pdst_of(&p)?),
            o => (self.dst_of(&o)?, None),
        };
        let Some(dst) = d else { return self.fail("sink not allowed") };
        Ok(WarpOp::MatchAll { dst, pred, value, bits: ty.bits() })
    }

    fn redux(&mut self) -> Result<WarpOp, Error> {
        let ops = ["add", "min", "max", "and", "or", "xor"];
        let Some(op) = ops.iter().find(|o| self.has(o)) else {
            return self.fail("unsupported reduction");
        };
        let ty = self.ty()?;
        if !ty.is_int() {
            return self.fail("unsupported reduction type");
        }
        let f = self.plain(op, ty)?;
        Ok(WarpOp::Redux { dst: self.dst(0)?, value: self.src(1, ty)?, f })
    }

    fn matrix(&mut self, load: bool) -> Result<WarpOp, Error> {
        self.only(&[
            "sync",
            "aligned",
            "m8n8",
            "x1",
            "x2",
            "x4",
            "trans",
            "shared",
            "shared::cta",
        ])?;
        let space = self.space().unwrap_or(crate::ptxvm::inst::Space::Generic);
        let trans = self.has("trans");
        let n = [("x1", 1), ("x2", 2), ("x4", 4)].iter().find(|(s, _)| self.has(s)).map(|p| p.1);
        if self.ty()? != Ty::B(16) || n != Some(self.elements(usize::from(!load))?.len()) {
            return self.fail("matrix count and registers do not fit");
        }
        Ok(if load {
            WarpOp::Ldmatrix { dst: self.dsts(0)?, addr: self.addr(1)?, space, trans }
        } else {
            WarpOp::Stmatrix { src: self.srcs(1, Ty::B(32))?, addr: self.addr(0)?, space, trans }
        })
    }

    fn mma(&mut self) -> Result<WarpOp, Error> {
        let parts: Vec<&str> = self.raw.parts.iter().map(String::as_str).collect();
        let at = parts.iter().position(|p| p.starts_with("m16n8k"));
        let (Some(at), true) = (at, self.has("row") && self.has("col")) else {
            return self.fail("unsupported mma shape or layout");
        };
        let k: usize = parts[at]["m16n8k".len()..].parse().unwrap_or(0);
        let types: Vec<&str> =
            parts[at + 3..].iter().copied().filter(|p| *p != "satfinite").collect();
        let [d, a, b, c] = types[..] else { return self.fail("mma needs four types") };
        let kind = match (a, b) {
            ("f16", "f16") => MmaKind::F16,
            ("bf16", "bf16") => MmaKind::Bf16,
            ("tf32", "tf32") => MmaKind::Tf32,
            ("e4m3", "e4m3") => MmaKind::E4m3,
            ("s8" | "u8", "s8" | "u8") => MmaKind::Int8 { a: a == "s8", b: b == "s8" },
            _ => return self.fail("unsupported mma element types"),
        };
        let half = d == "f16" && c == "f16" && kind == MmaKind::F16;
        let accumulator = if matches!(kind, MmaKind::Int8 { .. }) { "s32" } else { "f32" };
        if !half && (d, c) != (accumulator, accumulator) {
            return self.fail("unsupported mma accumulator");
        }
        let width = match kind {
            MmaKind::F16 | MmaKind::Bf16 => 2,
            MmaKind::Tf32 => 4,
            MmaKind::E4m3 | MmaKind::Int8 { .. } => 1,
        };
        // A is 16 rows of 16 or 32 bytes: two or four registers a lane.
        let bytes = k * width;
        if !matches!(bytes, 16 | 32) {
            return self.fail("unsupported mma shape");
        }
        let satfinite = self.has("satfinite");
        let b32 = Ty::B(32);
        let (d, a) = (self.dsts(0)?, self.srcs(1, b32)?);
        let (b, c) = (self.srcs(2, b32)?, self.srcs(3, b32)?);
        let acc = if half { 2 } else { 4 };
        if d.len() != acc || c.len() != acc || a.len() != bytes / 8 || b.len() != bytes / 16 {
            return self.fail("fragment has the wrong number of registers");
        }
        Ok(WarpOp::Mma(Box::new(Mma { kind, k, half, satfinite, d, a, b, c })))
    }
}
