//! Is what a device computes right? Random cases against the host's store and the f64 reference.
//!
//! The same cases run on every device there is: by `headwise bench-gpu` before it measures anything, by
//! the tests on a real device, and by the tests on a driver in host memory whose launches the PTX
//! interpreter executes.

mod append;
mod attention;
mod noise;
mod store;

use thiserror::Error;

pub use append::append_agrees_with_the_host;
pub use attention::{AttentionCase, AttentionErrors, attention_errors, attention_specialisation};
pub use noise::Noise;
pub use store::store_agrees_with_the_host;

use crate::{
    attend::AttendError,
    base::ShapeError,
    cuda::CudaError,
    device::DeviceError,
    format::{LayoutError, PageFormat, SlotFormat},
    store::StoreError,
};

/// Why a case did not pass.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The device or the compiler refused something.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The store refused something.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Attention refused something.
    #[error(transparent)]
    Attend(#[from] AttendError),
    /// The case's pages cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The case's heads make no shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The device holds other bytes than the host.
    #[error("{what} at head_dim {head_dim}, pages {format}: byte {at} is {got}, not {expected}")]
    Bytes {
        /// What was done.
        what: &'static str,
        /// Of which pages.
        format: PageFormat,
        /// Channels of a head.
        head_dim: usize,
        /// The first byte that differs.
        at: usize,
        /// The device's byte.
        got: u8,
        /// The host's.
        expected: u8,
    },
}

impl From<CudaError> for VerifyError {
    fn from(error: CudaError) -> Self {
        DeviceError::from(error).into()
    }
}

/// What rounding allows attention over pages of these formats against the f64 reference: the least exact
/// format counts. Decode errs by far less; prefill rounds queries and probabilities once, to the
/// bits of the product it runs in, which are eight for `bf16` keys and for `bf16` and `i8` values (see
/// `docs/kernels.md`).
pub fn tolerance(formats: &[PageFormat]) -> f32 {
    let of = |format: &PageFormat| {
        let coarse =
            format.k == SlotFormat::Bf16 || matches!(format.v, SlotFormat::Bf16 | SlotFormat::I8);
        if coarse { 1e-2 } else { 2e-3 }
    };
    formats.iter().map(of).fold(0.0, f32::max)
}

/// All pairs of formats, K's and V's.
pub fn formats() -> impl Iterator<Item = PageFormat> {
    let all = SlotFormat::ALL;
    all.iter().flat_map(move |&k| all.iter().map(move |&v| PageFormat { k, v }))
}

/// The largest difference, relative to the expected value or, below 1, absolute. Not a number where it
/// should be one, or the other way round, is infinitely wrong.
pub fn largest_error(got: &[f32], expected: &[f32]) -> f32 {
    if got.len() != expected.len() {
        return f32::INFINITY;
    }
    let error = |(&got, &expected): (&f32, &f32)| {
        if got == expected {
            return 0.0;
        }
        let error = (got - expected).abs() / expected.abs().max(1.0);
        if error.is_nan() { f32::INFINITY } else { error }
    };
    got.iter().zip(expected).map(error).fold(0.0, f32::max)
}

/// The largest difference over rows of `width` values, in units of the largest expected value of its
/// row: what is small throughout must be right too. Not a number where it should be one, or the other
/// way round, is infinitely wrong, and so is anything but zeros in a row of zeros.
pub fn row_error(got: &[f32], expected: &[f32], width: usize) -> f32 {
    if got.len() != expected.len() {
        return f32::INFINITY;
    }
    let width = width.max(1);
    let of_row = |(got, expected): (&[f32], &[f32])| {
        let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
        let error = |(&got, &expected): (&f32, &f32)| {
            if got == expected {
                return 0.0;
            }
            let error = (got - expected).abs() / largest;
            if error.is_nan() { f32::INFINITY } else { error }
        };
        got.iter().zip(expected).map(error).fold(0.0, f32::max)
    };
    got.chunks(width).zip(expected.chunks(width)).map(of_row).fold(0.0, f32::max)
}

/// An error if the bytes differ anywhere.
fn same_bytes(
    what: &'static str,
    (format, head_dim): (PageFormat, usize),
    got: &[u8],
    expected: &[u8],
) -> Result<(), VerifyError> {
    match got.iter().zip(expected).position(|(got, expected)| got != expected) {
        None => Ok(()),
        Some(at) => {
            let (got, expected) = (got[at], expected[at]);
            Err(VerifyError::Bytes { what, format, head_dim, at, got, expected })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_relative_above_one_and_absolute_below() {
        assert_eq!(largest_error(&[1.0, 10.0, 0.5], &[1.0, 8.0, 0.25]), 0.25);
        assert_eq!(largest_error(&[f32::NEG_INFINITY], &[f32::NEG_INFINITY]), 0.0);
        for wrong in [f32::NAN, f32::INFINITY] {
            assert_eq!(largest_error(&[wrong], &[1.0]), f32::INFINITY);
        }
        assert_eq!(largest_error(&[0.0], &[f32::NEG_INFINITY]), f32::INFINITY);
        assert_eq!(largest_error(&[0.0], &[]), f32::INFINITY);
    }

    #[test]
    fn an_error_of_a_row_is_relative_to_its_largest_value() {
        let expected = [1e-4, -4e-4, 2.0, 1.0];
        assert_eq!(row_error(&expected, &expected, 2), 0.0);
        assert_eq!(row_error(&[0.0; 4], &expected, 2), 1.0);
        assert_eq!(row_error(&[1e-4, -2e-4, 2.0, 1.0], &expected, 2), 0.5);
        assert_eq!(row_error(&[1e-4, -4e-4, 2.0, 1.5], &expected, 2), 0.25);
        assert_eq!(row_error(&[0.0, 1e-30], &[0.0; 2], 2), f32::INFINITY);
        assert_eq!(row_error(&[f32::NAN, 1.0], &[1.0; 2], 2), f32::INFINITY);
        assert_eq!(row_error(&[1.0], &[1.0; 2], 1), f32::INFINITY);
        assert_eq!(row_error(&[], &[], 0), 0.0);
    }

    #[test]
    fn the_first_byte_that_differs_is_named() {
        let case = (PageFormat::default(), 64);
        assert!(same_bytes("copy", case, &[1, 2, 3], &[1, 2, 3]).is_ok());
        let error = same_bytes("copy", case, &[1, 2, 3], &[1, 7, 3]).unwrap_err();
        assert_eq!(error.to_string(), "copy at head_dim 64, pages f16: byte 1 is 2, not 7");
    }
}
