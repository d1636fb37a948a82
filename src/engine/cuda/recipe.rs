//! What a forward pass does beside the numbers of its configuration.

use super::{
    gate::Activation,
    rope::{Heads, Pairing},
};
use crate::engine::{
    architecture::Architecture,
    config::{ModelConfig, RopePairs},
    rope::Rope,
};

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

/// What gated values are multiplied by in f16: Gemma's reach beyond its range.
const GEMMA_GATED: f32 = 1.0 / 16.0;

impl Recipe {
    /// That of a model whose layers turn by `rope`, windowed ones by `local` if there is one.
    pub(super) fn of(config: &ModelConfig, rope: &Rope, local: Option<&Rope>) -> Self {
        let pairing = match config.rope.pairs {
            RopePairs::Neighbours => Pairing::Interleaved,
            RopePairs::Halves => Pairing::Halves,
        };
        let windowed = config.cache.iter().map(|layer| layer.window().is_some());
        let layer_ropes = windowed.map(|windowed| usize::from(windowed && local.is_some()));
        let ropes = [Some(rope), local].into_iter().flatten();
        let plain = Self {
            embedding_scale: 1.0,
            activation: Activation::Silu,
            gated_scale: 1.0,
            pairing,
            head_norms: false,
            post_norms: false,
            ropes: ropes.map(|rope| rope.frequencies().to_vec()).collect(),
            layer_ropes: layer_ropes.collect(),
        };
        match config.architecture {
            Architecture::Llama => plain,
            Architecture::Gemma3 => Self {
                embedding_scale: (config.embedding as f32).sqrt(),
                activation: Activation::GeluTanh,
                gated_scale: GEMMA_GATED,
                head_norms: true,
                post_norms: true,
                ..plain
            },
        }
    }
}

/// Heads of a layer; all layers have as many.
pub(super) fn heads(config: &ModelConfig) -> Heads {
    let layer = config.layer();
    Heads { query: layer.query_heads(), kv: layer.kv_heads(), dim: layer.k_dim() }
}
