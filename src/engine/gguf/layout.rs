//! Where the tensors of a file lie.

use candle_core::quantized::GgmlDType;

/// One line of a file's tensor directory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorEntry {
    pub name: String,
    pub dtype: GgmlDType,
    /// Dimensions, rows first.
    pub shape: Vec<usize>,
    /// From where the tensors' bytes begin.
    pub offset: u64,
    /// Bytes of it.
    pub bytes: u64,
}

/// A layout that cannot be true.
#[derive(Debug, PartialEq)]
pub(super) enum LayoutError {
    /// A tensor ends beyond the file: its name, and one past its last byte.
    Truncated(String, u128),
    /// A tensor lies where it must not: its name, and why.
    Misplaced(String, String),
}

impl TensorEntry {
    /// Checks that the shape has a size in bytes.
    pub fn new(name: String, dtype: GgmlDType, shape: &[u64], offset: u64) -> Result<Self, String> {
        let block = dtype.block_size();
        let row = shape.last().copied().unwrap_or(1);
        if shape.contains(&0) {
            return Err(format!("tensor {name} of shape {shape:?} has no values"));
        }
        if !row.is_multiple_of(block as u64) {
            return Err(format!(
                "tensor {name} has rows of {row} values, not whole blocks of {block}"
            ));
        }
        let blocks = shape.iter().try_fold(1, |product: u64, &dim| product.checked_mul(dim));
        let bytes =
            blocks.and_then(|count| (count / block as u64).checked_mul(dtype.type_size() as u64));
        let dims = shape.iter().map(|&dim| dim.try_into().ok()).collect();
        match (bytes, dims) {
            (Some(bytes), Some(shape)) => Ok(Self { name, dtype, shape, offset, bytes }),
            _ => Err(format!("tensor {name} of shape {shape:?} is larger than any file")),
        }
    }
}

/// Holds all tensors against the file: each lies inside it, begins at a multiple of `alignment`, and
/// shares no byte with another. `data_offset` is where their bytes begin in a file of `file_bytes`.
pub(super) fn check(
    tensors: &[TensorEntry],
    data_offset: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<(), LayoutError> {
    for tensor in tensors {
        let end = u128::from(data_offset) + u128::from(tensor.offset) + u128::from(tensor.bytes);
        if end > u128::from(file_bytes) {
            return Err(LayoutError::Truncated(tensor.name.clone(), end));
        }
    }
    for tensor in tensors {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(LayoutError::Misplaced(
                tensor.name.clone(),
                format!("begins at offset {}, not a multiple of {alignment}", tensor.offset),
            ));
        }
    }
    let mut sorted: Vec<&TensorEntry> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.offset);
    for pair in sorted.windows(2) {
        let [earlier, later] = pair else { continue };
        if earlier.offset + earlier.bytes > later.offset {
            return Err(LayoutError::Misplaced(
                later.name.clone(),
                format!(
                    "begins at offset {}, inside tensor {} of {} bytes from offset {}",
                    later.offset, earlier.name, earlier.bytes, earlier.offset
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensor(name: usize, offset: u64, values: u64) -> TensorEntry {
        TensorEntry::new(format!("t{name}"), GgmlDType::F32, &[values], offset).unwrap()
    }

    #[test]
    fn shapes_without_a_size_are_refused() {
        let new = |dtype, shape: &[u64]| TensorEntry::new("t".into(), dtype, shape, 0);
        assert_eq!(new(GgmlDType::Q4_1, &[3, 64]).unwrap().bytes, 3 * 2 * 20);
        assert_eq!(new(GgmlDType::F16, &[]).unwrap().bytes, 2);
        // Whole blocks over all, but not row by row.
        assert!(new(GgmlDType::Q4_1, &[64, 33]).unwrap_err().contains("rows of 33"));
        assert!(new(GgmlDType::F32, &[4, 0]).unwrap_err().contains("no values"));
        assert!(new(GgmlDType::F32, &[1 << 63, 2]).unwrap_err().contains("larger"));
        assert!(new(GgmlDType::F32, &[1 << 63]).unwrap_err().contains("larger"));
    }

    #[test]
    fn an_end_past_all_numbers_is_past_the_file() {
        let error = check(&[tensor(0, u64::MAX - 31, 8)], u64::MAX, 32, u64::MAX).unwrap_err();
        assert!(matches!(error, LayoutError::Truncated(..)));
    }

    proptest! {
        /// The model: a map of the file's bytes, each with the tensor that claims it.
        #[test]
        fn layouts_are_accepted_exactly_when_no_byte_has_two_owners(
            places in proptest::collection::vec((0u64..24, 1u64..12), 0..6),
            shift in prop_oneof![4 => Just(0u64), 1 => 1u64..8],
            file_bytes in 0u64..320,
        ) {
            let tensors: Vec<TensorEntry> = (0..)
                .zip(&places)
                .map(|(name, &(place, values))| tensor(name, place * 8 + shift, values))
                .collect();
            let mut owners = vec![0; 1024];
            for tensor in &tensors {
                let first = (64 + tensor.offset) as usize;
                owners[first..][..tensor.bytes as usize].iter_mut().for_each(|count| *count += 1);
            }
            let last = owners.iter().rposition(|&owners| owners > 0);
            let fits = last.is_none_or(|last| (last as u64) < file_bytes);
            let aligned = shift == 0 || places.is_empty();
            let good = fits && aligned && owners.iter().all(|&owners| owners < 2);
            let checked = check(&tensors, 64, 8, file_bytes);
            prop_assert_eq!(checked.is_ok(), good, "{:?}", checked);
            prop_assert_eq!(!fits, matches!(checked, Err(LayoutError::Truncated(..))));
        }
    }
}
