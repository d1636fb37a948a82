//! The sizes of the model that is served.

/// Bytes of a weight or an activation: f16.
pub(super) const HALF: usize = 2;

/// The sizes of a Llama-shaped model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ModelShape {
    /// Layers.
    pub layers: usize,
    /// Values of a token between layers.
    pub hidden: usize,
    /// Query heads of a layer.
    pub query_heads: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Width of the gated part.
    pub mlp: usize,
    /// Tokens there are.
    pub vocab: usize,
}

impl ModelShape {
    /// Llama-3.1-8B.
    pub const LLAMA_8B: Self = Self {
        layers: 32,
        hidden: 4096,
        query_heads: 32,
        kv_heads: 8,
        head_dim: 128,
        mlp: 14_336,
        vocab: 128_256,
    };

    /// Values of a row of q, k and v.
    pub fn qkv(&self) -> usize {
        (self.query_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Head tables of a sequence.
    pub fn heads(&self) -> usize {
        self.layers * self.kv_heads
    }

    /// Query heads of a KV head.
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// Values of the matrices of a layer: qkv, o, gate and up, down.
    pub(super) fn matrices(&self) -> [usize; 4] {
        let attention = self.query_heads * self.head_dim;
        [
            self.qkv() * self.hidden,
            self.hidden * attention,
            2 * self.mlp * self.hidden,
            self.hidden * self.mlp,
        ]
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self, distinct_layers: usize) -> usize {
        let layer: usize = self.matrices().iter().sum();
        HALF * (distinct_layers * layer + self.vocab * self.hidden)
    }
}
