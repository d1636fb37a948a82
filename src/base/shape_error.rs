//! Shapes that no cache can have.

use thiserror::Error;

/// See [`Channels::ALIGN`](super::Channels::ALIGN).
pub(super) const CHANNEL_ALIGN: usize = 16;
/// See [`Channels::MAX`](super::Channels::MAX).
pub(super) const MAX_CHANNELS: usize = 1024;
/// See [`CacheShape::MAX_HEADS`](super::CacheShape::MAX_HEADS).
pub(super) const MAX_HEADS: usize = 1 << 16;
/// The largest [soft cap](super::LayerShape::softcapped).
pub(super) const MAX_SOFTCAP: f32 = 4096.0;

/// A shape no cache can have.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ShapeError {
    /// Something that there must be at least one of.
    #[error(
        "a cache shape needs at least one of each, got {layers} layers, {kv_heads} KV heads, {query_heads} query heads"
    )]
    Zero {
        /// Layers.
        layers: usize,
        /// KV heads per layer.
        kv_heads: usize,
        /// Query heads per layer.
        query_heads: usize,
    },
    /// The query heads do not divide into groups of equal size.
    #[error("{query_heads} query heads do not divide into groups over {kv_heads} KV heads")]
    Ragged {
        /// Query heads per layer.
        query_heads: usize,
        /// KV heads per layer.
        kv_heads: usize,
    },
    /// Rows that SIMD lanes and 16-byte copies cannot cut evenly.
    #[error("head_dim {0} is not a multiple of {align} in {align}..={max}", align = CHANNEL_ALIGN, max = MAX_CHANNELS)]
    Channels(usize),
    /// Values that are a part of their keys, and larger than these.
    #[error("values of {v} channels are no part of keys of {k}")]
    ValueBeyondKey {
        /// Channels of a key.
        k: usize,
        /// Channels of a value.
        v: usize,
    },
    /// A window of no tokens, of more than can be counted, or of fewer than its sinks.
    #[error(
        "a window of {tokens} tokens with {sinks} sinks: need at least one token, and no more sinks than tokens"
    )]
    Window {
        /// Tokens of the window.
        tokens: usize,
        /// Its sinks.
        sinks: usize,
    },
    /// A softmax scale that is zero, negative, subnormal or not finite.
    #[error("a softmax scale of {0} is no positive number")]
    Scale(f32),
    /// A bound on logits that is zero, negative, subnormal, too large or not finite.
    #[error("a logit soft cap of {0} is no positive number up to {max}", max = MAX_SOFTCAP)]
    Softcap(f32),
    /// Sink logits that are not one finite number for each query head.
    #[error("{logits} sink logits for {query_heads} query heads: need one finite number for each")]
    SinkLogits {
        /// Logits given.
        logits: usize,
        /// Query heads of the layer.
        query_heads: usize,
    },
    /// More KV heads over all layers than a table index holds, or as many query heads in one layer.
    #[error("{0} heads are more than {max}", max = MAX_HEADS)]
    TooManyHeads(usize),
}
