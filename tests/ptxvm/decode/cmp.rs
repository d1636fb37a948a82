//! Comparison and selection (ISA §9.7.6, §9.7.7).

use super::{Cx, fp::real};
use crate::ptxvm::{
    ast::Operand,
    error::Error,
    float::{bits_f32, f32_of, flush},
    inst::{Alu, Compare, Logic, Op, PSrc},
    types::{Ty, mask, sign_extend},
};

/// The orderings for which a comparison holds, unordered last: less, equal, greater, unordered.
fn accepts(name: &str, unsigned: bool) -> Option<[bool; 4]> {
    let (l, e, g, u) = match name {
        "eq" => (0, 1, 0, 0),
        "ne" => (1, 0, 1, 0),
        "lt" | "lo" if unsigned || name == "lt" => (1, 0, 0, 0),
        "le" => (1, 1, 0, 0),
        "gt" => (0, 0, 1, 0),
        "ge" => (0, 1, 1, 0),
        "ls" if unsigned => (1, 1, 0, 0),
        "hi" if unsigned => (0, 0, 1, 0),
        "hs" if unsigned => (0, 1, 1, 0),
        "equ" => (0, 1, 0, 1),
        "neu" => (1, 0, 1, 1),
        "ltu" => (1, 0, 0, 1),
        "leu" => (1, 1, 0, 1),
        "gtu" => (0, 0, 1, 1),
        "geu" => (0, 1, 1, 1),
        "num" => (1, 1, 1, 0),
        "nan" => (0, 0, 0, 1),
        _ => return None,
    };
    Some([l == 1, e == 1, g == 1, u == 1])
}

impl Cx<'_> {
    fn comparison(&self, ty: Ty) -> Result<Compare, Error> {
        let name = self.raw.parts[1].clone();
        let Some([less, equal, greater, unordered]) = accepts(&name, !ty.signed()) else {
            return self.fail("unsupported comparison");
        };
        let pick = move |o: Option<std::cmp::Ordering>| match o {
            Some(std::cmp::Ordering::Less) => less,
            Some(std::cmp::Ordering::Equal) => equal,
            Some(std::cmp::Ordering::Greater) => greater,
            None => unordered,
        };
        if ty.is_int() {
            let (bits, signed) = (ty.bits(), ty.signed());
            return Ok(if signed {
                Box::new(move |a, b| pick(Some(sign_extend(a, bits).cmp(&sign_extend(b, bits)))))
            } else {
                Box::new(move |a, b| pick(Some((a & mask(bits)).cmp(&(b & mask(bits))))))
            });
        }
        if ty == Ty::F32 && self.has("ftz") {
            let v = |x| flush(f32_of(x));
            return Ok(Box::new(move |a, b| pick(v(a).partial_cmp(&v(b)))));
        }
        match real(ty) {
            Some(v) => Ok(Box::new(move |a, b| pick(v(a).partial_cmp(&v(b))))),
            None => self.fail("unsupported type for a comparison"),
        }
    }

    fn combination(&mut self) -> Result<Option<(Logic, PSrc)>, Error> {
        let logic = if self.has("and") {
            Logic::And
        } else if self.has("or") {
            Logic::Or
        } else if self.has("xor") {
            Logic::Xor
        } else {
            return Ok(None);
        };
        Ok(Some((logic, self.psrc(3)?)))
    }

    pub(super) fn setp(&mut self) -> Result<Op, Error> {
        let ty = self.ty()?;
        let (p, q) = match self.operand(0)?.clone() {
            Operand::Pair(p, q) => (self.pdst_of(&p)?, self.pdst_of(&q)?),
            o => (self.pdst_of(&o)?, None),
        };
        Ok(Op::Setp {
            p,
            q,
            a: self.src(1, ty)?,
            b: self.src(2, ty)?,
            cmp: self.comparison(ty)?,
            combine: self.combination()?,
        })
    }

    pub(super) fn set(&mut self) -> Result<Op, Error> {
        let types = self.types();
        let [to, ty] = types[..] else { return self.fail("set needs two types") };
        let truth = if to == Ty::F32 { bits_f32(1.0) } else { u64::MAX };
        Ok(Op::Set {
            dst: self.dst(0)?,
            a: self.src(1, ty)?,
            b: self.src(2, ty)?,
            cmp: self.comparison(ty)?,
            truth,
            combine: self.combination()?,
        })
    }

    pub(super) fn select(&mut self, name: &str) -> Result<Op, Error> {
        if name == "selp" {
            let ty = self.ty()?;
            let (a, b) = (self.src(1, ty)?, self.src(2, ty)?);
            return Ok(Op::Selp { dst: self.dst(0)?, a, b, p: self.psrc(3)? });
        }
        let types = self.types();
        let [ty, c_ty] = types[..] else { return self.fail("slct needs two types") };
        let s = [self.src(1, ty)?, self.src(2, ty)?, self.src(3, c_ty)?];
        let f: crate::ptxvm::inst::F3 = match c_ty {
            Ty::S(32) => Box::new(|a, b, c| if c as u32 as i32 >= 0 { a } else { b }),
            // −0 counts as zero and NaN selects `b`.
            Ty::F32 => Box::new(|a, b, c| if f32_of(c) >= 0.0 { a } else { b }),
            _ => return self.fail("unsupported slct condition"),
        };
        Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::Three(f, s) })
    }

    pub(super) fn pred_logic(&mut self, name: &str) -> Result<Op, Error> {
        let dst = self.operand(0)?.clone();
        let Some(dst) = self.pdst_of(&dst)? else { return self.fail("sink is not allowed here") };
        let a = self.psrc(1)?;
        let (b, logic) = match name {
            "not" => (PSrc::Const(true), Logic::Xor),
            "and" => (self.psrc(2)?, Logic::And),
            "or" => (self.psrc(2)?, Logic::Or),
            _ => (self.psrc(2)?, Logic::Xor),
        };
        Ok(Op::PredLogic { dst, a, b, logic })
    }
}
