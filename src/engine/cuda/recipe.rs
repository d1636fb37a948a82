//! What a forward pass does beside the numbers of its configuration.

use super::{
    gate::Activation,
    rope::{Heads, Pairing},
};
use crate::engine::{config::LlamaConfig, rope::Rope};

/// The parts in which architectures differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// What embedded rows are multiplied by.
    pub embedding_scale: f32,
    /// What the gates of the feed-forward layers are.
    pub activation: Activation,
    /// What gated values are multiplied by while they are f16 or bf16; the product that reads them divides by
    /// it. A power of two; below one it keeps large values within f16.
    pub gated_scale: f32,
    /// Which channels turn together.
    pub pairing: Pairing,
    /// Whether heads of q and k are normed before they turn (`attn_q_norm`, `attn_k_norm`).
    pub head_norms: bool,
    /// Whether what attention and feed-forward give is normed before it is added (`post_attention_norm`,
    /// `post_ffw_norm`).
    pub post_norms: bool,
    /// Radians per position of each pair, for each rotary embedding that the model has.
    pub ropes: Vec<Vec<f64>>,
    /// Which of them each layer has.
    pub layer_ropes: Vec<usize>,
}

impl Recipe {
    /// That of `llama`.
    pub(super) fn llama(config: &LlamaConfig, rope: &Rope) -> Self {
        Self {
            embedding_scale: 1.0,
            activation: Activation::Silu,
            gated_scale: 1.0,
            pairing: Pairing::Interleaved,
            head_norms: false,
            post_norms: false,
            ropes: vec![rope.frequencies().to_vec()],
            layer_ropes: vec![0; config.cache.layers()],
        }
    }
}

/// Heads of a layer; all layers have as many.
pub(super) fn heads(config: &LlamaConfig) -> Heads {
    let layer = config.layer();
    Heads { query: layer.query_heads(), kv: layer.kv_heads(), dim: layer.k_dim() }
}
