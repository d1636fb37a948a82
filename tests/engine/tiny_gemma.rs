//! A random Gemma 3 of a few kilobytes, written as GGUF: a Llama with other keys and more tensors.

use std::path::Path;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file::Value},
};

use crate::tiny_llama::{Parts, TinyLlama};

/// The numbers of the model. Its channels of a head are not the embedding's over the heads.
#[derive(Clone, Debug)]
pub struct TinyGemma {
    pub layers: usize,
    pub embedding: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_forward: usize,
    pub vocab: usize,
    pub context: usize,
    /// 0: every layer is global.
    pub window: usize,
    pub pattern: Pattern,
    pub base: f32,
    /// Stretches the positions of global layers.
    pub factor: Option<f32>,
    /// 10,000 unless it is stated.
    pub local_base: Option<f32>,
    /// 1/√head_dim unless it is stated.
    pub scale: Option<f32>,
    pub seed: u64,
}

/// How the file says which layers are windowed.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Not at all: of six layers the last is global.
    Silent,
    /// Of so many layers the last is global.
    Period(usize),
    /// Layer by layer, whether it is windowed.
    Flags(Vec<bool>),
}

impl Default for TinyGemma {
    fn default() -> Self {
        Self {
            layers: 7,
            embedding: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            feed_forward: 96,
            vocab: 300,
            context: 128,
            window: 8,
            pattern: Pattern::Silent,
            base: 1_000_000.0,
            factor: None,
            local_base: None,
            scale: None,
            seed: 1,
        }
    }
}

impl TinyGemma {
    /// Whether a layer is windowed.
    pub fn windowed(&self, layer: usize) -> bool {
        let by_pattern = match &self.pattern {
            Pattern::Silent => !(layer + 1).is_multiple_of(6),
            Pattern::Period(period) => !(layer + 1).is_multiple_of(*period),
            Pattern::Flags(flags) => flags[layer],
        };
        self.window > 0 && by_pattern
    }

    /// Writes the model to `path`.
    pub fn write(&self, path: &Path) {
        self.write_with(path, |_| {});
    }

    /// Writes the model after `change` has been at its parts.
    pub fn write_with(&self, path: &Path, change: impl FnOnce(&mut Parts)) {
        let llama = TinyLlama {
            layers: 1,
            vocab: self.vocab,
            context: self.context,
            ..TinyLlama::default()
        };
        llama.write_with(path, |parts| {
            // The vocabulary stays.
            parts.metadata.retain(|(key, _)| key.starts_with("tokenizer."));
            parts.metadata.extend(self.metadata());
            parts.tensors = self.tensors();
            change(parts);
        });
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let count = |value: usize| Value::U32(value as u32);
        let mut keys = vec![
            ("block_count", count(self.layers)),
            ("context_length", count(self.context)),
            ("embedding_length", count(self.embedding)),
            ("feed_forward_length", count(self.feed_forward)),
            ("attention.head_count", count(self.heads)),
            ("attention.head_count_kv", count(self.kv_heads)),
            ("attention.key_length", count(self.head_dim)),
            ("attention.value_length", count(self.head_dim)),
            ("attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
            ("attention.sliding_window", count(self.window)),
            ("rope.freq_base", Value::F32(self.base)),
        ];
        keys.extend(match &self.pattern {
            Pattern::Silent => None,
            Pattern::Period(period) => Some(("attention.sliding_window_pattern", count(*period))),
            Pattern::Flags(flags) => {
                let flags = flags.iter().map(|&flag| Value::Bool(flag)).collect();
                Some(("attention.sliding_window_pattern", Value::Array(flags)))
            }
        });
        if let Some(factor) = self.factor {
            keys.push(("rope.scaling.type", Value::String("linear".into())));
            keys.push(("rope.scaling.factor", Value::F32(factor)));
        }
        let float = |name, value: Option<f32>| value.map(|value| (name, Value::F32(value)));
        keys.extend(float("rope.freq_base_swa", self.local_base));
        keys.extend(float("attention.scale", self.scale));
        let keys = keys.into_iter().map(|(key, value)| (format!("gemma3.{key}"), value));
        let architecture = ("general.architecture".to_owned(), Value::String("gemma3".into()));
        std::iter::once(architecture).chain(keys).collect()
    }

    fn tensors(&self) -> Vec<(String, QTensor)> {
        let (queries, row) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut state = self.seed;
        let mut random = move || {
            // Knuth's linear congruential generator: values in [-1, 1).
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut tensors = Vec::new();
        let mut tensor = |name: String, rows: usize, columns: usize, kind| {
            let norm = columns == 1;
            let spread = 2.0 / (columns as f32).sqrt();
            let values = (0..rows * columns).map(|_| match norm {
                true => 1.0 + 0.4 * random(),
                false => spread * random(),
            });
            let values: Vec<f32> = values.collect();
            let tensor = match norm {
                true => Tensor::from_vec(values, rows, &Device::Cpu),
                false => Tensor::from_vec(values, (rows, columns), &Device::Cpu),
            };
            tensors.push((
                format!("{name}.weight"),
                QTensor::quantize(&tensor.unwrap(), kind).unwrap(),
            ));
        };
        tensor("token_embd".into(), self.vocab, self.embedding, GgmlDType::Q8_0);
        tensor("output_norm".into(), self.embedding, 1, GgmlDType::F32);
        for layer in 0..self.layers {
            let mut matrix = |name: &str, rows, columns| {
                tensor(format!("blk.{layer}.{name}"), rows, columns, GgmlDType::Q5_0);
            };
            matrix("attn_q", queries, self.embedding);
            matrix("attn_k", row, self.embedding);
            matrix("attn_v", row, self.embedding);
            matrix("attn_output", self.embedding, queries);
            matrix("ffn_gate", self.feed_forward, self.embedding);
            matrix("ffn_up", self.feed_forward, self.embedding);
            matrix("ffn_down", self.embedding, self.feed_forward);
            let mut norm = |name: &str, channels| {
                tensor(format!("blk.{layer}.{name}"), channels, 1, GgmlDType::F32);
            };
            for name in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"] {
                norm(name, self.embedding);
            }
            for name in ["attn_q_norm", "attn_k_norm"] {
                norm(name, self.head_dim);
            }
        }
        tensors
    }
}
