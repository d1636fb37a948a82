//! How text is split before BPE.

use tokenizers::{
    PreTokenizerWrapper, SplitDelimiterBehavior,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::bpe_error;
use crate::engine::error::TokenizerError;

/// llama.cpp's splits for files that say `default`, one after another.
const DEFAULT_SPLITS: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];
/// Llama 3's split.
const LLAMA_3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The splits that come before BPE, and whether they are Llama 3's.
pub(super) fn pre_tokenizer(name: &str) -> Result<(PreTokenizerWrapper, bool), TokenizerError> {
    let byte_level = |regex| PreTokenizerWrapper::from(ByteLevel::new(false, false, regex));
    let split = |regex: &str| {
        let pattern = SplitPattern::Regex(regex.to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map(PreTokenizerWrapper::from)
            .map_err(bpe_error)
    };
    let (steps, llama_3) = match name {
        "gpt-2" | "gpt2" => (vec![byte_level(true)], false),
        "smollm" => (vec![Digits::new(true).into(), byte_level(true)], false),
        "default" => {
            let mut steps = DEFAULT_SPLITS.into_iter().map(split).collect::<Result<Vec<_>, _>>()?;
            steps.push(byte_level(false));
            (steps, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" => {
            (vec![split(LLAMA_3_SPLIT)?, byte_level(false)], true)
        }
        other => return Err(TokenizerError::PreTokenizer(other.to_owned())),
    };
    Ok((Sequence::new(steps).into(), llama_3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_a_pre_tokenizer_it_does_not_know() {
        let error = pre_tokenizer("tekken").unwrap_err();
        assert_eq!(error.to_string(), "pre-tokenizer \"tekken\" is not supported");
        for known in ["gpt-2", "smollm", "default", "llama-bpe"] {
            assert!(pre_tokenizer(known).is_ok(), "{known}");
        }
    }
}
