//! The numbers of a Llama-architecture model, read from its GGUF metadata.

use super::{error::ModelError, gguf::GgufFile};
use crate::base::CacheShape;

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
    /// Tokens of the vocabulary.
    pub vocab: usize,
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
    /// Reads the metadata of `file`. Refuses other architectures and features outside plain Llama.
    pub fn read(file: &GgufFile) -> Result<Self, ModelError> {
        let architecture = required("general.architecture", file.text("general.architecture")?)?;
        if architecture != "llama" {
            return Err(ModelError::Architecture(architecture.to_owned()));
        }
        if file.count("llama.expert_count")?.unwrap_or(0) > 0 {
            return Err(ModelError::Unsupported("a mixture of experts"));
        }
        let layers = positive(file, "llama.block_count")?;
        let embedding = positive(file, "llama.embedding_length")?;
        let query_heads = positive(file, "llama.attention.head_count")?;
        let kv_heads = file.count("llama.attention.head_count_kv")?.unwrap_or(query_heads);
        let head_dim = match file.count("llama.attention.key_length")? {
            Some(length) => length,
            None => embedding / query_heads,
        };
        if file.count("llama.attention.value_length")?.is_some_and(|length| length != head_dim) {
            return Err(ModelError::Unsupported("different head dimensions for K and V"));
        }
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
        for (key, value) in [(epsilon_key, rms_epsilon), ("llama.rope.freq_base", rope_base)] {
            if value <= 0.0 {
                return Err(ModelError::BadValue {
                    key: key.into(),
                    expected: "a number above zero",
                    found: value.to_string(),
                });
            }
        }
        Ok(Self {
            cache: CacheShape::new(layers, kv_heads, query_heads, head_dim)?,
            embedding,
            feed_forward: positive(file, "llama.feed_forward_length")?,
            vocab: vocab(file)?,
            context: positive(file, "llama.context_length")?,
            rope_dims,
            rope_base,
            rope_scaling: rope_scaling(file)?,
            rms_epsilon: rms_epsilon as f32,
        })
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

/// Older files state no vocabulary size: then it is the embedding's row count. The embedding may have
/// rows to spare, but none too few: the tokenizer would name tokens that the model does not have.
fn vocab(file: &GgufFile) -> Result<usize, ModelError> {
    let key = "llama.vocab_size";
    let vocab = match (file.count(key)?, file.tensor_shape("token_embd.weight")) {
        (Some(_), _) => positive(file, key)?,
        (None, Some(&[rows, _])) if rows > 0 => rows,
        (None, _) => return Err(ModelError::MissingTensor("token_embd.weight".into())),
    };
    match file.texts("tokenizer.ggml.tokens")? {
        Some(tokens) if tokens.len() > vocab => {
            Err(ModelError::Vocabulary { tokens: tokens.len(), vocab })
        }
        _ => Ok(vocab),
    }
}

fn rope_scaling(file: &GgufFile) -> Result<RopeScaling, ModelError> {
    let factor_key = "llama.rope.scaling.factor";
    let factor = file.float(factor_key)?;
    match file.text("llama.rope.scaling.type")? {
        None | Some("none") => {}
        Some("linear") => {
            let factor = required(factor_key, factor)?;
            if factor <= 0.0 {
                return Err(ModelError::BadValue {
                    key: factor_key.into(),
                    expected: "a number above zero",
                    found: factor.to_string(),
                });
            }
            return Ok(RopeScaling::Linear(factor));
        }
        Some(other) => return Err(ModelError::RopeScaling(other.to_owned())),
    }
    // Files from before `rope.scaling.type` state a linear scaling by this key alone.
    match file.float("llama.rope.scale_linear")? {
        Some(scale) if scale > 0.0 && scale != 1.0 => Ok(RopeScaling::Linear(scale)),
        _ => Ok(RopeScaling::None),
    }
}
