//! Floating-point formats and rounding. Values travel as f64; every result is rounded once.

use half::{bf16, f16};

/// IEEE-style rounding directions of PTX (`.rn .rz .rm .rp`, and `.rna` ties away).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
    Away,
}

impl Round {
    pub fn parse(s: &str) -> Option<Round> {
        Some(match s {
            "rn" | "rni" => Round::Nearest,
            "rz" | "rzi" => Round::Zero,
            "rm" | "rmi" => Round::Down,
            "rp" | "rpi" => Round::Up,
            "rna" => Round::Away,
            _ => return None,
        })
    }

    /// `v` to an integral value.
    pub fn integral(self, v: f64) -> f64 {
        match self {
            Round::Nearest => v.round_ties_even(),
            Round::Zero => v.trunc(),
            Round::Down => v.floor(),
            Round::Up => v.ceil(),
            Round::Away => v.round(),
        }
    }
}

/// A binary format by its stored mantissa bits, smallest normal exponent and largest value.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    mantissa: i32,
    min_exp: i32,
    max: f64,
}

pub const F16: Format = Format { mantissa: 10, min_exp: -14, max: 65504.0 };
pub const BF16: Format = Format { mantissa: 7, min_exp: -126, max: 3.389_531_389_251_535_5e38 };
pub const TF32: Format = Format { mantissa: 10, min_exp: -126, max: 3.401_162_134_214_653e38 };
pub const F32: Format = Format { mantissa: 23, min_exp: -126, max: f32::MAX as f64 };
pub const E4M3: Format = Format { mantissa: 3, min_exp: -6, max: 448.0 };
pub const E5M2: Format = Format { mantissa: 2, min_exp: -14, max: 57344.0 };

impl Format {
    /// Rounds `v` to this format once. Past the largest value the result is an infinity or the
    /// largest value, as the rounding direction says.
    pub fn round(self, v: f64, mode: Round) -> f64 {
        if v == 0.0 || !v.is_finite() {
            return v;
        }
        let exp = (((v.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(self.min_exp);
        let ulp = exp2i(exp - self.mantissa);
        let r = mode.integral(v / ulp) * ulp;
        if r.abs() <= self.max {
            return r.copysign(v);
        }
        let inward = match mode {
            Round::Nearest | Round::Away => false,
            Round::Zero => true,
            Round::Down => v > 0.0,
            Round::Up => v < 0.0,
        };
        if inward { self.max.copysign(v) } else { f64::INFINITY.copysign(v) }
    }
}

/// 2^e for the exponents that f64 has as normal numbers.
fn exp2i(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// `a * b + c` rounded to odd: rounding the result again, to a format of at most 51 bits, gives
/// what one rounding of the exact value gives. The product must be exact in f64, as it is for
/// factors of 26 bits or fewer.
pub fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    let p = a * b;
    let s = p + c;
    if !s.is_finite() {
        return s;
    }
    let t = s - p;
    let err = (p - (s - t)) + (c - t);
    if err == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    let grows = (err > 0.0) == (s > 0.0);
    f64::from_bits(if grows { s.to_bits() + 1 } else { s.to_bits() - 1 })
}

/// `a * b + c` in f32, rounded once to nearest: f64 does it but where its own rounding lands on a
/// tie of f32, or the result may be subnormal.
pub fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
    let s = f64::from(a) * f64::from(b) + f64::from(c);
    if s.to_bits() & 0x1fff_ffff == 0x1000_0000 || s.abs() < 1e-37 {
        let odd = fma_odd(a.into(), b.into(), c.into());
        return F32.round(odd, Round::Nearest) as f32;
    }
    s as f32
}

pub const NAN_F32: u32 = 0x7fff_ffff;
pub const NAN_16: u16 = 0x7fff;

#[inline(always)]
pub fn f32_of(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

/// The bits of an f32 result; PTX makes every NaN the canonical one.
#[inline(always)]
pub fn bits_f32(v: f32) -> u64 {
    u64::from(if v.is_nan() { NAN_F32 } else { v.to_bits() })
}

#[inline(always)]
pub fn flush(v: f32) -> f32 {
    if v.is_subnormal() { 0f32.copysign(v) } else { v }
}

pub fn f16_of(v: u64) -> f64 {
    f16::from_bits(v as u16).to_f64()
}

pub fn bf16_of(v: u64) -> f64 {
    bf16::from_bits(v as u16).to_f64()
}

pub fn bits_f16(v: f64, mode: Round) -> u64 {
    if v.is_nan() {
        return u64::from(NAN_16);
    }
    u64::from(f16::from_f64(F16.round(v, mode)).to_bits())
}

pub fn bits_bf16(v: f64, mode: Round) -> u64 {
    if v.is_nan() {
        return u64::from(NAN_16);
    }
    u64::from(bf16::from_f64(BF16.round(v, mode)).to_bits())
}

/// Eight-bit floats: e4m3 has no infinity and one NaN per sign; e5m2 is IEEE-like.
pub fn f8_of(v: u64, f: Format) -> f64 {
    let (v, m) = (v as u8, f.mantissa);
    let sign = if v & 0x80 != 0 { -1.0 } else { 1.0 };
    let (exp, frac) = (i32::from(v & 0x7f) >> m, i32::from(v) & ((1 << m) - 1));
    let e5m2 = m == 2;
    if e5m2 && exp == 31 {
        return if frac == 0 { sign * f64::INFINITY } else { f64::NAN };
    }
    if !e5m2 && v & 0x7f == 0x7f {
        return f64::NAN;
    }
    let unit = exp2i(exp.max(1) - 1 + f.min_exp - m);
    sign * unit * f64::from(if exp == 0 { frac } else { frac + (1 << m) })
}

/// To an eight-bit float, nearest even, saturating to the largest finite value; NaN is 0x7f.
pub fn bits_f8(v: f64, f: Format) -> u64 {
    if v.is_nan() {
        return 0x7f;
    }
    let sign = u64::from(v.is_sign_negative()) << 7;
    let r = f.round(v, Round::Nearest).abs().min(f.max);
    if r == 0.0 {
        return sign;
    }
    let exp = (((r.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(f.min_exp);
    let units = (r / exp2i(exp - f.mantissa)) as u64;
    sign | ((((exp - f.min_exp) as u64) << f.mantissa) + units)
}

/// PTX `min`/`max`: a NaN operand loses unless `nan` says that it wins; −0 < +0.
pub fn min_max(a: f64, b: f64, max: bool, nan: bool) -> f64 {
    if a.is_nan() || b.is_nan() {
        return if nan || (a.is_nan() && b.is_nan()) {
            f64::NAN
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    let a_less = a < b || (a == b && a.is_sign_negative());
    if a_less != max { a } else { b }
}
