//! Conversions (ISA §9.7.9.21, `cvt` and `cvt.pack`).

use super::{Cx, fp::real};
use crate::ptxvm::{
    error::Error,
    float::{
        BF16, E4M3, E5M2, F16, F32, Format, NAN_F32, Round, TF32, bits_bf16, bits_f8, bits_f16,
        bits_f32, f8_of, f16_of, f32_of, flush,
    },
    inst::{Alu, F1, F2, Op},
    types::{Ty, mask, sign_extend},
};

/// From a real number to the bits of a small format.
type Narrow = Box<dyn Fn(f64) -> u64>;

impl Cx<'_> {
    pub(super) fn cvt(&mut self) -> Result<Op, Error> {
        self.only(&[
            "rn",
            "rz",
            "rm",
            "rp",
            "rni",
            "rzi",
            "rmi",
            "rpi",
            "rna",
            "ftz",
            "sat",
            "satfinite",
            "relu",
            "pack",
        ])?;
        let types = self.types();
        if self.has("pack") {
            return self.cvt_pack(&types);
        }
        let [to, from] = types[..] else { return self.fail("cvt needs two types") };
        match (to, from) {
            (Ty::F16x2 | Ty::Bf16x2 | Ty::E4m3x2 | Ty::E5m2x2, Ty::F32) => {
                let half = self.narrow(to)?;
                let f: F2 = Box::new(move |a, b| {
                    half.0(f64::from(f32_of(a))) << half.1 | half.0(f64::from(f32_of(b)))
                });
                self.alu2(from, f)
            }
            (Ty::F16x2, Ty::E4m3x2 | Ty::E5m2x2) => {
                let format = if from == Ty::E4m3x2 { E4M3 } else { E5M2 };
                let relu = self.has("relu");
                let one = move |v: u64| {
                    let x = f8_of(v, format);
                    bits_f16(if relu && x < 0.0 { 0.0 } else { x }, Round::Nearest)
                };
                self.alu1(from, Box::new(move |a| one(a) | one(a >> 8) << 16))
            }
            (Ty::E4m3x2 | Ty::E5m2x2, Ty::F16x2) => {
                let half = self.narrow(to)?.0;
                self.alu1(from, Box::new(move |a| half(f16_of(a)) | half(f16_of(a >> 16)) << 8))
            }
            _ if to.is_int() && from.is_int() => self.int_to_int(to, from),
            _ if to.is_int() => self.float_to_int(to, from),
            _ if from.is_int() => self.int_to_float(to, from),
            _ => self.float_to_float(to, from),
        }
    }

    /// From a real number to one half of a packed format, and the width of that half.
    fn narrow(&self, to: Ty) -> Result<(Narrow, u32), Error> {
        let mode = if self.has("rz") { Round::Zero } else { Round::Nearest };
        let (relu, finite) = (self.has("relu"), self.has("satfinite"));
        let prepare = move |v: f64, f: Format| {
            let v = if relu && v < 0.0 { 0.0 } else { v };
            if finite && !v.is_nan() { f.round(v, mode).clamp(-max_of(f), max_of(f)) } else { v }
        };
        Ok(match to {
            Ty::F16 | Ty::F16x2 => (Box::new(move |v| bits_f16(prepare(v, F16), mode)), 16),
            Ty::Bf16 | Ty::Bf16x2 => (Box::new(move |v| bits_bf16(prepare(v, BF16), mode)), 16),
            Ty::E4m3x2 => (Box::new(move |v| bits_f8(prepare(v, E4M3), E4M3)), 8),
            Ty::E5m2x2 => (Box::new(move |v| bits_f8(prepare(v, E5M2), E5M2)), 8),
            _ => return self.fail("unsupported conversion"),
        })
    }

    fn int_to_int(&mut self, to: Ty, from: Ty) -> Result<Op, Error> {
        let bits = from.bits();
        let f: F1 = if self.has("sat") {
            let (lo, hi) = int_range(to);
            Box::new(move |a| widen(a, from).clamp(lo, hi) as u64)
        } else if from.signed() {
            let keep = mask(to.bits());
            if to.signed() {
                Box::new(move |a| sign_extend(sign_extend(a, bits) as u64 & keep, to.bits()) as u64)
            } else {
                Box::new(move |a| sign_extend(a, bits) as u64 & keep)
            }
        } else if to.signed() {
            Box::new(move |a| sign_extend(a & mask(bits), to.bits()) as u64)
        } else {
            let keep = mask(bits.min(to.bits()));
            Box::new(move |a| a & keep)
        };
        self.alu1(from, f)
    }

    fn int_rounding(&self) -> Option<Round> {
        let named = |p: &&String| matches!(p.as_str(), "rni" | "rzi" | "rmi" | "rpi");
        self.raw.parts[1..].iter().find(named).and_then(|p| Round::parse(p))
    }

    fn float_to_int(&mut self, to: Ty, from: Ty) -> Result<Op, Error> {
        let Some(value) = real(from) else { return self.fail("unsupported conversion") };
        let Some(mode) = self.int_rounding() else {
            return self.fail("float to integer needs an integer rounding modifier");
        };
        let ftz = self.has("ftz");
        let (lo, hi) = int_range(to);
        // Out of range values clamp. NaN is 0, but 2^63 where f64 or a 64-bit integer takes part.
        let wide = to.bits() == 64 || from == Ty::F64;
        let nan = if wide { 1 << (to.bits() - 1) } else { 0 };
        self.alu1(
            from,
            Box::new(move |a| {
                let v = value(a);
                if v.is_nan() {
                    return nan;
                }
                let v = if ftz { f64::from(flush(v as f32)) } else { v };
                // `as` to i128 saturates far outside every range here.
                (mode.integral(v) as i128).clamp(lo, hi) as u64
            }),
        )
    }

    fn int_to_float(&mut self, to: Ty, from: Ty) -> Result<Op, Error> {
        let mode =
            self.raw.parts[1..].iter().find_map(|p| Round::parse(p)).unwrap_or(Round::Nearest);
        let f: F1 = match to {
            Ty::F64 if mode == Round::Nearest => {
                Box::new(move |a| (widen(a, from) as f64).to_bits())
            }
            Ty::F32 if mode == Round::Nearest => Box::new(move |a| bits_f32(widen(a, from) as f32)),
            Ty::F32 => Box::new(move |a| bits_f32(F32.round(odd(widen(a, from)), mode) as f32)),
            Ty::F16 => Box::new(move |a| bits_f16(odd(widen(a, from)), mode)),
            Ty::Bf16 => Box::new(move |a| bits_bf16(odd(widen(a, from)), mode)),
            _ => return self.fail("unsupported conversion"),
        };
        self.alu1(from, f)
    }

    fn float_to_float(&mut self, to: Ty, from: Ty) -> Result<Op, Error> {
        let Some(value) = real(from) else { return self.fail("unsupported conversion") };
        let (ftz, sat) = (self.has("ftz"), self.has("sat"));
        let relu = self.has("relu");
        let integral = self.int_rounding();
        let mode =
            self.raw.parts[1..].iter().find_map(|p| Round::parse(p)).unwrap_or(Round::Nearest);
        let input = move |a: u64| {
            let v = value(a);
            let v = if ftz && from == Ty::F32 { f64::from(flush(v as f32)) } else { v };
            let v = if sat { if v > 0.0 { v.min(1.0) } else { 0.0 } } else { v };
            match integral {
                Some(m) => m.integral(v),
                None => v,
            }
        };
        let f: F1 = match to {
            Ty::F64 => Box::new(move |a| input(a).to_bits()),
            Ty::F32 => Box::new(move |a| {
                let v = F32.round(input(a), mode) as f32;
                bits_f32(if ftz { flush(v) } else { v })
            }),
            Ty::F16 | Ty::Bf16 => {
                let half = self.narrow(to)?.0;
                Box::new(move |a| half(input(a)))
            }
            Ty::Tf32 => Box::new(move |a| {
                let v = input(a);
                if v.is_nan() {
                    return u64::from(NAN_F32);
                }
                let v = if relu && v < 0.0 { 0.0 } else { v };
                u64::from((TF32.round(v, mode) as f32).to_bits())
            }),
            _ => return self.fail("unsupported conversion"),
        };
        self.alu1(from, f)
    }

    /// `cvt.pack.sat.{s8,u8}.s32.b32 d, a, b, c` and `cvt.pack.sat.{s16,u16}.s32 d, a, b`.
    fn cvt_pack(&mut self, types: &[Ty]) -> Result<Op, Error> {
        let Some(&to) = types.first() else { return self.fail("cvt.pack needs types") };
        if !matches!(to.bits(), 8 | 16) || types.get(1) != Some(&Ty::S(32)) {
            return self.fail("unsupported cvt.pack types");
        }
        let (lo, hi) = int_range(to);
        let bits = to.bits();
        let one = move |v| widen(v, Ty::S(32)).clamp(lo, hi) as u64 & mask(bits);
        let pair = move |a, b| one(a) << bits | one(b);
        if types.len() == 2 {
            return self.alu2(Ty::S(32), Box::new(pair));
        }
        let s = [self.src(1, Ty::S(32))?, self.src(2, Ty::S(32))?, self.src(3, Ty::B(32))?];
        let f = Box::new(move |a, b, c| pair(a, b) | c << (2 * bits));
        Ok(Op::Alu { dst: self.dst(0)?, alu: Alu::Three(f, s) })
    }
}

fn max_of(f: Format) -> f64 {
    f.round(f64::MAX, Round::Zero)
}

fn widen(v: u64, ty: Ty) -> i128 {
    if ty.signed() { sign_extend(v, ty.bits()).into() } else { (v & mask(ty.bits())).into() }
}

fn int_range(ty: Ty) -> (i128, i128) {
    if ty.signed() {
        (-(1 << (ty.bits() - 1)), (1 << (ty.bits() - 1)) - 1)
    } else {
        (0, mask(ty.bits()).into())
    }
}

/// An integer as f64 rounded to odd, so that rounding again rounds once.
fn odd(v: i128) -> f64 {
    let f = v as f64;
    if f as i128 == v || f.to_bits() & 1 == 1 {
        return f;
    }
    let grows = ((f as i128) < v) == (v > 0);
    f64::from_bits(if grows { f.to_bits() + 1 } else { f.to_bits() - 1 })
}
