//! Loads, stores, atomics and address conversion (ISA §9.7.9, §9.7.13).

use super::{Cx, fp::two};
use crate::ptxvm::{
    ast::Operand,
    error::Error,
    inst::{Alu, Atomic, F2, F3, Op, Space},
    memory::window,
    types::{Ty, mask},
};

/// Suffixes that order or cache an access; the interpreter's memory is always coherent.
const ORDER: &[&str] = &[
    "weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "mmio", "cta", "cluster",
    "gpu", "sys", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified", "noftz",
];

impl Cx<'_> {
    pub(super) fn space(&self) -> Option<Space> {
        self.raw.parts[1..].iter().find_map(|p| {
            Some(match p.as_str() {
                "global" => Space::Global,
                "shared" | "shared::cta" | "shared::cluster" => Space::Shared,
                "local" => Space::Local,
                "const" => Space::Const,
                "param" | "param::entry" => Space::Param,
                _ => return None,
            })
        })
    }

    fn check_memory_suffixes(&self, extra: &[&str]) -> Result<(), Error> {
        for p in &self.raw.parts[1..] {
            let hint = p.starts_with("L1::") || p.starts_with("L2::");
            let space = ["global", "local", "const"].contains(&p.as_str())
                || p.starts_with("shared")
                || p.starts_with("param");
            let known = Ty::parse(p).is_some() || ORDER.contains(&p.as_str());
            if !(hint || space || known || extra.contains(&p.as_str())) {
                return self.fail(&format!("unsupported modifier .{p}"));
            }
        }
        Ok(())
    }

    pub(super) fn mem(&mut self, name: &str) -> Result<Op, Error> {
        match name {
            "ld" | "ldu" => self.load(),
            "st" => self.store(),
            "atom" | "red" => self.atomic(name == "red"),
            "cvta" => self.cvta(),
            "isspacep" => {
                let Some(space) = self.space() else { return self.fail("isspacep needs a space") };
                let p = self.operand(0)?.clone();
                let Some(dst) = self.pdst_of(&p)? else { return self.fail("sink not allowed") };
                Ok(Op::Isspacep { dst, space, a: self.src(1, Ty::U(64))? })
            }
            // Prefetches and cache hints change no value.
            _ => Ok(Op::Nop),
        }
    }

    fn load(&mut self) -> Result<Op, Error> {
        self.check_memory_suffixes(&["v2", "v4", "v8"])?;
        let ty = self.ty()?;
        let dst: Result<Vec<_>, _> = self.elements(0)?.iter().map(|o| self.dst_of(o)).collect();
        let space = self.space().unwrap_or(Space::Generic);
        Ok(Op::Load { space, ty, dst: dst?, addr: self.addr(1)? })
    }

    fn store(&mut self) -> Result<Op, Error> {
        self.check_memory_suffixes(&["v2", "v4", "v8"])?;
        let ty = self.ty()?;
        let space = self.space().unwrap_or(Space::Generic);
        if matches!(space, Space::Const | Space::Param) {
            return self.fail("store to a read-only state space");
        }
        Ok(Op::Store { space, bytes: ty.bytes(), src: self.srcs(1, ty)?, addr: self.addr(0)? })
    }

    fn atomic(&mut self, red: bool) -> Result<Op, Error> {
        let ops = [
            "add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec", "v2", "v4", "v8",
        ];
        self.check_memory_suffixes(&ops)?;
        let ty = self.ty()?;
        let Some(op) = ops[..10].iter().find(|o| self.has(o)).copied() else {
            return self.fail("atomic without an operation");
        };
        let space = self.space().unwrap_or(Space::Generic);
        let first = usize::from(!red);
        let dst = match self.operand(0)?.clone() {
            _ if red => None,
            Operand::Vector(_) => return self.fail("unsupported vector atomic with a result"),
            o => self.dst_of(&o)?,
        };
        let addr = self.addr(first)?;
        let (compare, value) = if op == "cas" {
            (Some(self.src(first + 1, ty)?), self.srcs(first + 2, ty)?)
        } else {
            (None, self.srcs(first + 1, ty)?)
        };
        let keep = mask(ty.bits());
        let f: F3 = match op {
            "exch" => Box::new(|_, v, _| v),
            "cas" => Box::new(move |old, v, cmp| if old == cmp & keep { v } else { old }),
            "inc" => Box::new(move |old, v, _| if old >= v & keep { 0 } else { old + 1 }),
            "dec" => {
                Box::new(move |old, v, _| if old == 0 || old > v & keep { v } else { old - 1 })
            }
            _ => {
                let f = self.plain(op, ty)?;
                Box::new(move |old, v, _| f(old, v))
            }
        };
        let bytes = ty.bytes();
        Ok(Op::Atomic(Box::new(Atomic { space, bytes, dst, addr, value, compare, f })))
    }

    /// The arithmetic of an ordinary two-operand instruction of the same name.
    pub(super) fn plain(&mut self, op: &str, ty: Ty) -> Result<F2, Error> {
        let suffix = match ty {
            Ty::B(n) => format!("b{n}"),
            Ty::U(n) => format!("u{n}"),
            Ty::S(n) => format!("s{n}"),
            Ty::F32 => "f32".into(),
            Ty::F64 => "f64".into(),
            Ty::F16 => "f16".into(),
            Ty::F16x2 => "f16x2".into(),
            Ty::Bf16 => "bf16".into(),
            Ty::Bf16x2 => "bf16x2".into(),
            _ => return self.fail("unsupported type for an atomic"),
        };
        let reg = self.raw.operands.iter().find_map(|o| match o {
            Operand::Name(n) => Some(n.clone()),
            _ => None,
        });
        // Only the arithmetic is taken from the decoded instruction, so its operands are free.
        let any = Operand::Int(0);
        let dst = reg.map_or(Operand::Name("%laneid".into()), Operand::Name);
        let raw = crate::ptxvm::ast::Raw {
            parts: vec![op.into(), suffix],
            operands: vec![dst, any.clone(), any],
            ..self.raw.clone()
        };
        let decoded = Cx { raw: &raw, kernel: self.kernel }.op()?;
        match two(decoded) {
            Some(f) => Ok(f),
            None => self.fail("unsupported atomic operation"),
        }
    }

    fn cvta(&mut self) -> Result<Op, Error> {
        let Some(space) = self.space() else { return self.fail("cvta needs a space") };
        let base = window(space);
        if self.has("to") {
            self.alu1(Ty::U(64), Box::new(move |a| a.wrapping_sub(base)))
        } else {
            let a = self.src(1, Ty::U(64))?;
            let alu = Alu::One(Box::new(move |a| a.wrapping_add(base)), a);
            Ok(Op::Alu { dst: self.dst(0)?, alu })
        }
    }
}
