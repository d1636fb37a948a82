//! Byte-level BPE: text is split by rules, and the bytes of each part are merged in the order of the file's
//! list.

use std::collections::HashSet;

use tokenizers::{
    AddedToken, Tokenizer,
    models::bpe::{BPE, Vocab},
};

use super::{
    alphabet::Alphabet, kinds::TYPE_USER_DEFINED, splits::pre_tokenizer, vocabulary::Vocabulary,
};
use crate::engine::error::TokenizerError;

/// What each id adds to the text.
pub(super) fn bytes(vocabulary: Vocabulary<'_>) -> Vec<Box<[u8]>> {
    let alphabet = Alphabet::new();
    let Vocabulary { tokens, types, control } = vocabulary;
    let decode = |(id, token): (usize, &&str)| match control[id] || types[id] == TYPE_USER_DEFINED {
        true => token.as_bytes().into(),
        false => alphabet.decode(token).unwrap_or_else(|| token.as_bytes().into()),
    };
    tokens.iter().enumerate().map(decode).collect()
}

/// The BPE of all tokens that are text, and whether models of this kind want a BOS when their file
/// does not say.
///
/// Control tokens are left out, with the merges that would make one: however a text is spelled, they
/// cannot come out of it.
pub(super) fn build(
    vocabulary: Vocabulary<'_>,
    merges: &[&str],
    pre: &str,
) -> Result<(Tokenizer, bool), TokenizerError> {
    let (pre_tokenizer, llama_3) = pre_tokenizer(pre)?;
    let mut vocab = Vocab::default();
    for (id, token) in (0..).zip(vocabulary.tokens) {
        if let Some(first) = vocab.insert((*token).to_owned(), id) {
            return Err(TokenizerError::Duplicate {
                token: (*token).to_owned(),
                first,
                second: id,
            });
        }
    }
    let controls: HashSet<&str> = vocabulary.controls().map(|(_, token)| token).collect();
    for control in &controls {
        vocab.remove(*control);
    }
    let mut rules = Vec::with_capacity(merges.len());
    let mut made = String::new();
    for (index, rule) in merges.iter().enumerate() {
        let (left, right) = match rule.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => (left, right),
            _ => return Err(TokenizerError::Merge { index, rule: (*rule).to_owned() }),
        };
        made.clear();
        made.extend([left, right]);
        if ![left, right, &made].iter().any(|token| controls.contains(token)) {
            rules.push((left.to_owned(), right.to_owned()));
        }
    }
    let model = BPE::builder()
        .vocab_and_merges(vocab, rules)
        .ignore_merges(llama_3)
        .build()
        .map_err(TokenizerError::bpe)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    let user_defined: Vec<AddedToken> = vocabulary
        .text()
        .filter(|&(_, _, kind)| kind == TYPE_USER_DEFINED)
        .map(|(_, token, _)| AddedToken::from(token, false).normalized(false))
        .collect();
    tokenizer.add_tokens(&user_defined);
    Ok((tokenizer, llama_3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tokenizer::kinds::TYPE_NORMAL;

    fn build_all(tokens: &[&str], merges: &[&str], pre: &str) -> Result<(), TokenizerError> {
        let (types, control) = (vec![TYPE_NORMAL; tokens.len()], vec![false; tokens.len()]);
        let vocabulary = Vocabulary { tokens, types: &types, control: &control };
        build(vocabulary, merges, pre).map(drop)
    }

    #[test]
    fn refuses_a_vocabulary_that_contradicts_itself() {
        let duplicate = build_all(&["a", "b", "a"], &[], "gpt-2");
        assert!(matches!(duplicate, Err(TokenizerError::Duplicate { first: 0, second: 2, .. })));
        for rule in ["ab", "a b c"] {
            let merge = build_all(&["a", "b"], &[rule], "gpt-2");
            assert!(matches!(merge, Err(TokenizerError::Merge { index: 0, .. })));
        }
        let outside = build_all(&["a", "b"], &["a b"], "gpt-2");
        assert!(matches!(outside, Err(TokenizerError::Bpe(_))));
    }

    #[test]
    fn a_control_token_that_merges_or_whole_words_would_make_is_not_made_from_text() {
        let tokens = ["a", "b", "c", "ab", "abc"];
        let (types, control) = ([TYPE_NORMAL; 5], [false, false, false, false, true]);
        let vocabulary = Vocabulary { tokens: &tokens, types: &types, control: &control };
        // Llama 3's takes a word that is a token as it is, before any merge.
        for pre in ["gpt-2", "llama-bpe"] {
            let (tokenizer, _) = build(vocabulary, &["a b", "ab c"], pre).unwrap();
            let ids = tokenizer.encode_fast("abc", false).unwrap().get_ids().to_vec();
            assert_eq!(ids, [3, 2], "{pre}");
        }
    }
}
