//! Byte-level BPE from a GGUF file's own vocabulary.

mod alphabet;
mod controls;
mod splits;
mod stream;

use std::collections::HashSet;

use tokenizers::{
    AddedToken,
    models::bpe::{BPE, Vocab},
};

pub use self::stream::StreamDecoder;
use self::{
    alphabet::Alphabet,
    controls::{Controls, ends_by_name},
    splits::pre_tokenizer,
};
use super::{
    error::{ModelError, TokenizerError},
    gguf::GgufFile,
};

/// `tokenizer.ggml.token_type` of tokens that are text.
const TYPE_NORMAL: i64 = 1;
/// Tokens that stand for something else than text.
const TYPE_CONTROL: i64 = 3;
/// Tokens that are matched as a whole before BPE, but are text.
const TYPE_USER_DEFINED: i64 = 4;

/// Tokens that stand for nothing: converters pad a vocabulary to the rows of the embedding with them
/// (`[PAD300]`).
const TYPE_UNUSED: i64 = 5;

/// Of the `tokens` of a file those up to the last that is in use: unused ones at the end are padding.
pub(super) fn tokens_in_use(file: &GgufFile, tokens: usize) -> Result<usize, ModelError> {
    let types = file.integers("tokenizer.ggml.token_type")?;
    // Another number of types is refused with the tokenizer.
    let types = types.filter(|types| types.len() == tokens);
    let last = types.map(|types| types.iter().rposition(|&kind| kind != TYPE_UNUSED));
    Ok(last.map_or(tokens, |last| last.map_or(0, |last| last + 1)))
}

/// Turns text into a model's token ids and back.
///
/// Text comes from two sides. What an application writes itself, a chat template with its markers, is
/// for [`encode`](Self::encode): control tokens written out become their ids. What a user or a file
/// says is for [`encode_plain`](Self::encode_plain): there `<|im_end|>` is ten characters, and nobody
/// can end a turn, or begin one as somebody else, by writing it.
#[derive(Debug)]
pub struct Tokenizer {
    /// Knows no control token.
    plain: tokenizers::Tokenizer,
    controls: Controls,
    /// What each id adds to the text.
    bytes: Vec<Box<[u8]>>,
    control: Vec<bool>,
    bos: Option<u32>,
    eos: Option<u32>,
    ends: Vec<u32>,
    add_bos: bool,
}

impl Tokenizer {
    /// Builds the tokenizer from the metadata of `file`.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ModelError> {
        let missing = |key: &str| ModelError::MissingKey(key.to_owned());
        let text = |key: &str| file.text(key)?.ok_or_else(|| missing(key));
        let texts = |key: &str| file.texts(key)?.ok_or_else(|| missing(key));
        let model = text("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(TokenizerError::Model(model.to_owned()).into());
        }
        let key = "tokenizer.ggml.add_eos_token";
        if file.flag(key)? == Some(true) {
            let (found, supported) = ("true".to_owned(), "false".to_owned());
            return Err(ModelError::UnsupportedKey { key: key.to_owned(), found, supported });
        }
        let mut tokens = texts("tokenizer.ggml.tokens")?;
        let merges = texts("tokenizer.ggml.merges")?;
        let types = file.integers("tokenizer.ggml.token_type")?;
        let mut types = types.unwrap_or_else(|| vec![TYPE_NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            return Err(TokenizerError::Count {
                what: "the number of token types",
                found: types.len(),
                tokens: tokens.len(),
            }
            .into());
        }
        let used = tokens_in_use(file, tokens.len())?;
        tokens.truncate(used);
        types.truncate(used);
        let special = |key: &'static str| -> Result<Option<u32>, ModelError> {
            match file.count(key)? {
                Some(id) if id >= tokens.len() => {
                    Err(TokenizerError::Count { what: key, found: id, tokens: tokens.len() }.into())
                }
                id => Ok(id.map(|id| id as u32)),
            }
        };
        let eos = special("tokenizer.ggml.eos_token_id")?;
        let eot = special("tokenizer.ggml.eot_token_id")?;
        let eom = special("tokenizer.ggml.eom_token_id")?;
        let by_name: Vec<bool> =
            tokens.iter().zip(&types).map(|(token, &kind)| ends_by_name(token, kind)).collect();
        let mut ends: Vec<u32> =
            (0..).zip(&by_name).filter(|(_, end)| **end).map(|(id, _)| id).collect();
        ends.extend([eos, eot, eom].into_iter().flatten());
        ends.sort_unstable();
        ends.dedup();
        let control: Vec<bool> =
            types.iter().zip(&by_name).map(|(&kind, &end)| kind == TYPE_CONTROL || end).collect();

        let vocabulary = Vocabulary { tokens: &tokens, types: &types, control: &control };
        // Files without it have a vocabulary, but not how text is cut up for it: llama.cpp guesses.
        let pre = text("tokenizer.ggml.pre")?;
        let (plain, bos_by_default) = build(&vocabulary, &merges, pre)?;
        let controls = (0..).zip(&tokens).zip(&control).filter(|(_, control)| **control);
        Ok(Self {
            plain,
            controls: Controls::new(controls.map(|((id, token), _)| (id, *token)))?,
            bytes: vocabulary.bytes(),
            control,
            bos: special("tokenizer.ggml.bos_token_id")?,
            eos,
            ends,
            add_bos: file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_by_default),
        })
    }

    /// Tokens of the vocabulary, without those that pad it at its end.
    pub fn vocab(&self) -> usize {
        self.bytes.len()
    }

    /// The id that begins a text, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id that ends a text, where the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether generation ends at this id: the end of the text, of a turn or of a message.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// The ids at which generation ends, in ascending order: those that the file names, and the
    /// tokens of the vocabulary that end a turn in the formats of published models.
    pub fn ends(&self) -> impl Iterator<Item = u32> {
        self.ends.iter().copied()
    }

    /// Whether the model wants [`bos`](Self::bos) before every text.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Token ids of `text`, without a BOS. Control tokens written out in the text (`<|im_start|>`)
    /// become their ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        for (before, control) in self.controls.cut(text) {
            ids.extend(self.encode_plain(before)?);
            ids.extend(control);
        }
        Ok(ids)
    }

    /// Token ids of `text`, all of it text, without a BOS: no control token is among them.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.plain.encode_fast(text, false).map_err(bpe_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a prompt that an application wrote: [`encode`](Self::encode), after a BOS where
    /// the model wants one and the text has none.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.after_bos(self.encode(text)?))
    }

    /// Token ids of a prompt that is a user's or a file's: [`encode_plain`](Self::encode_plain),
    /// after a BOS where the model wants one.
    pub fn encode_plain_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.after_bos(self.encode_plain(text)?))
    }

    fn after_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let (true, Some(bos)) = (self.add_bos, self.bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// The bytes that one id adds to the text: not always whole characters.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], TokenizerError> {
        let unknown = TokenizerError::UnknownId { id, tokens: self.bytes.len() };
        self.bytes.get(id as usize).map(|bytes| &**bytes).ok_or(unknown)
    }

    /// Whether an id is a control token, which stands for no text of its own.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize).is_some_and(|&control| control)
    }

    /// The text of `ids`, control tokens written out. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id)?);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn bpe_error(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Bpe(error.to_string())
}

/// Tokens by id, with what the file says of each.
struct Vocabulary<'a> {
    tokens: &'a [&'a str],
    types: &'a [i64],
    control: &'a [bool],
}

impl Vocabulary<'_> {
    /// What each id adds to the text.
    fn bytes(&self) -> Vec<Box<[u8]>> {
        let alphabet = Alphabet::new();
        let written_out = |id: usize| self.control[id] || self.types[id] == TYPE_USER_DEFINED;
        let decode = |(id, token): (usize, &&str)| match written_out(id) {
            true => token.as_bytes().into(),
            false => alphabet.decode(token).unwrap_or_else(|| token.as_bytes().into()),
        };
        self.tokens.iter().enumerate().map(decode).collect()
    }
}

/// The BPE of all tokens that are text, and whether models of this kind want a BOS when their file
/// does not say.
///
/// Control tokens are left out, with the merges that would make one: however a text is spelled, they
/// cannot come out of it.
fn build(
    vocabulary: &Vocabulary<'_>,
    merges: &[&str],
    pre: &str,
) -> Result<(tokenizers::Tokenizer, bool), TokenizerError> {
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
    let controls: HashSet<&str> = vocabulary
        .tokens
        .iter()
        .zip(vocabulary.control)
        .filter(|(_, control)| **control)
        .map(|(token, _)| *token)
        .collect();
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
        .map_err(bpe_error)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    let user_defined: Vec<AddedToken> = (0..vocabulary.tokens.len())
        .filter(|&id| vocabulary.types[id] == TYPE_USER_DEFINED && !vocabulary.control[id])
        .map(|id| AddedToken::from(vocabulary.tokens[id], false).normalized(false))
        .collect();
    tokenizer.add_tokens(&user_defined);
    Ok((tokenizer, llama_3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build_all(tokens: &[&str], merges: &[&str], pre: &str) -> Result<(), TokenizerError> {
        let (types, control) = (vec![TYPE_NORMAL; tokens.len()], vec![false; tokens.len()]);
        let vocabulary = Vocabulary { tokens, types: &types, control: &control };
        build(&vocabulary, merges, pre).map(drop)
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
            let (tokenizer, _) = build(&vocabulary, &["a b", "ab c"], pre).unwrap();
            let ids = tokenizer.encode_fast("abc", false).unwrap().get_ids().to_vec();
            assert_eq!(ids, [3, 2], "{pre}");
        }
    }
}
