//! The SIMD vocabulary that kernels and formats are written in.
//!
//! A kernel is one generic function over [`Simd`]; the instruction set is chosen at run time by
//! [`Isa::detect`] and reached through [`Simd::vectorize`], which compiles the closure (and all that
//! is inlined into it) with the target features of that set. Every operation of an implementation is
//! therefore `#[inline(always)]`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;

/// An instruction set, as a value that proves that the machine has it.
///
/// The memory operations take raw pointers because kernels walk page bytes of many formats; each
/// states how much it reads. No operation needs alignment.
pub trait Simd: Copy + Send + Sync + 'static {
    /// A vector of [`LANES`](Self::LANES) f32 values.
    type V: Copy;
    /// f32 lanes of a vector; divides [`Channels::ALIGN`](super::Channels::ALIGN).
    const LANES: usize;

    /// Runs `f` compiled for this instruction set.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Reads `LANES` f32.
    ///
    /// # Safety
    /// `p` is valid for reading `4 * LANES` bytes.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// Writes `LANES` f32.
    ///
    /// # Safety
    /// `p` is valid for writing `4 * LANES` bytes.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Reads `LANES` IEEE half-precision values.
    ///
    /// # Safety
    /// `p` is valid for reading `2 * LANES` bytes.
    unsafe fn load_f16(self, p: *const u8) -> Self::V;
    /// Reads `LANES` bfloat16 values.
    ///
    /// # Safety
    /// `p` is valid for reading `2 * LANES` bytes.
    unsafe fn load_bf16(self, p: *const u8) -> Self::V;
    /// Reads `LANES` signed bytes.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` bytes.
    unsafe fn load_i8(self, p: *const u8) -> Self::V;

    /// Two bfloat16 values, given by the bits of the first and, above, of the second: all lanes the one,
    /// all lanes the other.
    #[inline(always)]
    fn splat_bf16(self, bits: u32) -> [Self::V; 2] {
        [self.splat(f32::from_bits(bits << 16)), self.splat(f32::from_bits(bits & 0xffff_0000))]
    }

    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the set has it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each lane. NaN where `b` is; where only `a` is, NaN or `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each lane. NaN where `b` is; where only `a` is, NaN or `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Rounded to the nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `2^a` for integral `a` in `-126.0..=127.0`.
    fn exp2_int(self, a: Self::V) -> Self::V;
    /// Sum over the lanes.
    fn reduce_add(self, a: Self::V) -> f32;
    /// Maximum over the lanes; a NaN may be dropped.
    fn reduce_max(self, a: Self::V) -> f32;
    /// `a`, computed here: keeps the compiler from putting the work off until registers run out.
    #[inline(always)]
    fn pin(self, a: Self::V) -> Self::V {
        a
    }
    /// Four vectors as one that [`finish_sums`](Self::finish_sums) reads: the first half of the work
    /// of their lane sums, such that the second can serve several of them.
    fn fold_sums(self, four: [Self::V; 4]) -> Self::V;
    /// The lane sums of four times four vectors.
    fn finish_sums(self, folded: [Self::V; 4]) -> [[f32; 4]; 4];
}

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isa {
    /// Plain Rust over arrays of eight; what the compiler makes of it.
    Portable,
    /// Arm Advanced SIMD with half-precision conversion.
    Neon,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Isa {
    /// The widest set this machine has, found once. `HEADWISE_ISA` (portable, neon, avx2, avx512)
    /// asks for a lesser one, for tests and comparisons; a set the machine lacks is ignored.
    pub fn detect() -> Self {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| {
            let available = Self::available();
            let wish = std::env::var("HEADWISE_ISA").ok().and_then(|name| Self::from_name(&name));
            wish.filter(|isa| available.contains(isa))
                .or(available.last().copied())
                .unwrap_or(Self::Portable)
        })
    }

    /// The sets this machine has, narrowest first.
    pub fn available() -> Vec<Self> {
        let mut sets = vec![Self::Portable];
        #[cfg(target_arch = "aarch64")]
        if Neon::detect().is_some() {
            sets.push(Self::Neon);
        }
        #[cfg(target_arch = "x86_64")]
        {
            if Avx2::detect().is_some() {
                sets.push(Self::Avx2);
            }
            if Avx512::detect().is_some() {
                sets.push(Self::Avx512);
            }
        }
        sets
    }

    /// Runs `f`, plain Rust, compiled for this set; for one that the machine lacks, as it is.
    #[inline]
    pub fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // Detection is what makes a value of a set, so each arm has a branch that no available set takes.
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => match Avx512::detect() {
                Some(simd) => simd.vectorize(f),
                None => f(),
            },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => match Avx2::detect() {
                Some(simd) => simd.vectorize(f),
                None => f(),
            },
            // Every 64-bit Arm has NEON, so that plain Rust is compiled for it anyway.
            _ => f(),
        }
    }

    /// The set called `name`, in lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "portable" => Some(Self::Portable),
            "neon" => Some(Self::Neon),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
