//! Byte-level BPE from a GGUF file's own vocabulary.

use tokenizers::{
    AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::{
    error::{ModelError, TokenizerError},
    gguf::GgufFile,
};

/// `tokenizer.ggml.token_type` of tokens that stand for something else than text.
const TYPE_CONTROL: i64 = 3;
/// Tokens that are matched as a whole before BPE, but are text.
const TYPE_USER_DEFINED: i64 = 4;

/// llama.cpp's splits for files that say `default`, one after another.
const DEFAULT_SPLITS: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];
/// Llama 3's split.
const LLAMA_3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Turns text into a model's token ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What each id adds to the text.
    bytes: Vec<Box<[u8]>>,
    control: Vec<bool>,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    add_bos: bool,
}

impl Tokenizer {
    /// Builds the tokenizer from the metadata of `file`.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ModelError> {
        let missing = |key: &str| ModelError::MissingKey(key.to_owned());
        let model =
            file.text("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
        if model != "gpt2" {
            return Err(TokenizerError::Model(model.to_owned()).into());
        }
        let key = "tokenizer.ggml.tokens";
        let tokens = file.texts(key)?.ok_or_else(|| missing(key))?;
        let key = "tokenizer.ggml.merges";
        let merges = file.texts(key)?.ok_or_else(|| missing(key))?;
        let types = file.integers("tokenizer.ggml.token_type")?.unwrap_or(vec![1; tokens.len()]);
        let pre = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
        let special = |key: &'static str| -> Result<Option<u32>, ModelError> {
            match file.count(key)? {
                Some(id) if id >= tokens.len() => {
                    Err(TokenizerError::Count { what: key, found: id, tokens: tokens.len() }.into())
                }
                id => Ok(id.map(|id| id as u32)),
            }
        };
        let (inner, bos_by_default) = build(&tokens, &merges, &types, pre)?;
        let alphabet = Alphabet::new();
        Ok(Self {
            inner,
            bytes: tokens
                .iter()
                .zip(&types)
                .map(|(token, &kind)| match kind {
                    TYPE_CONTROL | TYPE_USER_DEFINED => token.as_bytes().into(),
                    _ => alphabet.decode(token).unwrap_or_else(|| token.as_bytes().into()),
                })
                .collect(),
            control: types.iter().map(|&kind| kind == TYPE_CONTROL).collect(),
            bos: special("tokenizer.ggml.bos_token_id")?,
            eos: special("tokenizer.ggml.eos_token_id")?,
            eot: special("tokenizer.ggml.eot_token_id")?,
            add_bos: file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_by_default),
        })
    }

    /// Tokens of the vocabulary.
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

    /// Whether generation ends at this id: the end of the text or of a turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends().any(|end| end == id)
    }

    /// The ids at which generation ends: of the end of the text, and of a turn.
    pub fn ends(&self) -> impl Iterator<Item = u32> {
        self.eos.into_iter().chain(self.eot)
    }

    /// Whether the model wants [`bos`](Self::bos) before every text.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Token ids of `text`, without a BOS. Control tokens written out in the text
    /// (`<|im_start|>`) become their ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(bpe)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a prompt: [`encode`](Self::encode), after a BOS where the model wants one.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(text)?;
        if let (true, Some(bos)) = (self.add_bos, self.bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
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

fn bpe(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Bpe(error.to_string())
}

/// The BPE model, and whether models of this kind want a BOS when their file does not say.
fn build(
    tokens: &[&str],
    merges: &[&str],
    types: &[i64],
    pre: &str,
) -> Result<(tokenizers::Tokenizer, bool), TokenizerError> {
    if types.len() != tokens.len() {
        return Err(TokenizerError::Count {
            what: "the number of token types",
            found: types.len(),
            tokens: tokens.len(),
        });
    }
    let (pre_tokenizer, llama_3) = pre_tokenizer(pre)?;
    let mut vocab = Vocab::default();
    for (id, token) in (0..).zip(tokens) {
        if let Some(first) = vocab.insert((*token).to_owned(), id) {
            return Err(TokenizerError::Duplicate {
                token: (*token).to_owned(),
                first,
                second: id,
            });
        }
    }
    let merges = merges
        .iter()
        .enumerate()
        .map(|(index, rule)| match rule.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
            _ => Err(TokenizerError::Merge { index, rule: (*rule).to_owned() }),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(llama_3)
        .build()
        .map_err(bpe)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    let added = |wanted| {
        let of_type = tokens.iter().zip(types).filter(move |&(_, &kind)| kind == wanted);
        of_type
            .map(move |(token, _)| {
                AddedToken::from(*token, wanted == TYPE_CONTROL).normalized(false)
            })
            .collect::<Vec<_>>()
    };
    tokenizer.add_special_tokens(&added(TYPE_CONTROL));
    tokenizer.add_tokens(&added(TYPE_USER_DEFINED));
    Ok((tokenizer, llama_3))
}

/// The splits that come before BPE, and whether they are Llama 3's.
fn pre_tokenizer(name: &str) -> Result<(PreTokenizerWrapper, bool), TokenizerError> {
    let byte_level = |regex| PreTokenizerWrapper::from(ByteLevel::new(false, false, regex));
    let split = |regex: &str| {
        let pattern = SplitPattern::Regex(regex.to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map(PreTokenizerWrapper::from)
            .map_err(bpe)
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

/// GPT-2's printable stand-ins for the 256 bytes.
struct Alphabet {
    /// Stand-ins end below U+0144.
    byte_of: [Option<u8>; 0x144],
}

impl Alphabet {
    fn new() -> Self {
        let mut byte_of = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let stand_in = if printable {
                usize::from(byte)
            } else {
                next += 1;
                next - 1
            };
            byte_of[stand_in] = Some(byte);
        }
        Self { byte_of }
    }

    /// The bytes of a token, or `None` when a character of it stands for no byte.
    fn decode(&self, token: &str) -> Option<Box<[u8]>> {
        token.chars().map(|c| self.byte_of.get(c as usize).copied().flatten()).collect()
    }
}

/// Puts streamed token bytes together into text, never cutting a character in two.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// Adds the bytes of one token and returns the text that is complete now. Bytes that no later
    /// byte can complete become U+FFFD at once.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let last = done + invalid.len() == self.pending.len();
            let unfinished =
                || std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if invalid.is_empty() || (last && unfinished()) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.pending.drain(..done);
        text
    }

    /// Ends the stream: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = Alphabet::new();
        let mut bytes: Vec<u8> = alphabet.byte_of.iter().flatten().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        // Ġ is the space, Ċ the line feed.
        assert_eq!(alphabet.decode("Ġa\u{10a}").as_deref(), Some(&b" a\n"[..]));
        assert_eq!(alphabet.decode("東"), None);
    }

    #[test]
    fn names_a_pre_tokenizer_it_does_not_know() {
        let error = pre_tokenizer("tekken").unwrap_err();
        assert_eq!(error.to_string(), "pre-tokenizer \"tekken\" is not supported");
        for known in ["gpt-2", "smollm", "default", "llama-bpe"] {
            assert!(pre_tokenizer(known).is_ok(), "{known}");
        }
    }

    #[test]
    fn refuses_a_vocabulary_that_contradicts_itself() {
        let duplicate = build(&["a", "b", "a"], &[], &[1; 3], "gpt-2");
        assert!(matches!(duplicate, Err(TokenizerError::Duplicate { first: 0, second: 2, .. })));
        let types = build(&["a"], &[], &[1; 2], "gpt-2");
        assert!(matches!(types, Err(TokenizerError::Count { found: 2, tokens: 1, .. })));
        for rule in ["ab", "a b c"] {
            let merge = build(&["a", "b"], &[rule], &[1; 2], "gpt-2");
            assert!(matches!(merge, Err(TokenizerError::Merge { index: 0, .. })));
        }
        let outside = build(&["a", "b"], &["a b"], &[1; 2], "gpt-2");
        assert!(matches!(outside, Err(TokenizerError::Bpe(_))));
    }

    #[test]
    fn streams_invalid_bytes_as_they_come() {
        let mut stream = StreamDecoder::default();
        assert_eq!(stream.push(b"a\xff\xe6\x9d"), "a\u{fffd}");
        assert_eq!(stream.push(b"\xb1"), "東");
        assert_eq!(stream.push(b"\xe6"), "");
        assert_eq!(stream.push(b"b"), "\u{fffd}b");
        assert_eq!(stream.push(b"\xf0\x9f"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    proptest! {
        #[test]
        fn streaming_in_any_pieces_gives_the_whole_text(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                ".{0,20}".prop_map(String::into_bytes),
            ],
            cuts in proptest::collection::vec(1usize..5, 0..40),
        ) {
            let mut stream = StreamDecoder::default();
            let mut text = String::new();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                text.push_str(&stream.push(piece));
                rest = later;
            }
            text.push_str(&stream.push(rest));
            text.push_str(&stream.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
