//! From an [`Isa`] value to the type that kernels are generic over.

#[cfg(target_arch = "aarch64")]
use crate::base::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::base::simd::{Avx2, Avx512};
use crate::base::simd::{Isa, Portable, Simd};

/// A computation that is generic over the instruction set.
pub(super) trait SimdVisitor {
    type Output;
    fn visit<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs it on `isa`, which [`Isa::available`] names.
pub(super) fn visit<T: SimdVisitor>(isa: Isa, visitor: T) -> T::Output {
    // Detection is what makes a value of a set, so each arm has a branch that no available set takes.
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => match Avx512::detect() {
            Some(simd) => visitor.visit(simd),
            None => visitor.visit(Portable),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => match Avx2::detect() {
            Some(simd) => visitor.visit(simd),
            None => visitor.visit(Portable),
        },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => match Neon::detect() {
            Some(simd) => visitor.visit(simd),
            None => visitor.visit(Portable),
        },
        _ => visitor.visit(Portable),
    }
}
