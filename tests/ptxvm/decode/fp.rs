//! Floating-point arithmetic (ISA §9.7.3 to §9.7.5).

use super::Cx;
use crate::ptxvm::{
    error::Error,
    float::{
        self, F32, Round, bf16_of, bits_bf16, bits_f16, bits_f32, f16_of, f32_of, flush, fma_odd,
        min_max,
    },
    inst::{Alu, F1, F2, F3, Op},
    types::Ty,
};

/// Modifiers of an f32 instruction.
#[derive(Clone, Copy)]
struct Mods {
    ftz: bool,
    sat: bool,
}

impl Mods {
    #[inline(always)]
    fn input(self, v: u64) -> f32 {
        if self.ftz { flush(f32_of(v)) } else { f32_of(v) }
    }

    #[inline(always)]
    fn output(self, v: f32) -> u64 {
        let v = if self.ftz { flush(v) } else { v };
        // `.sat` turns NaN into +0.
        bits_f32(if self.sat { if v > 0.0 { v.min(1.0) } else { 0.0 } } else { v })
    }

    fn f1(self, f: impl Fn(f32) -> f32 + 'static) -> F1 {
        Box::new(move |a| self.output(f(self.input(a))))
    }

    fn f2(self, f: impl Fn(f32, f32) -> f32 + 'static) -> F2 {
        Box::new(move |a, b| self.output(f(self.input(a), self.input(b))))
    }

    fn f3(self, f: impl Fn(f32, f32, f32) -> f32 + 'static) -> F3 {
        Box::new(move |a, b, c| self.output(f(self.input(a), self.input(b), self.input(c))))
    }
}

/// A 16-bit float type: how one half is read and written, and whether there are two.
#[derive(Clone, Copy)]
struct Half {
    bf: bool,
    packed: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
}

impl Half {
    #[inline(always)]
    fn input(self, v: u64) -> f64 {
        if self.bf {
            return bf16_of(v);
        }
        let f = f16_of(v);
        if self.ftz && f.abs() < 6.103_515_625e-5 { 0f64.copysign(f) } else { f }
    }

    #[inline(always)]
    fn output(self, v: f64) -> u64 {
        let v = if self.sat { if v > 0.0 { v.min(1.0) } else { 0.0 } } else { v };
        let v = if self.relu && v < 0.0 { 0.0 } else { v };
        if self.bf {
            return bits_bf16(v, Round::Nearest);
        }
        let bits = bits_f16(v, Round::Nearest);
        if self.ftz && bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
    }

    fn map(self, f: impl Fn(u64) -> u64) -> u64 {
        if self.packed { f(0) | f(16) << 16 } else { f(0) }
    }

    fn f1(self, f: impl Fn(f64) -> f64 + 'static) -> F1 {
        Box::new(move |a| self.map(|s| self.output(f(self.input(a >> s)))))
    }

    fn f2(self, f: impl Fn(f64, f64) -> f64 + 'static) -> F2 {
        Box::new(move |a, b| self.map(|s| self.output(f(self.input(a >> s), self.input(b >> s)))))
    }

    fn f3(self, f: impl Fn(f64, f64, f64) -> f64 + 'static) -> F3 {
        Box::new(move |a, b, c| {
            self.map(|s| self.output(f(self.input(a >> s), self.input(b >> s), self.input(c >> s))))
        })
    }
}

fn d(v: u64) -> f64 {
    f64::from_bits(v)
}

impl Cx<'_> {
    pub(super) fn fp(&mut self, name: &str) -> Result<Op, Error> {
        self.only(&[
            "rn",
            "rz",
            "rm",
            "rp",
            "ftz",
            "sat",
            "approx",
            "full",
            "relu",
            "NaN",
            "finite",
            "infinite",
            "number",
            "notanumber",
            "normal",
            "subnormal",
            "xorsign",
            "abs",
        ])?;
        if self.has("xorsign") {
            return self.fail("unsupported modifier .xorsign");
        }
        let ty = self.ty()?;
        match ty {
            _ if name == "testp" => self.testp(ty),
            Ty::F32 => self.f32_op(name),
            Ty::F64 => self.f64_op(name),
            Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 => self.half_op(name, ty),
            _ => self.fail("unsupported type for a floating-point opcode"),
        }
    }

    fn rounding(&self) -> Round {
        self.raw.parts[1..].iter().find_map(|p| Round::parse(p)).unwrap_or(Round::Nearest)
    }

    fn f32_op(&mut self, name: &str) -> Result<Op, Error> {
        let m = Mods { ftz: self.has("ftz"), sat: self.has("sat") };
        let (nan, mode) = (self.has("NaN"), self.rounding());
        let ty = Ty::F32;
        if mode != Round::Nearest {
            return self.f32_directed(name, m, mode);
        }
        let wide = |f: fn(f64) -> f64| m.f1(move |a| f(f64::from(a)) as f32);
        match name {
            "add" => self.alu2(ty, m.f2(|a, b| a + b)),
            "sub" => self.alu2(ty, m.f2(|a, b| a - b)),
            "mul" => self.alu2(ty, m.f2(|a, b| a * b)),
            "fma" | "mad" => self.alu3(ty, m.f3(float::fma_f32)),
            "div" => self.alu2(ty, m.f2(|a, b| a / b)),
            "min" | "max" => {
                let max = name == "max";
                let pick = move |a: f32, b: f32| min_max(a.into(), b.into(), max, nan) as f32;
                if self.count() == 4 {
                    return self.alu3(ty, m.f3(move |a, b, c| pick(pick(a, b), c)));
                }
                self.alu2(ty, m.f2(pick))
            }
            // Sign operations leave every other bit alone, NaN payloads too.
            "neg" if !m.ftz => self.alu1(ty, Box::new(|a| a ^ 0x8000_0000)),
            "abs" if !m.ftz => self.alu1(ty, Box::new(|a| a & 0x7fff_ffff)),
            "neg" => self.alu1(ty, m.f1(|a| -a)),
            "abs" => self.alu1(ty, m.f1(f32::abs)),
            "copysign" => self.alu2(ty, Box::new(|a, b| (a & 0x8000_0000) | (b & 0x7fff_ffff))),
            "rcp" => self.alu1(ty, m.f1(|a| 1.0 / a)),
            "sqrt" => self.alu1(ty, m.f1(f32::sqrt)),
            "rsqrt" => self.alu1(ty, wide(|a| 1.0 / a.sqrt())),
            "ex2" => self.alu1(ty, wide(f64::exp2)),
            "lg2" => self.alu1(ty, wide(f64::log2)),
            "sin" => self.alu1(ty, wide(f64::sin)),
            "cos" => self.alu1(ty, wide(f64::cos)),
            "tanh" => self.alu1(ty, wide(f64::tanh)),
            _ => self.fail("unsupported f32 opcode"),
        }
    }

    fn f32_directed(&mut self, name: &str, m: Mods, mode: Round) -> Result<Op, Error> {
        let fma = move |a: f32, b: f32, c: f32| {
            let exact = fma_odd(a.into(), b.into(), c.into());
            // An exact zero from operands of opposite sign is −0 only when rounding down.
            if exact == 0.0 && mode == Round::Down && (a * b != 0.0 || c.is_sign_negative()) {
                return -0.0;
            }
            F32.round(exact, mode) as f32
        };
        match name {
            "add" => self.alu2(Ty::F32, m.f2(move |a, b| fma(a, 1.0, b))),
            "sub" => self.alu2(Ty::F32, m.f2(move |a, b| fma(a, 1.0, -b))),
            "mul" => self.alu2(
                Ty::F32,
                m.f2(move |a, b| F32.round(f64::from(a) * f64::from(b), mode) as f32),
            ),
            "fma" | "mad" => self.alu3(Ty::F32, m.f3(fma)),
            _ => self.fail("unsupported rounding direction for this opcode"),
        }
    }

    fn f64_op(&mut self, name: &str) -> Result<Op, Error> {
        let ty = Ty::F64;
        if self.rounding() != Round::Nearest {
            return self.fail("unsupported rounding direction for f64");
        }
        let f1 = |f: fn(f64) -> f64| -> F1 { Box::new(move |a| f(d(a)).to_bits()) };
        let f2 = |f: fn(f64, f64) -> f64| -> F2 { Box::new(move |a, b| f(d(a), d(b)).to_bits()) };
        match name {
            "add" => self.alu2(ty, f2(|a, b| a + b)),
            "sub" => self.alu2(ty, f2(|a, b| a - b)),
            "mul" => self.alu2(ty, f2(|a, b| a * b)),
            "div" => self.alu2(ty, f2(|a, b| a / b)),
            "min" => self.alu2(ty, f2(|a, b| min_max(a, b, false, false))),
            "max" => self.alu2(ty, f2(|a, b| min_max(a, b, true, false))),
            "fma" | "mad" => self.alu3(ty, Box::new(|a, b, c| d(a).mul_add(d(b), d(c)).to_bits())),
            "neg" => self.alu1(ty, Box::new(|a| a ^ 1 << 63)),
            "abs" => self.alu1(ty, Box::new(|a| a & !(1 << 63))),
            "copysign" => self.alu2(ty, f2(|a, b| b.copysign(a))),
            "rcp" => self.alu1(ty, f1(|a| 1.0 / a)),
            "sqrt" => self.alu1(ty, f1(f64::sqrt)),
            "rsqrt" => self.alu1(ty, f1(|a| 1.0 / a.sqrt())),
            _ => self.fail("unsupported f64 opcode"),
        }
    }

    fn half_op(&mut self, name: &str, ty: Ty) -> Result<Op, Error> {
        let h = Half {
            bf: matches!(ty, Ty::Bf16 | Ty::Bf16x2),
            packed: matches!(ty, Ty::F16x2 | Ty::Bf16x2),
            ftz: self.has("ftz"),
            sat: self.has("sat"),
            relu: self.has("relu"),
        };
        let nan = self.has("NaN");
        let sign: u64 = if h.packed { 0x8000_8000 } else { 0x8000 };
        match name {
            "add" => self.alu2(ty, h.f2(|a, b| fma_odd(a, 1.0, b))),
            "sub" => self.alu2(ty, h.f2(|a, b| fma_odd(a, 1.0, -b))),
            "mul" => self.alu2(ty, h.f2(|a, b| a * b)),
            "fma" => self.alu3(ty, h.f3(fma_odd)),
            "min" => self.alu2(ty, h.f2(move |a, b| min_max(a, b, false, nan))),
            "max" => self.alu2(ty, h.f2(move |a, b| min_max(a, b, true, nan))),
            "neg" => self.alu1(ty, Box::new(move |a| a ^ sign)),
            "abs" => self.alu1(ty, Box::new(move |a| a & !sign)),
            "ex2" => self.alu1(ty, h.f1(f64::exp2)),
            "tanh" => self.alu1(ty, h.f1(f64::tanh)),
            _ => self.fail("unsupported 16-bit float opcode"),
        }
    }

    fn testp(&mut self, ty: Ty) -> Result<Op, Error> {
        let value: fn(u64) -> f64 = match ty {
            Ty::F32 => |v| f64::from(f32_of(v)),
            Ty::F64 => d,
            _ => return self.fail("unsupported type for testp"),
        };
        let subnormal = move |v: f64| match ty {
            Ty::F32 => (v as f32).is_subnormal(),
            _ => v.is_subnormal(),
        };
        let test: Box<dyn Fn(f64) -> bool> = match self.raw.parts[1].as_str() {
            "finite" => Box::new(f64::is_finite),
            "infinite" => Box::new(f64::is_infinite),
            "number" => Box::new(|v: f64| !v.is_nan()),
            "notanumber" => Box::new(f64::is_nan),
            "normal" => Box::new(move |v: f64| v.is_finite() && v != 0.0 && !subnormal(v)),
            "subnormal" => Box::new(subnormal),
            _ => return self.fail("unsupported test"),
        };
        let dst = self.operand(0)?.clone();
        Ok(Op::Setp {
            p: self.pdst_of(&dst)?,
            q: None,
            a: self.src(1, ty)?,
            b: crate::ptxvm::inst::Src::Imm(0),
            cmp: Box::new(move |a, _| test(value(a))),
            combine: None,
        })
    }
}

/// The value of a register cell as a real number, for types that are floating point.
pub(super) fn real(ty: Ty) -> Option<fn(u64) -> f64> {
    Some(match ty {
        Ty::F32 => |v| f64::from(f32_of(v)),
        Ty::F64 => d,
        Ty::F16 => float::f16_of,
        Ty::Bf16 => float::bf16_of,
        _ => return None,
    })
}

/// The operation of an `Alu::Two`, for reuse by atomics.
pub(super) fn two(op: Op) -> Option<F2> {
    match op {
        Op::Alu { alu: Alu::Two(f, _), .. } => Some(f),
        _ => None,
    }
}
