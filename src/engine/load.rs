//! From the tensors of a GGUF file to the weights of the forward pass.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;

use super::{
    config::LlamaConfig, error::ModelError, gguf::GgufFile, linear::Linear, norm::RmsNorm,
};

/// The weights of one layer. Products that read the same input are one matrix.
#[derive(Debug)]
pub(super) struct Layer {
    pub attention_norm: RmsNorm,
    /// Rows: all query heads, then all K heads, then all V heads.
    pub qkv: Linear,
    pub attention_output: Linear,
    pub feed_forward_norm: RmsNorm,
    /// Rows: the gate, then up.
    pub gate_up: Linear,
    pub down: Linear,
}

/// All weights of a model, in f32.
#[derive(Debug)]
pub(super) struct Weights {
    pub embedding: Linear,
    pub layers: Vec<Layer>,
    pub output_norm: RmsNorm,
    /// `None` when the head is tied to the embedding.
    pub output: Option<Linear>,
    /// Frequency divisors for RoPE (Llama 3.1 and later).
    pub rope_divisors: Option<Vec<f32>>,
}

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
const OUTPUT_NORM: &str = "output_norm.weight";
const ROPE_DIVISORS: &str = "rope_freqs.weight";
const LAYER_TENSORS: [&str; 9] = [
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

fn layer_tensor(layer: usize, name: &str) -> String {
    format!("blk.{layer}.{name}.weight")
}

/// Decodes tensors and counts them.
struct Source<'a> {
    file: &'a GgufFile,
    decoded: AtomicUsize,
    progress: &'a (dyn Fn(usize) + Sync),
}

impl Source<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let values = self.file.tensor(name, shape)?;
        (self.progress)(self.decoded.fetch_add(1, Ordering::Relaxed) + 1);
        Ok(values)
    }
}

impl Weights {
    /// Decodes every tensor, layers in parallel. `progress` is told the tensors decoded so far, from
    /// several threads.
    pub fn load(
        file: &GgufFile,
        config: &LlamaConfig,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, ModelError> {
        check_names(file, config)?;
        let source = &Source { file, decoded: AtomicUsize::new(0), progress };
        let &LlamaConfig { embedding, vocab, embedding_rows, .. } = config;
        let table = |name| {
            let mut weights = source.tensor(name, &[embedding_rows, embedding])?;
            // Rows without a token would be drawn like others.
            weights.truncate(vocab * embedding);
            Ok::<_, ModelError>(Linear::new(weights, vocab, embedding))
        };
        let divisors = |_| source.tensor(ROPE_DIVISORS, &[config.rope_dims / 2]);
        let (ends, layers) = rayon::join(
            || -> Result<_, ModelError> {
                Ok((
                    table(EMBEDDING)?,
                    file.tensor_shape(OUTPUT).map(|_| table(OUTPUT)).transpose()?,
                    source.tensor(OUTPUT_NORM, &[embedding])?,
                    file.tensor_shape(ROPE_DIVISORS).map(divisors).transpose()?,
                ))
            },
            || {
                (0..config.cache.layers())
                    .into_par_iter()
                    .map(|layer| Layer::load(source, config, layer))
                    .collect::<Result<Vec<_>, _>>()
            },
        );
        let (embedding, output, output_norm, rope_divisors) = ends?;
        let output_norm = RmsNorm::new(output_norm, config.rms_epsilon);
        Ok(Self { embedding, layers: layers?, output_norm, output, rope_divisors })
    }
}

impl Layer {
    fn load(source: &Source<'_>, config: &LlamaConfig, layer: usize) -> Result<Self, ModelError> {
        let &LlamaConfig { embedding, feed_forward, .. } = config;
        let (queries, row) = (config.layer().q_row(), config.layer().k_row());
        let read = |name: &str, shape: &[usize]| source.tensor(&layer_tensor(layer, name), shape);
        let norm =
            |name| Ok::<_, ModelError>(RmsNorm::new(read(name, &[embedding])?, config.rms_epsilon));
        let stacked = |parts: &[(&str, usize)]| -> Result<Linear, ModelError> {
            // Read first: only then are the row counts of the metadata known to be true.
            let weights = parts
                .iter()
                .map(|&(name, rows)| read(name, &[rows, embedding]))
                .collect::<Result<Vec<_>, _>>()?
                .concat();
            let rows = parts.iter().map(|(_, rows)| rows).sum();
            Ok(Linear::new(weights, rows, embedding))
        };
        let narrow = |name, inputs| -> Result<Linear, ModelError> {
            Ok(Linear::new(read(name, &[embedding, inputs])?, embedding, inputs))
        };
        Ok(Self {
            attention_norm: norm("attn_norm")?,
            qkv: stacked(&[("attn_q", queries), ("attn_k", row), ("attn_v", row)])?,
            attention_output: narrow("attn_output", queries)?,
            feed_forward_norm: norm("ffn_norm")?,
            gate_up: stacked(&[("ffn_gate", feed_forward), ("ffn_up", feed_forward)])?,
            down: narrow("ffn_down", feed_forward)?,
        })
    }
}

/// A tensor that the forward pass would silently leave out (a bias, an expert, an adapter) is an
/// error, and so is a missing one, before anything is decoded.
fn check_names(file: &GgufFile, config: &LlamaConfig) -> Result<(), ModelError> {
    // One by one: a layer count that is not true must not size a list.
    let layers = (0..config.cache.layers())
        .flat_map(|layer| LAYER_TENSORS.iter().map(move |name| layer_tensor(layer, name)));
    let mut known: HashSet<String> = HashSet::new();
    for name in [EMBEDDING, OUTPUT_NORM].map(String::from).into_iter().chain(layers) {
        if file.tensor_shape(&name).is_none() {
            return Err(ModelError::MissingTensor(name));
        }
        known.insert(name);
    }
    known.extend([OUTPUT, ROPE_DIVISORS].map(String::from));
    match file.tensor_names().filter(|&name| !known.contains(name)).min() {
        Some(unexpected) => Err(ModelError::UnexpectedTensor(unexpected.to_owned())),
        None => Ok(()),
    }
}
