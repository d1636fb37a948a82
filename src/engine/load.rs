//! From the tensors of a GGUF file to the weights of the forward pass.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;

use super::{
    architecture::Architecture, config::ModelConfig, error::ModelError, gguf::GgufFile,
    linear::Linear, norm::RmsNorm,
};

/// The weights of one layer. Products that read the same input are one matrix.
#[derive(Debug)]
pub(super) struct Layer {
    pub attention_norm: RmsNorm,
    /// Rows: all query heads, then all K heads, then all V heads.
    pub qkv: Linear,
    /// Norms of each query head and of each K head, before they turn.
    pub qk_norms: Option<[RmsNorm; 2]>,
    pub attention_output: Linear,
    /// Of what attention adds to the residual stream.
    pub attention_post_norm: Option<RmsNorm>,
    pub feed_forward_norm: RmsNorm,
    /// Rows: the gate, then up.
    pub gate_up: Linear,
    pub down: Linear,
    /// Of what the feed-forward layer adds to the residual stream.
    pub feed_forward_post_norm: Option<RmsNorm>,
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

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT: &str = "output.weight";
pub(super) const OUTPUT_NORM: &str = "output_norm.weight";
pub(super) const ROPE_DIVISORS: &str = "rope_freqs.weight";
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
/// What a layer of Gemma 3 has beside them.
const GEMMA_3_TENSORS: [&str; 4] =
    ["attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"];

pub(super) fn layer_tensor(layer: usize, name: &str) -> String {
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
        config: &ModelConfig,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, ModelError> {
        check_names(file, config)?;
        let source = &Source { file, decoded: AtomicUsize::new(0), progress };
        let &ModelConfig { embedding, vocab, embedding_rows, .. } = config;
        let table = |name| {
            let mut weights = source.tensor(name, &[embedding_rows, embedding])?;
            // Rows without a token would be drawn like others.
            weights.truncate(vocab * embedding);
            Ok::<_, ModelError>(Linear::new(weights, vocab, embedding))
        };
        let divisors = |_| source.tensor(ROPE_DIVISORS, &[config.rope.dims / 2]);
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
    fn load(source: &Source<'_>, config: &ModelConfig, layer: usize) -> Result<Self, ModelError> {
        let &ModelConfig { embedding, feed_forward, .. } = config;
        let (queries, row) = (config.layer().q_row(), config.layer().k_row());
        let read = |name: &str, shape: &[usize]| source.tensor(&layer_tensor(layer, name), shape);
        let norm_of = |name, channels| -> Result<RmsNorm, ModelError> {
            Ok(RmsNorm::new(read(name, &[channels])?, config.rms_epsilon))
        };
        let norm = |name| norm_of(name, embedding);
        // The converter has added the one that Gemma's own code adds to the weights of its norms.
        let more = config.architecture == Architecture::Gemma3;
        let post_norm = |name| more.then(|| norm(name)).transpose();
        let head_dim = config.layer().k_dim();
        let head_norms = || -> Result<[RmsNorm; 2], ModelError> {
            Ok([norm_of("attn_q_norm", head_dim)?, norm_of("attn_k_norm", head_dim)?])
        };
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
            qk_norms: more.then(head_norms).transpose()?,
            attention_output: narrow("attn_output", queries)?,
            attention_post_norm: post_norm("post_attention_norm")?,
            feed_forward_norm: norm("ffn_norm")?,
            gate_up: stacked(&[("ffn_gate", feed_forward), ("ffn_up", feed_forward)])?,
            down: narrow("ffn_down", feed_forward)?,
            feed_forward_post_norm: post_norm("post_ffw_norm")?,
        })
    }
}

/// A tensor that the forward pass would silently leave out (a bias, an expert, an adapter) is an
/// error, and so is a missing one, before anything is decoded.
fn check_names(file: &GgufFile, config: &ModelConfig) -> Result<(), ModelError> {
    let (more, optional): (&[&str], &[&str]) = match config.architecture {
        Architecture::Llama => (&[], &[OUTPUT, ROPE_DIVISORS]),
        Architecture::Gemma3 => (&GEMMA_3_TENSORS, &[OUTPUT]),
    };
    let names = LAYER_TENSORS.iter().chain(more);
    let layers = (0..config.cache.layers())
        .flat_map(|layer| names.clone().map(move |name| layer_tensor(layer, name)));
    let mut known: HashSet<String> = HashSet::new();
    for name in [EMBEDDING, OUTPUT_NORM].map(String::from).into_iter().chain(layers) {
        if file.tensor_shape(&name).is_none() {
            return Err(ModelError::MissingTensor(name));
        }
        known.insert(name);
    }
    known.extend(optional.iter().copied().map(String::from));
    match file.tensor_names().filter(|&name| !known.contains(name)).min() {
        Some(unexpected) => Err(ModelError::UnexpectedTensor(unexpected.to_owned())),
        None => Ok(()),
    }
}
