//! The numbers of a model, read from its GGUF metadata.

mod gemma;
mod keys;
mod rope;

use self::keys::Keys;
pub use self::rope::{RopeConfig, RopePairs, RopeScaling};
use super::{
    architecture::{self, Architecture, Facts},
    error::{EngineError, ModelError},
    gguf::GgufFile,
};
use crate::base::{CacheShape, LayerShape};

/// Everything that a forward pass needs to know besides the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which forward pass.
    pub architecture: Architecture,
    /// Layers, heads, channels and windows of the KV cache. Layers differ in nothing but their windows.
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
    /// Rotary embedding of global layers.
    pub rope: RopeConfig,
    /// Rotary embedding of windowed layers, where it is another.
    pub local_rope: Option<RopeConfig>,
    /// Added to the mean square in RMSNorm.
    pub rms_epsilon: f32,
}

impl ModelConfig {
    /// Reads the metadata of `file`. Refuses other architectures, and features that their forward passes
    /// do not have.
    pub fn read(file: &GgufFile) -> Result<Self, ModelError> {
        let key = "general.architecture";
        let name = file.text(key)?.ok_or_else(|| ModelError::MissingKey(key.into()))?;
        let architecture =
            Architecture::named(name).ok_or_else(|| ModelError::Architecture(name.to_owned()))?;
        let keys = Keys { file, prefix: architecture.prefix() };
        let layers = keys.positive("block_count")?;
        let embedding = keys.positive("embedding_length")?;
        let query_heads = keys.positive("attention.head_count")?;
        let kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(query_heads);
        let head_dim = keys.head_dim(embedding, query_heads)?;
        let (pairs, base) = match architecture {
            Architecture::Llama => (RopePairs::Neighbours, Some(10_000.0)),
            Architecture::Gemma3 => (RopePairs::Halves, None),
        };
        let rope = RopeConfig::read(keys, head_dim, pairs, base)?;
        let rms_epsilon = keys.epsilon()?;
        let context = keys.positive("context_length")?;
        architecture::check(file, architecture, Facts { context, head_dim })?;
        let (vocab, embedding_rows) = keys.vocab()?;
        let (cache, local_rope) = match architecture {
            Architecture::Llama => {
                (CacheShape::new(layers, kv_heads, query_heads, head_dim)?, None)
            }
            Architecture::Gemma3 => {
                // Too many layers are refused before there is a list of them.
                CacheShape::new(layers, kv_heads, query_heads, head_dim)?;
                let layer = LayerShape::new(kv_heads, query_heads, head_dim)?;
                let cache = gemma::layers(keys, layers, layer, embedding)?;
                (cache, Some(gemma::local_rope(keys, rope)?))
            }
        };
        Ok(Self {
            architecture,
            cache,
            embedding,
            feed_forward: keys.positive("feed_forward_length")?,
            vocab,
            embedding_rows,
            context,
            rope,
            local_rope,
            rms_epsilon,
        })
    }

    /// Heads and channels, which all layers have alike.
    pub fn layer(&self) -> &LayerShape {
        self.cache.layer(0)
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
