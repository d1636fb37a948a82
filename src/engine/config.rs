//! The numbers of a Llama-architecture model, read from its GGUF metadata.

use super::{
    architecture::{self, Facts},
    error::{EngineError, ModelError},
    gguf::GgufFile,
    tokenizer::tokens_in_use,
};
use crate::base::{CacheShape, LayerShape};

/// How RoPE positions are stretched beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions as they are.
    None,
    /// Positions divided by a factor.
    Linear(f64),
}

/// Everything that a Llama forward pass needs to know besides the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Layers, heads and channels of the KV cache.
    pub cache: CacheShape,
    /// Channels of the residual stream.
    pub embedding: usize,
    /// Channels of the feed-forward layers.
    pub feed_forward: usize,
    /// Tokens of the vocabulary: logits in a row.
    pub vocab: usize,
    /// Rows of the embedding and of the output head. Those from `vocab` on pad it to a round size and
    /// stand for no token: they can be neither given nor drawn.
    pub embedding_rows: usize,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Channels of a head that RoPE turns; the others pass through.
    pub rope_dims: usize,
    /// RoPE's base (θ).
    pub rope_base: f64,
    /// RoPE's scaling.
    pub rope_scaling: RopeScaling,
    /// Added to the mean square in RMSNorm.
    pub rms_epsilon: f32,
}

impl LlamaConfig {
    /// The layers' shape: all of them are alike.
    pub fn layer(&self) -> &LayerShape {
        self.cache.layer(0)
    }

    /// Reads the metadata of `file`. Refuses other architectures and features outside plain Llama.
    pub fn read(file: &GgufFile) -> Result<Self, ModelError> {
        let architecture = required("general.architecture", file.text("general.architecture")?)?;
        if architecture != "llama" {
            return Err(ModelError::Architecture(architecture.to_owned()));
        }
        let layers = positive(file, "llama.block_count")?;
        let embedding = positive(file, "llama.embedding_length")?;
        let query_heads = positive(file, "llama.attention.head_count")?;
        let kv_heads = file.count("llama.attention.head_count_kv")?.unwrap_or(query_heads);
        let head_dim = head_dim(file, embedding, query_heads)?;
        let rope_dims = file.count("llama.rope.dimension_count")?.unwrap_or(head_dim);
        if rope_dims == 0 || rope_dims > head_dim || !rope_dims.is_multiple_of(2) {
            return Err(ModelError::BadValue {
                key: "llama.rope.dimension_count".into(),
                expected: "an even number from 2 up to the head dimension",
                found: rope_dims.to_string(),
            });
        }
        let epsilon_key = "llama.attention.layer_norm_rms_epsilon";
        let rms_epsilon = required(epsilon_key, file.float(epsilon_key)?)?;
        let rope_base = file.float("llama.rope.freq_base")?.unwrap_or(10_000.0);
        // Held against its range as the forward pass has it.
        let (epsilon, base) = (rms_epsilon as f32, rope_base);
        for (key, fine, expected, found) in [
            (
                epsilon_key,
                epsilon > 0.0 && epsilon.is_finite(),
                "a number above zero in f32",
                rms_epsilon,
            ),
            ("llama.rope.freq_base", base > 0.0, "a number above zero", rope_base),
        ] {
            if !fine {
                let found = found.to_string();
                return Err(ModelError::BadValue { key: key.into(), expected, found });
            }
        }
        let context = positive(file, "llama.context_length")?;
        architecture::check(file, Facts { context, head_dim })?;
        let (vocab, embedding_rows) = vocab(file)?;
        Ok(Self {
            cache: CacheShape::new(layers, kv_heads, query_heads, head_dim)?,
            embedding,
            feed_forward: positive(file, "llama.feed_forward_length")?,
            vocab,
            embedding_rows,
            context,
            rope_dims,
            rope_base,
            rope_scaling: rope_scaling(file)?,
            rms_epsilon: epsilon,
        })
    }

    /// Refuses more positions than the model was trained for.
    pub(crate) fn check_context(&self, needed: usize) -> Result<(), EngineError> {
        let context = self.context;
        if needed > context {
            return Err(EngineError::ContextExceeded { needed, context });
        }
        Ok(())
    }
}

/// Channels of a head: stated, or the embedding's over the heads.
fn head_dim(file: &GgufFile, embedding: usize, query_heads: usize) -> Result<usize, ModelError> {
    let key = "llama.attention.key_length";
    let head_dim = match file.count(key)? {
        Some(_) => positive(file, key)?,
        None if embedding.is_multiple_of(query_heads) => embedding / query_heads,
        None => {
            return Err(ModelError::BadValue {
                key: "llama.embedding_length".into(),
                expected: "a multiple of llama.attention.head_count",
                found: format!("{embedding}, with {query_heads} heads"),
            });
        }
    };
    let key = "llama.attention.value_length";
    match file.count(key)? {
        Some(length) if length != head_dim => Err(ModelError::UnsupportedKey {
            key: key.into(),
            found: length.to_string(),
            supported: format!("the {head_dim} channels of a key"),
        }),
        _ => Ok(head_dim),
    }
}

fn required<T>(key: &str, value: Option<T>) -> Result<T, ModelError> {
    value.ok_or_else(|| ModelError::MissingKey(key.to_owned()))
}

fn positive(file: &GgufFile, key: &str) -> Result<usize, ModelError> {
    match required(key, file.count(key)?)? {
        0 => Err(ModelError::BadValue {
            key: key.to_owned(),
            expected: "a number above zero",
            found: "0".into(),
        }),
        count => Ok(count),
    }
}

/// Tokens, and rows of the embedding. Older files state no vocabulary size: then the embedding's own
/// row count holds. The embedding may have rows to spare, with tokens of the type "unused" at the end of
/// the list or without; but none too few: the tokenizer would name tokens that the model does not have.
fn vocab(file: &GgufFile) -> Result<(usize, usize), ModelError> {
    let key = "llama.vocab_size";
    let rows = match (file.count(key)?, file.tensor_shape("token_embd.weight")) {
        (Some(_), _) => positive(file, key)?,
        (None, Some(&[rows, _])) if rows > 0 => rows,
        (None, _) => return Err(ModelError::MissingTensor("token_embd.weight".into())),
    };
    let key = "tokenizer.ggml.tokens";
    match file.texts(key)?.map(|tokens| tokens.len()) {
        None => Ok((rows, rows)),
        Some(0) => Err(ModelError::BadValue {
            key: key.into(),
            expected: "a list of tokens",
            found: "a list of 0".into(),
        }),
        Some(tokens) if tokens > rows => Err(ModelError::Vocabulary { tokens, vocab: rows }),
        Some(tokens) => match tokens_in_use(file, tokens)? {
            0 => Err(ModelError::BadValue {
                key: key.into(),
                expected: "a list of tokens",
                found: format!("a list of {tokens}, all of them unused"),
            }),
            used => Ok((used, rows)),
        },
    }
}

/// As llama.cpp reads it: a factor without a type is linear, and `rope.scale_linear` is the factor's
/// name from before there were types.
fn rope_scaling(file: &GgufFile) -> Result<RopeScaling, ModelError> {
    let factor = |key: &str| match file.float(key)? {
        Some(factor) if factor <= 0.0 => Err(ModelError::BadValue {
            key: key.into(),
            expected: "a number above zero",
            found: factor.to_string(),
        }),
        factor => Ok(factor),
    };
    let (key, old_key) = ("llama.rope.scaling.factor", "llama.rope.scale_linear");
    let factor = match (factor(key)?, factor(old_key)?) {
        (Some(new), Some(old)) if new != old => {
            return Err(ModelError::BadValue {
                key: old_key.into(),
                expected: "the value of llama.rope.scaling.factor",
                found: format!("{old}, not {new}"),
            });
        }
        (new, old) => new.or(old),
    };
    match (file.text("llama.rope.scaling.type")?, factor) {
        (Some("none"), _) | (None, None) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(1.0)) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear(factor)),
        (Some("linear"), None) => Err(ModelError::MissingKey(key.into())),
        (Some(other), _) => Err(ModelError::RopeScaling(other.to_owned())),
    }
}
