//! The forward pass, in f32: Llama's (Touvron et al. 2023), and what Gemma 3 (arXiv 2503.19786) adds to it.

use std::path::Path;

use rayon::prelude::*;

use super::{
    architecture::Architecture,
    config::ModelConfig,
    error::{EngineError, ModelError},
    gguf::GgufFile,
    kv::{KvBackend, LogitRows, Span, wanted},
    linear::Linear,
    load::{Layer, Weights},
    norm::RmsNorm,
    rope::Rope,
    simd::Gate,
};
use crate::base::CacheShape;

/// Tokens that one rayon job turns or gates.
const JOB_TOKENS: usize = 16;

/// A model: weights in f32, no K and V of its own.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    weights: Weights,
    rope: Rope,
    /// Windowed layers', where it is another.
    local_rope: Option<Rope>,
    gate: Gate,
    /// What a token's row of the embedding is multiplied with.
    embedding_scale: f32,
}

/// Buffers of one step, reused by every layer. All are \[tokens\]\[…\].
struct Scratch {
    /// \[tokens\]\[pairs\].
    turns: Vec<(f32, f32)>,
    /// The same of windowed layers; empty where they turn like the others.
    local_turns: Vec<(f32, f32)>,
    residual: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    /// What a layer's half adds to the residual stream, where that is normed.
    added: Vec<f32>,
}

impl Model {
    /// Opens the GGUF file at `path` and decodes its weights (4 bytes per parameter in memory).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::load(&GgufFile::open(path)?)
    }

    /// Decodes the weights of an opened file.
    pub fn load(file: &GgufFile) -> Result<Self, ModelError> {
        Self::load_with(file, &|_| {})
    }

    /// Decodes the weights of an opened file. `progress` is told how many of its tensors are decoded,
    /// from several threads and so not always in order.
    pub fn load_with(
        file: &GgufFile,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, ModelError> {
        let config = ModelConfig::read(file)?;
        let weights = Weights::load(file, &config, progress)?;
        let (head_dim, context) = (config.layer().k_dim(), config.context);
        let rope = |rope| Rope::new(rope, head_dim, context, weights.rope_divisors.as_deref());
        let (gate, embedding_scale) = match config.architecture {
            Architecture::Llama => (Gate::Silu, 1.0),
            Architecture::Gemma3 => (Gate::GeluTanh, (config.embedding as f32).sqrt()),
        };
        let local_rope = config.local_rope.as_ref().map(rope).transpose()?;
        Ok(Self { rope: rope(&config.rope)?, local_rope, gate, embedding_scale, config, weights })
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The shape of the KV cache that this model needs.
    pub fn shape(&self) -> &CacheShape {
        &self.config.cache
    }

    /// Runs one step: the new tokens of every span, through all layers, with K and V kept by `kv`.
    ///
    /// Returns the logits that the spans asked for. A span with no token, a token outside the
    /// vocabulary and a position outside the context are refused before `kv` sees anything; an
    /// error of `kv` ends the step where it happens.
    pub fn forward(
        &self,
        spans: &[Span<'_>],
        kv: &mut dyn KvBackend,
    ) -> Result<LogitRows, EngineError> {
        Self::check(&self.config, spans)?;
        let positions: Vec<usize> = spans
            .iter()
            .flat_map(|span| (0..span.tokens.len()).map(|i| span.position + i))
            .collect();
        let mut scratch = self.scratch(spans, &positions);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.layer(index, layer, &mut scratch, kv)?;
        }
        Ok(self.logits(spans, &scratch.residual))
    }

    /// Refuses a step that a model of that configuration cannot run.
    pub(super) fn check(config: &ModelConfig, spans: &[Span<'_>]) -> Result<(), EngineError> {
        let ModelConfig { vocab, context, .. } = *config;
        for (index, span) in spans.iter().enumerate() {
            if span.tokens.is_empty() {
                return Err(EngineError::EmptySpan { span: index });
            }
            let needed = span.position.saturating_add(span.tokens.len());
            if needed > context {
                return Err(EngineError::ContextExceeded { needed, context });
            }
            if let Some(&token) = span.tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(EngineError::TokenId { token, vocab });
            }
        }
        Ok(())
    }

    fn scratch(&self, spans: &[Span<'_>], positions: &[usize]) -> Scratch {
        let tokens = positions.len();
        let &ModelConfig { embedding, feed_forward, .. } = &self.config;
        let layer = self.config.layer();
        let (queries, row) = (layer.q_row(), layer.k_row());
        let mut residual = Vec::with_capacity(tokens * embedding);
        for &token in spans.iter().flat_map(|span| span.tokens) {
            let row = self.weights.embedding.row(token as usize);
            residual.extend(row.iter().map(|x| x * self.embedding_scale));
        }
        let normed_output = self.config.architecture == Architecture::Gemma3;
        Scratch {
            turns: self.rope.turns(positions),
            local_turns: self.local_rope.as_ref().map_or(Vec::new(), |rope| rope.turns(positions)),
            residual,
            normed: vec![0.0; tokens * embedding],
            qkv: vec![0.0; tokens * (queries + 2 * row)],
            q: vec![0.0; tokens * queries],
            k: vec![0.0; tokens * row],
            v: vec![0.0; tokens * row],
            attended: vec![0.0; tokens * queries],
            gate_up: vec![0.0; tokens * 2 * feed_forward],
            gated: vec![0.0; tokens * feed_forward],
            added: vec![0.0; if normed_output { tokens * embedding } else { 0 }],
        }
    }

    fn layer(
        &self,
        index: usize,
        layer: &Layer,
        s: &mut Scratch,
        kv: &mut dyn KvBackend,
    ) -> Result<(), EngineError> {
        layer.attention_norm.apply(&s.residual, &mut s.normed);
        layer.qkv.apply(&s.normed, &mut s.qkv);
        self.turn(index, layer, s);
        kv.attend(index, &s.q, &s.k, &s.v, &mut s.attended)?;
        let (output, norm) = (&layer.attention_output, &layer.attention_post_norm);
        add(output, norm, &s.attended, &mut s.added, &mut s.normed, &mut s.residual);

        layer.feed_forward_norm.apply(&s.residual, &mut s.normed);
        layer.gate_up.apply(&s.normed, &mut s.gate_up);
        let channels = self.config.feed_forward;
        s.gate_up
            .par_chunks(JOB_TOKENS * 2 * channels)
            .zip(s.gated.par_chunks_mut(JOB_TOKENS * channels))
            .for_each(|(gate_up, gated)| self.gate.apply(gate_up, channels, gated));
        let (down, norm) = (&layer.down, &layer.feed_forward_post_norm);
        add(down, norm, &s.gated, &mut s.added, &mut s.normed, &mut s.residual);
        Ok(())
    }

    /// Splits the fused product into q, k and v, and norms and turns q and k on the way.
    fn turn(&self, index: usize, layer: &Layer, s: &mut Scratch) {
        let shape = self.config.cache.layer(index);
        let (rope, turns) = match &self.local_rope {
            Some(local) if shape.window().is_some() => (local, &s.local_turns),
            _ => (&self.rope, &s.turns),
        };
        let (queries, row) = (shape.q_row(), shape.k_row());
        let (fused, pairs) = (queries + 2 * row, rope.pairs());
        let inputs =
            turns.par_chunks(JOB_TOKENS * pairs).zip(s.qkv.par_chunks_mut(JOB_TOKENS * fused));
        let outputs =
            s.q.par_chunks_mut(JOB_TOKENS * queries)
                .zip(s.k.par_chunks_mut(JOB_TOKENS * row))
                .zip(s.v.par_chunks_mut(JOB_TOKENS * row));
        inputs.zip(outputs).for_each(|((turns, qkv), ((q, k), v))| {
            let inputs = turns.chunks_exact(pairs).zip(qkv.chunks_exact_mut(fused));
            let outputs = q
                .chunks_exact_mut(queries)
                .zip(k.chunks_exact_mut(row))
                .zip(v.chunks_exact_mut(row));
            for ((turn, qkv), ((q, k), v)) in inputs.zip(outputs) {
                let (new_q, rest) = qkv.split_at_mut(queries);
                let (new_k, new_v) = rest.split_at_mut(row);
                if let Some([q_norm, k_norm]) = &layer.qk_norms {
                    q_norm.heads(new_q);
                    k_norm.heads(new_k);
                }
                rope.turn(turn, new_q, q);
                rope.turn(turn, new_k, k);
                v.copy_from_slice(new_v);
            }
        });
    }

    fn logits(&self, spans: &[Span<'_>], residual: &[f32]) -> LogitRows {
        let ModelConfig { embedding, vocab, .. } = self.config;
        let (rows, owners) = wanted(spans);
        let wanted: Vec<f32> = rows
            .iter()
            .flat_map(|row| &residual[row * embedding..][..embedding])
            .copied()
            .collect();
        let mut normed = vec![0.0; wanted.len()];
        self.weights.output_norm.apply(&wanted, &mut normed);
        let mut values = vec![0.0; owners.len() * vocab];
        self.weights.output.as_ref().unwrap_or(&self.weights.embedding).apply(&normed, &mut values);
        LogitRows::new(vocab, values, owners)
    }
}

/// `residual += norm(x · Wᵀ)`. Without a norm the two buffers are left alone.
fn add(
    output: &Linear,
    norm: &Option<RmsNorm>,
    x: &[f32],
    added: &mut [f32],
    normed: &mut [f32],
    residual: &mut [f32],
) {
    let Some(norm) = norm else { return output.add_to(x, residual) };
    output.apply(x, added);
    norm.apply(added, normed);
    for (residual, normed) in residual.iter_mut().zip(normed) {
        *residual += *normed;
    }
}
