//! `mov` in its forms: copy, pack, unpack, predicates, the clock.

use super::Cx;
use crate::ptxvm::{
    ast::Operand,
    error::Error,
    inst::{Alu, Op},
    types::Ty,
};

impl Cx<'_> {
    pub(super) fn mov(&mut self) -> Result<Op, Error> {
        self.only(&[])?;
        let ty = self.ty()?;
        let (to, from) = (self.operand(0)?.clone(), self.operand(1)?.clone());
        if ty == Ty::Pred {
            let a = self.psrc_of(&from)?;
            return match self.pdst_of(&to)? {
                Some(dst) => Ok(Op::PredMov { dst, a }),
                None => self.fail("sink is not allowed here"),
            };
        }
        match (to, from) {
            (Operand::Vector(list), from) => {
                let dst: Result<Vec<_>, _> = list.iter().map(|o| self.dst_of(o)).collect();
                let bits = ty.bits() / list.len() as u32;
                Ok(Op::Unpack { dst: dst?, a: self.src_of(&from, ty)?, bits })
            }
            (_, Operand::Vector(list)) => {
                let bits = ty.bits() / list.len() as u32;
                let parts: Result<Vec<_>, _> =
                    list.iter().map(|o| self.src_of(o, Ty::B(bits))).collect();
                Ok(Op::Pack { dst: self.dst(0)?, parts: parts?, bits })
            }
            (_, Operand::Name(n))
                if matches!(n.as_str(), "%clock" | "%clock64" | "%clock_hi" | "%globaltimer") =>
            {
                Ok(Op::Clock { dst: self.dst(0)? })
            }
            (_, from) => {
                let a = self.src_of(&from, ty)?;
                Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::One(Box::new(|a| a), a) })
            }
        }
    }
}
