//! Text to ids and back by a GGUF file's own vocabulary: byte-level BPE, or the pieces of SentencePiece.

mod alphabet;
mod bpe;
mod controls;
mod kinds;
mod pieces;
mod splits;
mod stream;
mod vocabulary;

pub use self::stream::StreamDecoder;
use self::{
    controls::{Controls, ends_by_name},
    kinds::{TYPE_CONTROL, TYPE_NORMAL, TYPE_UNUSED, TYPE_USER_DEFINED},
    pieces::Pieces,
    vocabulary::Vocabulary,
};
use super::{
    error::{ModelError, TokenizerError},
    gguf::GgufFile,
};

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
    plain: Plain,
    controls: Controls,
    /// What each id adds to the text.
    bytes: Vec<Box<[u8]>>,
    control: Vec<bool>,
    bos: Option<u32>,
    eos: Option<u32>,
    ends: Vec<u32>,
    add_bos: bool,
}

/// What makes ids of text.
#[derive(Debug)]
enum Plain {
    ByteLevel(Box<tokenizers::Tokenizer>),
    Pieces(Pieces),
}

impl Tokenizer {
    /// Builds the tokenizer from the metadata of `file`.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ModelError> {
        let model = required("tokenizer.ggml.model", file.text("tokenizer.ggml.model")?)?;
        let sentence_piece = match model {
            "gpt2" => false,
            "llama" => true,
            other => return Err(TokenizerError::Model(other.to_owned()).into()),
        };
        let key = "tokenizer.ggml.add_eos_token";
        if file.flag(key)? == Some(true) {
            let (found, supported) = ("true".to_owned(), "false".to_owned());
            return Err(ModelError::UnsupportedKey { key: key.to_owned(), found, supported });
        }
        let key = "tokenizer.ggml.tokens";
        let mut tokens = required(key, file.texts(key)?)?;
        let key = "tokenizer.ggml.token_type";
        let mut types = match file.integers(key)? {
            // Which of its tokens are bytes and which are no text, only types say.
            None if sentence_piece => return Err(ModelError::MissingKey(key.to_owned())),
            types => types.unwrap_or_else(|| vec![TYPE_NORMAL; tokens.len()]),
        };
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
        // What SentencePiece has for user-defined is text: Gemma's `</s>` is HTML.
        let text_by_type = |kind| sentence_piece && kind == TYPE_USER_DEFINED;
        let end = |(token, &kind): (&&str, &i64)| {
            ends_by_name(token, if text_by_type(kind) { TYPE_NORMAL } else { kind })
        };
        let by_name: Vec<bool> = tokens.iter().zip(&types).map(end).collect();
        let mut ends: Vec<u32> =
            (0..).zip(&by_name).filter(|(_, end)| **end).map(|(id, _)| id).collect();
        ends.extend([eos, eot, eom].into_iter().flatten());
        ends.sort_unstable();
        ends.dedup();
        let control: Vec<bool> =
            types.iter().zip(&by_name).map(|(&kind, &end)| kind == TYPE_CONTROL || end).collect();

        let vocabulary = Vocabulary { tokens: &tokens, types: &types, control: &control };
        let (plain, bytes, bos_by_default) = match sentence_piece {
            true => {
                let unknown = special("tokenizer.ggml.unknown_token_id")?;
                let pieces = read_pieces(file, vocabulary, unknown)?;
                (Plain::Pieces(pieces), pieces::bytes(vocabulary)?, true)
            }
            false => {
                let key = "tokenizer.ggml.merges";
                let merges = required(key, file.texts(key)?)?;
                // Files without it have a vocabulary, but not how text is cut up for it: llama.cpp
                // guesses.
                let key = "tokenizer.ggml.pre";
                let pre = required(key, file.text(key)?)?;
                let (plain, llama_3) = bpe::build(vocabulary, &merges, pre)?;
                (Plain::ByteLevel(Box::new(plain)), bpe::bytes(vocabulary), llama_3)
            }
        };
        Ok(Self {
            plain,
            controls: Controls::new(vocabulary.controls())?,
            bytes,
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

    /// The id that every text begins with, where the model wants one: [`bos`](Self::bos).
    pub fn begin(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
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

    /// Token ids of `text`, all of it text, without a BOS: no control token is among them. Where the
    /// vocabulary begins every text with a space of its own (Llama 2), the ids have it.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.plain {
            Plain::ByteLevel(bpe) => {
                let encoding = bpe.encode_fast(text, false).map_err(TokenizerError::bpe)?;
                Ok(encoding.get_ids().to_vec())
            }
            Plain::Pieces(pieces) => Ok(pieces.encode(text)),
        }
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
        if let Some(bos) = self.begin()
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

fn required<T>(key: &str, value: Option<T>) -> Result<T, ModelError> {
    value.ok_or_else(|| ModelError::MissingKey(key.to_owned()))
}

/// The pieces of a SentencePiece vocabulary.
fn read_pieces(
    file: &GgufFile,
    vocabulary: Vocabulary<'_>,
    unknown: Option<u32>,
) -> Result<Pieces, ModelError> {
    let key = "tokenizer.ggml.remove_extra_whitespaces";
    if file.flag(key)? == Some(true) {
        let (found, supported) = ("true".to_owned(), "false".to_owned());
        return Err(ModelError::UnsupportedKey { key: key.to_owned(), found, supported });
    }
    let key = "tokenizer.ggml.scores";
    let mut scores = required(key, file.floats(key)?)?;
    let tokens = vocabulary.tokens.len();
    if scores.len() < tokens {
        let (what, found) = ("the number of scores", scores.len());
        return Err(TokenizerError::Count { what, found, tokens }.into());
    }
    // Those of unused tokens at the end.
    scores.truncate(tokens);
    let space_first = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    Ok(Pieces::new(vocabulary, scores, unknown, space_first)?)
}
