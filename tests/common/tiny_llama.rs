//! A random Llama of a few kilobytes, written as GGUF, for tests that need a whole model.

use std::{fs::File, path::Path};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};

/// The numbers of the model. Its vocabulary: the 256 bytes, [`MERGES`], then control tokens.
#[derive(Clone, Debug)]
pub struct TinyLlama {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_forward: usize,
    pub vocab: usize,
    /// Rows of the embedding beyond the vocabulary, which stand for no token.
    pub padding: usize,
    pub context: usize,
    /// Whether the output head is the embedding.
    pub tied: bool,
    pub seed: u64,
}

impl Default for TinyLlama {
    fn default() -> Self {
        Self {
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            feed_forward: 96,
            vocab: 300,
            padding: 0,
            context: 256,
            tied: true,
            seed: 1,
        }
    }
}

/// The last one joins two digits: a tokenizer that splits digits never applies it.
pub const MERGES: [&str; 7] = ["Ġ t", "h e", "Ġt he", "i n", "e r", "a n", "1 9"];

/// Metadata and tensors, before they are written.
pub struct Parts {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<(String, QTensor)>,
}

impl TinyLlama {
    /// Writes the model to `path`.
    pub fn write(&self, path: &Path) {
        self.write_with(path, |_| {});
    }

    /// Writes the model after `change` has been at its parts.
    pub fn write_with(&self, path: &Path, change: impl FnOnce(&mut Parts)) {
        let mut parts = Parts { metadata: self.metadata(), tensors: self.tensors() };
        change(&mut parts);
        let metadata: Vec<_> = parts.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = parts.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let count = |value: usize| Value::U32(value as u32);
        let texts =
            |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
        let mut tokens: Vec<String> = (0..=255).map(stand_in).map(String::from).collect();
        tokens.extend(MERGES.map(|merge| merge.replace(' ', "")));
        let text_tokens = tokens.len();
        tokens.extend(["<|end|>".to_owned(), "<|start|>".to_owned()]);
        tokens.extend((tokens.len()..self.vocab).map(|id| format!("<|{id}|>")));
        let types =
            (0..tokens.len()).map(|id| Value::I32(if id < text_tokens { 1 } else { 3 })).collect();
        let entries = [
            ("general.architecture", Value::String("llama".into())),
            ("llama.block_count", count(self.layers)),
            ("llama.context_length", count(self.context)),
            ("llama.embedding_length", count(self.heads * self.head_dim)),
            ("llama.feed_forward_length", count(self.feed_forward)),
            ("llama.attention.head_count", count(self.heads)),
            ("llama.attention.head_count_kv", count(self.kv_heads)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(10_000.0)),
            ("llama.rope.dimension_count", count(self.head_dim)),
            ("llama.vocab_size", count(self.vocab + self.padding)),
            ("tokenizer.ggml.model", Value::String("gpt2".into())),
            ("tokenizer.ggml.pre", Value::String("smollm".into())),
            ("tokenizer.ggml.tokens", texts(tokens)),
            ("tokenizer.ggml.token_type", Value::Array(types)),
            ("tokenizer.ggml.merges", texts(MERGES.map(String::from).into())),
            ("tokenizer.ggml.eos_token_id", count(text_tokens)),
            ("tokenizer.ggml.bos_token_id", count(text_tokens + 1)),
            ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ];
        entries.map(|(key, value)| (key.to_owned(), value)).into()
    }

    fn tensors(&self) -> Vec<(String, QTensor)> {
        let embedding = self.heads * self.head_dim;
        let row = self.kv_heads * self.head_dim;
        let rows = self.vocab + self.padding;
        let mut random = Random(self.seed);
        let mut tensors = Vec::new();
        let mut matrix = |name: &str, rows: usize, columns: usize, kind| {
            let spread = 2.0 / (columns as f32).sqrt();
            let values: Vec<f32> = (0..rows * columns).map(|_| random.next() * spread).collect();
            let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
            tensors.push((name.to_owned(), QTensor::quantize(&tensor, kind).unwrap()));
        };
        matrix("token_embd.weight", rows, embedding, GgmlDType::Q8_0);
        if !self.tied {
            matrix("output.weight", rows, embedding, GgmlDType::F16);
        }
        for layer in 0..self.layers {
            let mut matrix = |name: &str, rows, columns| {
                matrix(&format!("blk.{layer}.{name}.weight"), rows, columns, GgmlDType::Q4_1);
            };
            matrix("attn_q", embedding, embedding);
            matrix("attn_k", row, embedding);
            matrix("attn_v", row, embedding);
            matrix("attn_output", embedding, embedding);
            matrix("ffn_gate", self.feed_forward, embedding);
            matrix("ffn_up", self.feed_forward, embedding);
            matrix("ffn_down", embedding, self.feed_forward);
        }
        let norms = (0..self.layers)
            .flat_map(|layer| ["attn_norm", "ffn_norm"].map(|name| format!("blk.{layer}.{name}")))
            .chain(["output_norm".to_owned()]);
        for name in norms {
            let values: Vec<f32> = (0..embedding).map(|_| 1.0 + 0.2 * random.next()).collect();
            let tensor = Tensor::from_vec(values, embedding, &Device::Cpu).unwrap();
            let tensor = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
            tensors.push((format!("{name}.weight"), tensor));
        }
        tensors
    }
}

/// GPT-2's printable stand-in for a byte.
fn stand_in(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(&byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|byte| !printable(byte)).count();
    char::from_u32(0x100 + earlier as u32).unwrap()
}

/// Knuth's linear congruential generator: values in [-1, 1).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
