//! Integer arithmetic, logic and bit fields (ISA §9.7.1, §9.7.8).

use super::Cx;
use crate::ptxvm::{
    error::Error,
    inst::{Alu, F2, F3, Op},
    types::{Ty, mask, sign_extend},
};

/// Reads the low bits of a cell as the number that the type says they are.
fn widen(ty: Ty) -> impl Fn(u64) -> i128 + Copy {
    let (bits, signed) = (ty.bits(), ty.signed());
    move |v| if signed { i128::from(sign_extend(v, bits)) } else { i128::from(v & mask(bits)) }
}

#[derive(Clone, Copy, PartialEq)]
enum Half {
    Lo,
    Hi,
    Wide,
}

impl Cx<'_> {
    fn half(&self) -> Result<Half, Error> {
        if self.has("wide") {
            Ok(Half::Wide)
        } else if self.has("hi") {
            Ok(Half::Hi)
        } else if self.has("lo") {
            Ok(Half::Lo)
        } else {
            self.fail("multiplication without .lo, .hi or .wide")
        }
    }

    pub(super) fn int(&mut self, name: &str) -> Result<Op, Error> {
        self.only(&[
            "lo", "hi", "wide", "sat", "wrap", "clamp", "l", "r", "shiftamt", "f4e", "b4e", "rc8",
            "ecl", "ecr", "rc16",
        ])?;
        let ty = self.ty()?;
        let bits = ty.bits();
        let w = widen(ty);
        let sat = self.has("sat");
        match name {
            "add" | "sub" if sat => {
                let sub = name == "sub";
                let (lo, hi) = (i128::from(i32::MIN), i128::from(i32::MAX));
                self.alu2(
                    ty,
                    Box::new(move |a, b| {
                        (if sub { w(a) - w(b) } else { w(a) + w(b) }).clamp(lo, hi) as u64
                    }),
                )
            }
            "add" => self.alu2(ty, Box::new(u64::wrapping_add)),
            "sub" => self.alu2(ty, Box::new(u64::wrapping_sub)),
            "mul" => {
                let f: F2 = match self.half()? {
                    Half::Lo => Box::new(u64::wrapping_mul),
                    Half::Wide if ty.signed() => Box::new(move |a, b| {
                        sign_extend(a, bits).wrapping_mul(sign_extend(b, bits)) as u64
                    }),
                    Half::Wide => {
                        Box::new(move |a, b| (a & mask(bits)).wrapping_mul(b & mask(bits)))
                    }
                    Half::Hi => Box::new(move |a, b| high(w(a), w(b), bits)),
                };
                self.alu2(ty, f)
            }
            "mad" => self.mad(ty),
            "mul24" | "mad24" => {
                let low24 = move |v: u64| {
                    if ty.signed() { sign_extend(v, 24) as u64 } else { v & 0xff_ffff }
                };
                let shift = if self.half()? == Half::Hi { 16 } else { 0 };
                let product = move |a, b| low24(a).wrapping_mul(low24(b)) >> shift;
                if name == "mul24" {
                    self.alu2(ty, Box::new(product))
                } else {
                    self.alu3(ty, Box::new(move |a, b, c| product(a, b).wrapping_add(c)))
                }
            }
            // The ISA leaves division by zero to the machine; GPUs return all ones.
            "div" => self.alu2(
                ty,
                Box::new(move |a, b| if w(b) == 0 { u64::MAX } else { (w(a) / w(b)) as u64 }),
            ),
            "rem" => self.alu2(
                ty,
                Box::new(move |a, b| if w(b) == 0 { w(a) as u64 } else { (w(a) % w(b)) as u64 }),
            ),
            "min" => self.alu2(ty, Box::new(move |a, b| w(a).min(w(b)) as u64)),
            "max" => self.alu2(ty, Box::new(move |a, b| w(a).max(w(b)) as u64)),
            "neg" => self.alu1(ty, Box::new(u64::wrapping_neg)),
            "abs" => self.alu1(ty, Box::new(move |a| w(a).unsigned_abs() as u64)),
            "sad" => self.alu3(
                ty,
                Box::new(move |a, b, c| c.wrapping_add((w(a) - w(b)).unsigned_abs() as u64)),
            ),
            "and" => self.alu2(ty, Box::new(|a, b| a & b)),
            "or" => self.alu2(ty, Box::new(|a, b| a | b)),
            "xor" => self.alu2(ty, Box::new(|a, b| a ^ b)),
            "not" => self.alu1(ty, Box::new(|a| !a)),
            "cnot" => self.alu1(ty, Box::new(move |a| u64::from(a & mask(bits) == 0))),
            "popc" => self.alu1(ty, Box::new(move |a| u64::from((a & mask(bits)).count_ones()))),
            "clz" => self.alu1(
                ty,
                Box::new(move |a| u64::from((a & mask(bits)).leading_zeros() - (64 - bits))),
            ),
            "brev" => self.alu1(ty, Box::new(move |a| a.reverse_bits() >> (64 - bits))),
            "bfind" => {
                let shiftamt = self.has("shiftamt");
                self.alu1(
                    ty,
                    Box::new(move |a| {
                        let v = w(a);
                        let v = (if v < 0 { !v } else { v }) as u64;
                        if v == 0 {
                            return u64::MAX;
                        }
                        let at = v.ilog2();
                        u64::from(if shiftamt { bits - 1 - at } else { at })
                    }),
                )
            }
            "shl" => {
                self.shift(ty, Box::new(move |a, n| if n >= u64::from(bits) { 0 } else { a << n }))
            }
            // i128 keeps the sign, so a clamped shift by 127 gives the sign fill.
            "shr" => self.shift(ty, Box::new(move |a, n| (w(a) >> n.min(127)) as u64)),
            "shf" => self.funnel(),
            "bfe" => {
                let s = [self.src(1, ty)?, self.src(2, Ty::U(32))?, self.src(3, Ty::U(32))?];
                let f: F3 = Box::new(move |a, pos, len| extract(a, pos & 255, len & 255, ty));
                Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::Three(f, s) })
            }
            "bfi" => {
                let s = [
                    self.src(1, ty)?,
                    self.src(2, ty)?,
                    self.src(3, Ty::U(32))?,
                    self.src(4, Ty::U(32))?,
                ];
                let f = Box::new(move |a, b, pos, len| insert(a, b, pos & 255, len & 255, bits));
                Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::Four(f, s) })
            }
            "prmt" => {
                let modes = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
                let mode = modes.iter().find(|m| self.has(m)).copied();
                self.alu3(ty, permute(mode))
            }
            "lop3" => {
                let lut = match self.operand(4)? {
                    crate::ptxvm::ast::Operand::Int(v) => *v as u64,
                    _ => return self.fail("lop3 needs an immediate table"),
                };
                self.alu3(ty, Box::new(move |a, b, c| lop3(a, b, c, lut)))
            }
            "dp2a" => self.dp2a(),
            "dp4a" => self.dp4a(),
            _ => self.fail("unsupported integer opcode"),
        }
    }

    fn shift(&mut self, ty: Ty, f: F2) -> Result<Op, Error> {
        let s = [self.src(1, ty)?, self.src(2, Ty::U(32))?];
        Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::Two(f, s) })
    }

    fn mad(&mut self, ty: Ty) -> Result<Op, Error> {
        let (bits, w) = (ty.bits(), widen(ty));
        let half = self.half()?;
        let c_ty = if half == Half::Wide { Ty::U(bits * 2) } else { ty };
        let s = [self.src(1, ty)?, self.src(2, ty)?, self.src(3, c_ty)?];
        let sat = self.has("sat");
        let f: F3 = match half {
            Half::Lo => Box::new(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Half::Wide => Box::new(move |a, b, c| (w(a).wrapping_mul(w(b)) as u64).wrapping_add(c)),
            Half::Hi if sat => Box::new(move |a, b, c| {
                let hi = sign_extend(high(w(a), w(b), bits), bits);
                (i128::from(hi) + w(c)).clamp(i128::from(i32::MIN), i128::from(i32::MAX)) as u64
            }),
            Half::Hi => Box::new(move |a, b, c| high(w(a), w(b), bits).wrapping_add(c)),
        };
        Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::Three(f, s) })
    }

    fn funnel(&mut self) -> Result<Op, Error> {
        let (left, clamp) = (self.has("l"), self.has("clamp"));
        self.alu3(
            Ty::B(32),
            Box::new(move |a, b, c| {
                let c = c & 0xffff_ffff;
                let n = if clamp { c.min(32) } else { c & 31 };
                let joined = (b << 32) | (a & 0xffff_ffff);
                if left { ((u128::from(joined) << n) >> 32) as u64 } else { joined >> n }
            }),
        )
    }

    /// Two 16-bit numbers of `a` by two of the four bytes of `b`.
    fn dp2a(&mut self) -> Result<Op, Error> {
        let types = self.types();
        let [at, bt] = types[..] else { return self.fail("dp2a needs two types") };
        let first = if self.half()? == Half::Hi { 16 } else { 0 };
        let number = |v: u64, bits: u32, ty: Ty| {
            let v = v & mask(bits);
            if ty.signed() { sign_extend(v, bits) } else { v as i64 }
        };
        self.alu3(
            Ty::U(32),
            Box::new(move |a, b, c| {
                let product =
                    |i: u32| number(a >> (16 * i), 16, at) * number(b >> (first + 8 * i), 8, bt);
                (c as i64).wrapping_add(product(0) + product(1)) as u64
            }),
        )
    }

    fn dp4a(&mut self) -> Result<Op, Error> {
        let types = self.types();
        let [at, bt] = types[..] else { return self.fail("dp4a needs two types") };
        let byte = |v: u64, i: u32, signed: bool| {
            let x = (v >> (8 * i)) as u8;
            if signed { i64::from(x as i8) } else { i64::from(x) }
        };
        self.alu3(
            Ty::U(32),
            Box::new(move |a, b, c| {
                let dot: i64 =
                    (0..4).map(|i| byte(a, i, at.signed()) * byte(b, i, bt.signed())).sum();
                (c as i64).wrapping_add(dot) as u64
            }),
        )
    }
}

fn high(a: i128, b: i128, bits: u32) -> u64 {
    // Unsigned 64-bit products need all 128 bits, so the product is kept as raw bits.
    (a.wrapping_mul(b) as u128 >> bits) as u64
}

fn extract(a: u64, pos: u64, len: u64, ty: Ty) -> u64 {
    let bits = u64::from(ty.bits());
    let msb = bits - 1;
    let bit = |i: u64| a >> i & 1;
    let fill = if !ty.signed() || len == 0 { 0 } else { bit((pos + len - 1).min(msb)) };
    let mut d = 0;
    for i in 0..bits {
        d |= (if i < len && pos + i <= msb { bit(pos + i) } else { fill }) << i;
    }
    d
}

fn insert(a: u64, b: u64, pos: u64, len: u64, bits: u32) -> u64 {
    if pos >= u64::from(bits) || len == 0 {
        return b;
    }
    let field = mask(len.min(64) as u32) << pos & mask(bits);
    (b & !field) | (a << pos & field)
}

fn lop3(a: u64, b: u64, c: u64, lut: u64) -> u64 {
    (0..8).filter(|i| lut >> i & 1 == 1).fold(0, |d, i| {
        let pick = |v: u64, bit: u64| if i >> bit & 1 == 1 { v } else { !v };
        d | (pick(a, 2) & pick(b, 1) & pick(c, 0))
    })
}

/// Byte permute: bytes of `b:a` picked by the nibbles of `c`, where bit 3 replicates the byte's
/// sign; or, in a mode, picked by the low two bits of `c` (ISA §9.7.9.7).
fn permute(mode: Option<&str>) -> F3 {
    let sel: fn(u64, u64) -> u64 = match mode {
        Some("f4e") => |n, i| (n + i) & 7,
        Some("b4e") => |n, i| n.wrapping_sub(i) & 7,
        Some("rc8") => |n, _| n,
        Some("ecl") => |n, i| i.max(n),
        Some("ecr") => |n, i| i.min(n),
        Some(_) => |n, i| (n & 1) * 2 + (i & 1),
        None => |c, i| c >> (4 * i) & 15,
    };
    let keep = if mode.is_some() { 3 } else { u64::MAX };
    Box::new(move |a, b, c| {
        let bytes = (b << 32) | (a & 0xffff_ffff);
        let mut d = 0;
        for i in 0..4 {
            let s = sel(c & keep, i);
            let byte = bytes >> (8 * (s & 7)) & 255;
            let byte = if s & 8 == 0 { byte } else { (byte >> 7) * 255 };
            d |= byte << (8 * i);
        }
        d
    })
}
