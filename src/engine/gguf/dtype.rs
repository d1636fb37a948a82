//! How tensors are stored: the numbers of ggml's types.

use candle_core::quantized::GgmlDType;

/// The type of this number, or its name where it cannot be decoded here.
pub(super) fn dtype(number: u32) -> Result<GgmlDType, String> {
    match DECODED.iter().find(|&&(known, _)| known == number) {
        Some(&(_, dtype)) => Ok(dtype),
        None => Err(match OTHERS.iter().find(|&&(known, _)| known == number) {
            Some(&(_, name)) => name.to_owned(),
            None => format!("type {number}"),
        }),
    }
}

/// Types that candle decodes from a file.
const DECODED: [(u32, GgmlDType); 13] = [
    (0, GgmlDType::F32),
    (1, GgmlDType::F16),
    (30, GgmlDType::BF16),
    (2, GgmlDType::Q4_0),
    (3, GgmlDType::Q4_1),
    (6, GgmlDType::Q5_0),
    (7, GgmlDType::Q5_1),
    (8, GgmlDType::Q8_0),
    (10, GgmlDType::Q2K),
    (11, GgmlDType::Q3K),
    (12, GgmlDType::Q4K),
    (13, GgmlDType::Q5K),
    (14, GgmlDType::Q6K),
];

/// ggml's other types, by their names in `enum ggml_type`, removed ones too: old files have them.
const OTHERS: [(u32, &str); 29] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_named_once() {
        let mut numbers: Vec<u32> =
            DECODED.iter().map(|(n, _)| *n).chain(OTHERS.iter().map(|(n, _)| *n)).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..=41).collect::<Vec<_>>());
        assert_eq!(dtype(20).unwrap_err(), "IQ4_NL");
        assert_eq!(dtype(77).unwrap_err(), "type 77");
        assert_eq!(dtype(14).unwrap(), GgmlDType::Q6K);
    }
}
