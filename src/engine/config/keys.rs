//! Metadata under an architecture's own prefix, in the ranges that a forward pass asks for.

use crate::engine::{error::ModelError, gguf::GgufFile, tokenizer::tokens_in_use};

/// A file, and the prefix of its architecture's keys.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub file: &'a GgufFile,
    /// `llama.`
    pub prefix: &'static str,
}

impl Keys<'_> {
    /// A key with the architecture's prefix.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn missing(&self, name: &str) -> ModelError {
        ModelError::MissingKey(self.key(name))
    }

    pub fn bad(&self, name: &str, expected: &'static str, found: impl ToString) -> ModelError {
        ModelError::BadValue { key: self.key(name), expected, found: found.to_string() }
    }

    pub fn count(&self, name: &str) -> Result<Option<usize>, ModelError> {
        self.file.count(&self.key(name))
    }

    /// A count that must be there, and not zero.
    pub fn positive(&self, name: &str) -> Result<usize, ModelError> {
        match self.count(name)? {
            None => Err(self.missing(name)),
            Some(0) => Err(self.bad(name, "a number above zero", 0)),
            Some(count) => Ok(count),
        }
    }

    /// A number above zero, if it is there.
    pub fn above_zero(&self, name: &str) -> Result<Option<f64>, ModelError> {
        match self.file.float(&self.key(name))? {
            Some(number) if number <= 0.0 => Err(self.bad(name, "a number above zero", number)),
            number => Ok(number),
        }
    }

    /// Refuses a count that says something else than the forward pass has.
    pub fn only(&self, name: &str, value: usize, what: &str) -> Result<(), ModelError> {
        match self.count(name)? {
            Some(found) if found != value => Err(ModelError::UnsupportedKey {
                key: self.key(name),
                found: found.to_string(),
                supported: format!("the {value} {what}"),
            }),
            _ => Ok(()),
        }
    }

    /// RMSNorm's ε, held against its range as the forward pass has it.
    pub fn epsilon(&self) -> Result<f32, ModelError> {
        let name = "attention.layer_norm_rms_epsilon";
        let stated = self.file.float(&self.key(name))?.ok_or_else(|| self.missing(name))?;
        let epsilon = stated as f32;
        match epsilon > 0.0 && epsilon.is_finite() {
            true => Ok(epsilon),
            false => Err(self.bad(name, "a number above zero in f32", stated)),
        }
    }

    /// Channels of a head: stated, or the embedding's over the heads.
    pub fn head_dim(&self, embedding: usize, query_heads: usize) -> Result<usize, ModelError> {
        let head_dim = match self.count("attention.key_length")? {
            Some(_) => self.positive("attention.key_length")?,
            None if embedding.is_multiple_of(query_heads) => embedding / query_heads,
            None => {
                let found = format!("{embedding}, with {query_heads} heads");
                return Err(self.bad(
                    "embedding_length",
                    "a multiple of attention.head_count",
                    found,
                ));
            }
        };
        self.only("attention.value_length", head_dim, "channels of a key")?;
        Ok(head_dim)
    }

    /// Tokens, and rows of the embedding. Older files state no vocabulary size: then the embedding's own
    /// row count holds. The embedding may have rows to spare, with tokens of the type "unused" at the end of
    /// the list or without; but none too few: the tokenizer would name tokens that the model does not have.
    pub fn vocab(&self) -> Result<(usize, usize), ModelError> {
        let file = self.file;
        let rows = match (self.count("vocab_size")?, file.tensor_shape("token_embd.weight")) {
            (Some(_), _) => self.positive("vocab_size")?,
            (None, Some(&[rows, _])) if rows > 0 => rows,
            (None, _) => return Err(ModelError::MissingTensor("token_embd.weight".into())),
        };
        let key = "tokenizer.ggml.tokens";
        let bad = |found: String| ModelError::BadValue {
            key: key.into(),
            expected: "a list of tokens",
            found,
        };
        match file.texts(key)?.map(|tokens| tokens.len()) {
            None => Ok((rows, rows)),
            Some(0) => Err(bad("a list of 0".into())),
            Some(tokens) if tokens > rows => Err(ModelError::Vocabulary { tokens, vocab: rows }),
            Some(tokens) => match tokens_in_use(file, tokens)? {
                0 => Err(bad(format!("a list of {tokens}, all of them unused"))),
                used => Ok((used, rows)),
            },
        }
    }
}
