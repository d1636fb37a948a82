//! Rows that engines have in host memory.

use half::{bf16, f16, slice::HalfFloatSliceExt};

/// Rows of Q, K or V in host memory, one after another.
#[derive(Clone, Copy, Debug)]
pub enum HostRows<'a> {
    /// Single precision: what host attention computes in.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// Where the rows of an output go in host memory.
#[derive(Debug)]
pub enum HostOut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half precision, rounded to nearest.
    F16(&'a mut [f16]),
    /// bfloat16, rounded to nearest.
    Bf16(&'a mut [bf16]),
}

impl<'a> HostRows<'a> {
    /// Values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values in single precision, in `buffer` unless they are.
    pub(super) fn widen<'b>(self, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(values) => return values,
            Self::F16(values) => {
                buffer.resize(values.len(), 0.0);
                values.convert_to_f32_slice(buffer);
            }
            Self::Bf16(values) => {
                buffer.resize(values.len(), 0.0);
                values.convert_to_f32_slice(buffer);
            }
        }
        buffer
    }
}

impl HostOut<'_> {
    /// Values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has `f` fill single-precision values and stores them; `buffer` is for those that are not.
    pub(super) fn fill<R, E>(
        self,
        buffer: &mut Vec<f32>,
        f: impl FnOnce(&mut [f32]) -> Result<R, E>,
    ) -> Result<R, E> {
        match self {
            Self::F32(values) => f(values),
            Self::F16(values) => {
                buffer.resize(values.len(), 0.0);
                let done = f(buffer)?;
                values.convert_from_f32_slice(buffer);
                Ok(done)
            }
            Self::Bf16(values) => {
                buffer.resize(values.len(), 0.0);
                let done = f(buffer)?;
                values.convert_from_f32_slice(buffer);
                Ok(done)
            }
        }
    }
}

/// From slices, vectors and arrays of each type.
macro_rules! from_values {
    ($($type:ident => $variant:ident),+) => {
        $(
            impl<'a> From<&'a [$type]> for HostRows<'a> {
                fn from(values: &'a [$type]) -> Self {
                    Self::$variant(values)
                }
            }

            impl<'a> From<&'a Vec<$type>> for HostRows<'a> {
                fn from(values: &'a Vec<$type>) -> Self {
                    Self::$variant(values)
                }
            }

            impl<'a, const N: usize> From<&'a [$type; N]> for HostRows<'a> {
                fn from(values: &'a [$type; N]) -> Self {
                    Self::$variant(values)
                }
            }

            impl<'a> From<&'a mut [$type]> for HostOut<'a> {
                fn from(values: &'a mut [$type]) -> Self {
                    Self::$variant(values)
                }
            }

            impl<'a> From<&'a mut Vec<$type>> for HostOut<'a> {
                fn from(values: &'a mut Vec<$type>) -> Self {
                    Self::$variant(values)
                }
            }

            impl<'a, const N: usize> From<&'a mut [$type; N]> for HostOut<'a> {
                fn from(values: &'a mut [$type; N]) -> Self {
                    Self::$variant(values)
                }
            }
        )+
    };
}

from_values!(f32 => F32, f16 => F16, bf16 => Bf16);
