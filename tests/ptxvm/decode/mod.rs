//! Statements to instructions: names become indices once, so that running looks nothing up.

mod cmp;
mod cvt;
mod data;
mod fp;
mod int;
mod mem;
mod names;
mod sync;
mod warp;

use std::collections::HashMap;

use names::{Names, Place, special};

use super::{
    ast::{Entry, File, Operand, Raw, Var},
    error::Error,
    inst::{Addr, Alu, Dst, F1, F2, F3, Inst, Kernel, Op, PSrc, Src},
    memory::SHARED_BASE,
    types::{Ty, mask},
};

/// What one instruction is decoded from.
pub(super) struct Cx<'a> {
    raw: &'a Raw,
    kernel: &'a mut Names,
}

/// Decodes one entry. `globals` holds the addresses of module-level variables.
pub(super) fn kernel(
    file: &File,
    entry: &Entry,
    globals: &HashMap<String, u64>,
) -> Result<Kernel, Error> {
    let mut names = Names::new(entry);
    let address = |(n, &a): (&String, &u64)| (n.clone(), Place::Address(a));
    names.places.extend(globals.iter().map(address));
    let (params, param_bytes) = layout(&entry.params, 0);
    names.places.extend(params.iter().map(|(at, v)| (v.name.clone(), Place::Param(*at as u64))));
    let (local, local_bytes) = layout(&entry.local, 0);
    names.places.extend(local.iter().map(|(a, v)| (v.name.clone(), Place::Address(*a as u64))));
    let sized: Vec<Var> =
        file.shared.iter().chain(&entry.shared).filter(|v| v.size.is_some()).cloned().collect();
    let (shared, static_shared) = layout(&sized, 0);
    let unsized_vars: Vec<_> =
        file.shared.iter().chain(&entry.shared).filter(|v| v.size.is_none()).collect();
    let align = unsized_vars.iter().map(|v| v.align).max().unwrap_or(1).max(16);
    let dynamic_shared_at = static_shared.next_multiple_of(align);
    let placed = shared.iter().map(|(at, v)| (*at, *v));
    for (at, v) in placed.chain(unsized_vars.iter().map(|v| (dynamic_shared_at, *v))) {
        names.places.insert(v.name.clone(), Place::Address(SHARED_BASE + at as u64));
    }
    let mut opcodes: Vec<String> = Vec::new();
    let mut by_name = HashMap::new();
    let mut code = Vec::with_capacity(entry.code.len() + 1);
    for raw in &entry.code {
        let name = raw.parts.join(".");
        let opcode = *by_name.entry(name.clone()).or_insert_with(|| {
            opcodes.push(name);
            opcodes.len() as u32 - 1
        });
        let mut cx = Cx { raw, kernel: &mut names };
        let guard = match &raw.guard {
            Some((name, negated)) => {
                Some(PSrc::Reg { reg: cx.pred_named(name)?, negated: *negated })
            }
            None => None,
        };
        let op = cx.op()?;
        code.push(Inst { line: raw.line, text: raw.text.clone(), opcode, guard, op });
    }
    // Control that runs off the end of a kernel returns.
    let line = entry.code.last().map_or(0, |r| r.line);
    opcodes.push("(end)".into());
    let opcode = opcodes.len() as u32 - 1;
    code.push(Inst { line, text: "(end of kernel)".into(), opcode, guard: None, op: Op::Exit });
    Ok(Kernel {
        name: entry.name.clone(),
        code,
        opcodes,
        registers: names.registers as usize,
        predicates: names.predicates as usize,
        specials: names.specials,
        params: params.iter().map(|(at, v)| (*at, v.size.unwrap_or(0))).collect(),
        param_bytes,
        static_shared,
        dynamic_shared_at,
        local_bytes,
    })
}

/// Offsets of variables laid out one after the other, and their total size.
pub(super) fn layout(vars: &[Var], start: usize) -> (Vec<(usize, &Var)>, usize) {
    let mut at = start;
    let mut out = Vec::new();
    for v in vars {
        at = at.next_multiple_of(v.align.max(1));
        out.push((at, v));
        at += v.size.unwrap_or(0);
    }
    (out, at)
}

impl Cx<'_> {
    pub fn fail<T>(&self, what: &str) -> Result<T, Error> {
        Err(Error::Parse { line: self.raw.line, text: self.raw.text.clone(), what: what.into() })
    }

    /// Whether the opcode carries this suffix.
    pub fn has(&self, suffix: &str) -> bool {
        self.raw.parts[1..].iter().any(|p| p == suffix)
    }

    /// Refuses suffixes that are neither types nor in `known`.
    pub fn only(&self, known: &[&str]) -> Result<(), Error> {
        for p in &self.raw.parts[1..] {
            if Ty::parse(p).is_none() && !known.contains(&p.as_str()) {
                return self.fail(&format!("unsupported modifier .{p}"));
            }
        }
        Ok(())
    }

    /// The type suffixes in order.
    pub fn types(&self) -> Vec<Ty> {
        self.raw.parts[1..].iter().filter_map(|p| Ty::parse(p)).collect()
    }

    /// The last type suffix.
    pub fn ty(&self) -> Result<Ty, Error> {
        match self.types().last() {
            Some(&t) => Ok(t),
            None => self.fail("instruction without a type"),
        }
    }

    pub fn count(&self) -> usize {
        self.raw.operands.len()
    }

    pub fn operand(&self, i: usize) -> Result<&Operand, Error> {
        match self.raw.operands.get(i) {
            Some(o) => Ok(o),
            None => self.fail(&format!("operand {} is missing", i + 1)),
        }
    }

    fn reg_named(&mut self, name: &str) -> Result<(u32, Ty), Error> {
        if let Some(&r) = self.kernel.find(&self.kernel.regs, self.raw.scope, name) {
            return Ok(r);
        }
        let Some(special) = special(name) else {
            return self.fail(&format!("unknown register {name}"));
        };
        if let Some(&(_, reg)) = self.kernel.specials.iter().find(|(s, _)| *s == special) {
            return Ok((reg, Ty::U(32)));
        }
        let reg = self.kernel.registers;
        self.kernel.registers += 1;
        self.kernel.specials.push((special, reg));
        Ok((reg, Ty::U(32)))
    }

    fn pred_named(&mut self, name: &str) -> Result<u32, Error> {
        match self.reg_named(name)? {
            (reg, Ty::Pred) => Ok(reg),
            _ => self.fail(&format!("{name} is not a predicate")),
        }
    }

    pub fn is_pred(&mut self, o: &Operand) -> bool {
        matches!(o, Operand::Not(_))
            || matches!(o, Operand::Name(n) if matches!(self.reg_named(n), Ok((_, Ty::Pred))))
    }

    /// A destination; `None` for the sink `_`.
    pub fn dst_of(&mut self, o: &Operand) -> Result<Option<Dst>, Error> {
        match o {
            Operand::Name(n) if n == "_" => Ok(None),
            Operand::Name(n) => match self.reg_named(n)? {
                (_, Ty::Pred) => self.fail("predicate where a value register is needed"),
                (reg, ty) => Ok(Some(Dst { reg, mask: mask(ty.bits()) })),
            },
            _ => self.fail("destination is not a register"),
        }
    }

    pub fn dst(&mut self, i: usize) -> Result<Dst, Error> {
        let o = self.operand(i)?.clone();
        match self.dst_of(&o)? {
            Some(d) => Ok(d),
            None => self.fail("the sink `_` is not allowed here"),
        }
    }

    /// A source read as type `ty`.
    pub fn src_of(&mut self, o: &Operand, ty: Ty) -> Result<Src, Error> {
        Ok(match o {
            Operand::Name(n) => match self.place(n, 0)? {
                Some(address) => Src::Imm(address),
                None => match self.reg_named(n)? {
                    (_, Ty::Pred) => return self.fail("predicate where a value is needed"),
                    (reg, _) => Src::Reg(reg),
                },
            },
            Operand::Offset(n, off) => match self.place(n, *off)? {
                Some(address) => Src::Imm(address),
                None => return self.fail(&format!("{n} is not a variable")),
            },
            Operand::Int(v) => Src::Imm(*v as u64 & mask(ty.bits())),
            Operand::F32(v) => Src::Imm(u64::from(*v)),
            Operand::F64(v) if ty == Ty::F32 => {
                Src::Imm(u64::from((f64::from_bits(*v) as f32).to_bits()))
            }
            Operand::F64(v) => Src::Imm(*v),
            _ => return self.fail("operand is not a value"),
        })
    }

    pub fn src(&mut self, i: usize, ty: Ty) -> Result<Src, Error> {
        let o = self.operand(i)?.clone();
        self.src_of(&o, ty)
    }

    fn place(&self, name: &str, off: i64) -> Result<Option<u64>, Error> {
        if self.kernel.find(&self.kernel.regs, self.raw.scope, name).is_some() {
            return Ok(None);
        }
        Ok(self.kernel.places.get(name).map(|p| match p {
            Place::Address(a) | Place::Param(a) => a.wrapping_add(off as u64),
        }))
    }

    pub fn psrc_of(&mut self, o: &Operand) -> Result<PSrc, Error> {
        Ok(match o {
            Operand::Name(n) => PSrc::Reg { reg: self.pred_named(n)?, negated: false },
            Operand::Not(n) => PSrc::Reg { reg: self.pred_named(n)?, negated: true },
            Operand::Int(v) => PSrc::Const(*v != 0),
            _ => return self.fail("operand is not a predicate"),
        })
    }

    pub fn psrc(&mut self, i: usize) -> Result<PSrc, Error> {
        let o = self.operand(i)?.clone();
        self.psrc_of(&o)
    }

    pub fn pdst_of(&mut self, o: &Operand) -> Result<Option<u32>, Error> {
        match o {
            Operand::Name(n) if n == "_" => Ok(None),
            Operand::Name(n) => self.pred_named(n).map(Some),
            _ => self.fail("destination is not a predicate"),
        }
    }

    /// The elements of a vector operand, or the operand itself as the only element.
    pub fn elements(&self, i: usize) -> Result<Vec<Operand>, Error> {
        Ok(match self.operand(i)? {
            Operand::Vector(v) => v.clone(),
            o => vec![o.clone()],
        })
    }

    pub fn srcs(&mut self, i: usize, ty: Ty) -> Result<Vec<Src>, Error> {
        self.elements(i)?.iter().map(|o| self.src_of(o, ty)).collect()
    }

    pub fn dsts(&mut self, i: usize) -> Result<Vec<Dst>, Error> {
        let list: Result<Vec<_>, _> = self.elements(i)?.iter().map(|o| self.dst_of(o)).collect();
        match list?.into_iter().collect::<Option<Vec<_>>>() {
            Some(v) => Ok(v),
            None => self.fail("the sink `_` is not allowed here"),
        }
    }

    pub fn addr(&mut self, i: usize) -> Result<Addr, Error> {
        let Operand::Mem(base, off) = self.operand(i)?.clone() else {
            return self.fail("operand is not an address");
        };
        let off = off as u64;
        Ok(match base {
            None => Addr { base: Src::Imm(0), off },
            Some(name) => Addr { base: self.src_of(&Operand::Name(name), Ty::U(64))?, off },
        })
    }

    pub fn label(&self, name: &str) -> Result<u32, Error> {
        match self.kernel.find(&self.kernel.labels, self.raw.scope, name) {
            Some(&at) => Ok(at),
            None => self.fail(&format!("unknown label {name}")),
        }
    }

    pub fn alu1(&mut self, ty: Ty, f: F1) -> Result<Op, Error> {
        Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::One(f, self.src(1, ty)?) })
    }

    pub fn alu2(&mut self, ty: Ty, f: F2) -> Result<Op, Error> {
        let s = [self.src(1, ty)?, self.src(2, ty)?];
        Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::Two(f, s) })
    }

    pub fn alu3(&mut self, ty: Ty, f: F3) -> Result<Op, Error> {
        let s = [self.src(1, ty)?, self.src(2, ty)?, self.src(3, ty)?];
        Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::Three(f, s) })
    }

    fn op(&mut self) -> Result<Op, Error> {
        let name = self.raw.parts[0].clone();
        match name.as_str() {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg"
            | "abs" => {
                if self.ty()?.is_int() {
                    self.int(&name)
                } else {
                    self.fp(&name)
                }
            }
            "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign"
            | "testp" => self.fp(&name),
            "mul24" | "mad24" | "sad" | "popc" | "clz" | "brev" | "bfind" | "bfe" | "bfi"
            | "shl" | "shr" | "shf" | "prmt" | "lop3" | "dp2a" | "dp4a" | "cnot" => self.int(&name),
            "and" | "or" | "xor" | "not" => {
                if self.ty()? == Ty::Pred {
                    self.pred_logic(&name)
                } else {
                    self.int(&name)
                }
            }
            "setp" => self.setp(),
            "set" => self.set(),
            "selp" | "slct" => self.select(&name),
            "mov" => self.mov(),
            "cvt" => self.cvt(),
            "cvta" | "isspacep" | "prefetch" | "prefetchu" | "applypriority" | "discard" | "ld"
            | "ldu" | "st" | "atom" | "red" => self.mem(&name),
            "bra" | "brx" | "ret" | "exit" | "trap" | "nanosleep" | "bar" | "barrier"
            | "membar" | "fence" | "griddepcontrol" | "setmaxnreg" => self.control(&name),
            "mbarrier" => self.mbarrier(),
            "cp" => self.cp(),
            "shfl" | "vote" | "match" | "redux" | "elect" | "activemask" | "ldmatrix"
            | "stmatrix" | "mma" => self.warp(&name),
            _ => self.fail("unsupported opcode"),
        }
    }
}
