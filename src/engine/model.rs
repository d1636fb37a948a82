//! The forward pass of a Llama-architecture model (Touvron et al. 2023), in f32.

use std::path::Path;

use rayon::prelude::*;

use super::{
    config::LlamaConfig,
    error::{EngineError, ModelError},
    gguf::GgufFile,
    kv::{KvBackend, LogitRow, LogitRows, Logits, Span},
    load::{Layer, Weights},
    rope::Rope,
    simd::swiglu,
};
use crate::base::CacheShape;

/// Tokens that one rayon job turns or gates.
const JOB_TOKENS: usize = 16;

/// A Llama-architecture model: weights in f32, no K and V of its own.
#[derive(Debug)]
pub struct Model {
    config: LlamaConfig,
    weights: Weights,
    rope: Rope,
}

/// Buffers of one step, reused by every layer. All are \[tokens\]\[…\].
struct Scratch {
    /// \[tokens\]\[pairs\], the same for every layer.
    turns: Vec<(f32, f32)>,
    residual: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
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
        let config = LlamaConfig::read(file)?;
        let weights = Weights::load(file, &config, progress)?;
        let rope = Rope::new(&config, weights.rope_divisors.as_deref())?;
        Ok(Self { config, weights, rope })
    }

    /// The model's numbers.
    pub fn config(&self) -> &LlamaConfig {
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
        self.check(spans)?;
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

    fn check(&self, spans: &[Span<'_>]) -> Result<(), EngineError> {
        let LlamaConfig { vocab, context, .. } = self.config;
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
        let &LlamaConfig { embedding, feed_forward, .. } = &self.config;
        let layer = self.config.layer();
        let (queries, row) = (layer.q_row(), layer.k_row());
        let mut residual = Vec::with_capacity(tokens * embedding);
        for &token in spans.iter().flat_map(|span| span.tokens) {
            residual.extend_from_slice(self.weights.embedding.row(token as usize));
        }
        Scratch {
            turns: self.rope.turns(positions),
            residual,
            normed: vec![0.0; tokens * embedding],
            qkv: vec![0.0; tokens * (queries + 2 * row)],
            q: vec![0.0; tokens * queries],
            k: vec![0.0; tokens * row],
            v: vec![0.0; tokens * row],
            attended: vec![0.0; tokens * queries],
            gate_up: vec![0.0; tokens * 2 * feed_forward],
            gated: vec![0.0; tokens * feed_forward],
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
        self.turn(s);
        kv.attend(index, &s.q, &s.k, &s.v, &mut s.attended)?;
        layer.attention_output.add_to(&s.attended, &mut s.residual);

        layer.feed_forward_norm.apply(&s.residual, &mut s.normed);
        layer.gate_up.apply(&s.normed, &mut s.gate_up);
        let channels = self.config.feed_forward;
        s.gate_up
            .par_chunks(JOB_TOKENS * 2 * channels)
            .zip(s.gated.par_chunks_mut(JOB_TOKENS * channels))
            .for_each(|(gate_up, gated)| swiglu(gate_up, channels, gated));
        layer.down.add_to(&s.gated, &mut s.residual);
        Ok(())
    }

    /// Splits the fused product into q, k and v, and turns q and k on the way.
    fn turn(&self, s: &mut Scratch) {
        let layer = self.config.layer();
        let (queries, row) = (layer.q_row(), layer.k_row());
        let (fused, pairs) = (queries + 2 * row, self.rope.pairs());
        let inputs =
            s.turns.par_chunks(JOB_TOKENS * pairs).zip(s.qkv.par_chunks(JOB_TOKENS * fused));
        let outputs =
            s.q.par_chunks_mut(JOB_TOKENS * queries)
                .zip(s.k.par_chunks_mut(JOB_TOKENS * row))
                .zip(s.v.par_chunks_mut(JOB_TOKENS * row));
        inputs.zip(outputs).for_each(|((turns, qkv), ((q, k), v))| {
            let inputs = turns.chunks_exact(pairs).zip(qkv.chunks_exact(fused));
            let outputs = q
                .chunks_exact_mut(queries)
                .zip(k.chunks_exact_mut(row))
                .zip(v.chunks_exact_mut(row));
            for ((turn, qkv), ((q, k), v)) in inputs.zip(outputs) {
                let (new_q, rest) = qkv.split_at(queries);
                let (new_k, new_v) = rest.split_at(row);
                self.rope.turn(turn, new_q, q);
                self.rope.turn(turn, new_k, k);
                v.copy_from_slice(new_v);
            }
        });
    }

    fn logits(&self, spans: &[Span<'_>], residual: &[f32]) -> LogitRows {
        let LlamaConfig { embedding, vocab, .. } = self.config;
        let mut owners = Vec::new();
        let mut wanted = Vec::new();
        let mut first = 0;
        for (index, span) in spans.iter().enumerate() {
            let count = span.tokens.len();
            let tokens = match span.logits {
                Logits::None => count..count,
                Logits::Last => count - 1..count,
                Logits::All => 0..count,
            };
            let rows = first + tokens.start..first + tokens.end;
            wanted.extend_from_slice(&residual[rows.start * embedding..rows.end * embedding]);
            owners.extend(tokens.map(|token| LogitRow { span: index, token }));
            first += count;
        }
        let mut normed = vec![0.0; wanted.len()];
        self.weights.output_norm.apply(&wanted, &mut normed);
        let mut values = vec![0.0; owners.len() * vocab];
        self.weights.output.as_ref().unwrap_or(&self.weights.embedding).apply(&normed, &mut values);
        LogitRows::new(vocab, values, owners)
    }
}
