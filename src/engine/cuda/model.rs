//! The forward pass of [`Model`](crate::engine::Model) on a device.

use std::{ops::Range, sync::Arc};

use super::{
    cast::Cast,
    embed::Embed,
    gate::Gates,
    greedy::{Choice, Greedy, WORDS, token},
    kv::DeviceKv,
    layer::{Activations, Arithmetic, Pass},
    norm::{Gain, Norms},
    recipe::{Recipe, heads},
    rope::{Rotary, Turns},
    scratch::Scratch,
    upload::upload,
    weights::{Tensor, Weights},
};
use crate::{
    base::CacheShape,
    cuda::{
        CudaError, Element, Staging,
        cublas::{Gemm, multiply},
        driver::Stream,
    },
    device::{DeviceError, Kernels},
    engine::{
        config::ModelConfig,
        error::EngineError,
        gguf::GgufFile,
        kv::{LogitRow, LogitRows, Span, wanted},
        load::ROPE_DIVISORS,
        model::Model,
        rope::Rope,
    },
};

/// Slots of the ring between host and device, and bytes of each.
const STAGING: [usize; 2] = [4, 4 << 20];
/// Bytes of logits that are on the device at a time.
const LOGIT_BYTES: usize = 64 << 20;

/// What a model on a device is made with.
pub struct DeviceSetup<'a> {
    /// The compiler, with the device's context.
    pub kernels: &'a Kernels,
    /// Products of matrices, in the same context.
    pub gemm: Box<dyn Gemm + Send>,
    /// Where everything is queued, of the same context.
    pub stream: Arc<Stream>,
    /// How weights, and what they are multiplied with, are stored: f16 or bf16. f16 has eight times the
    /// precision; activations beyond 65,504 become infinite in it. Keys and values that come of them are
    /// saturated and counted ([`KvCache::saturated`](crate::cache::KvCache::saturated)), NaN as zero, so that
    /// logits need not say so.
    pub weights: Element,
    /// How queries, keys, values and the attention's output are stored: f32, or as the weights.
    pub attention: Element,
    /// Is told how many tensors of the file are on the device.
    pub progress: &'a (dyn Fn(usize) + Sync),
}

/// A model whose weights are on a device: no K and V of its own.
///
/// All work is queued in one stream. A method that gives logits or tokens has waited for them; where none are
/// asked for, work may still run when it returns.
pub struct DeviceModel {
    config: ModelConfig,
    recipe: Recipe,
    weights: Weights<Tensor>,
    turns: Vec<Turns>,
    arithmetic: Arithmetic,
    gemm: Box<dyn Gemm + Send>,
    stream: Arc<Stream>,
    staging: Staging,
    buffers: Buffers,
    element: Element,
    attention: Element,
}

/// Activations. All are \[tokens\]\[…\], but for the last four.
#[derive(Default)]
struct Buffers {
    positions: Scratch,
    residual: Scratch,
    /// What the next product reads.
    input: Scratch,
    product: Scratch,
    q: Scratch,
    k: Scratch,
    v: Scratch,
    attended: Scratch,
    growth: Scratch,
    ids: Scratch,
    picks: Scratch,
    logits: Scratch,
    best: Scratch,
}

impl DeviceModel {
    /// Brings the weights of an opened file to the device: two bytes for each, and four for those of norms.
    ///
    /// # Errors
    /// What [`Model::load`](crate::engine::Model::load) refuses, before the device is touched;
    /// [`EngineError::DeviceMemory`] with the numbers; [`EngineError::Weight`]; the device's own.
    pub fn load(file: &GgufFile, setup: DeviceSetup<'_>) -> Result<Self, EngineError> {
        let config = ModelConfig::read(file)?;
        let pairs = config.rope.dims / 2;
        let divisors = file.tensor_shape(ROPE_DIVISORS);
        let divisors = divisors.map(|_| file.tensor(ROPE_DIVISORS, &[pairs])).transpose()?;
        let (head_dim, context) = (config.layer().k_dim(), config.context);
        let rope = |rope| Rope::new(rope, head_dim, context, divisors.as_deref());
        let local = config.local_rope.as_ref().map(rope).transpose()?;
        let recipe = Recipe::of(&config, &rope(&config.rope)?, local.as_ref());
        Self::with_recipe(file, config, recipe, setup)
    }

    /// As [`load`](Self::load), for a configuration and a recipe that the caller has read.
    ///
    /// # Errors
    /// As there.
    pub fn with_recipe(
        file: &GgufFile,
        config: ModelConfig,
        recipe: Recipe,
        setup: DeviceSetup<'_>,
    ) -> Result<Self, EngineError> {
        let DeviceSetup { kernels, gemm, stream, weights: element, attention, progress } = setup;
        let fine = element != Element::F32;
        EngineError::unless(fine, "the type of weights", element.name(), "f16 or bf16")?;
        let fine = [Element::F32, element].contains(&attention);
        let expected = "f32, or that of the weights";
        EngineError::unless(fine, "the type of queries", attention.name(), expected)?;
        if !stream.context().same(kernels.context()) {
            return Err(CudaError::OtherContext.into());
        }
        let layers = config.cache.layers();
        let fine = recipe.layer_ropes.len() == layers
            && recipe.layer_ropes.iter().all(|&rope| rope < recipe.ropes.len());
        let found = format!("{:?}", recipe.layer_ropes);
        EngineError::unless(fine, "the list of layers' rotary embeddings", found, "one for each")?;
        let plan = Weights::plan(file, &config, &recipe, element)?;
        let [slots, bytes] = STAGING;
        let mut staging = Staging::new(stream.context(), slots, bytes)?;
        let weights = upload(plan, file, &mut staging, &stream, progress)?;
        let turns = recipe.ropes.iter().map(|turns| Turns::new(turns, &mut staging, &stream));
        Ok(Self {
            turns: turns.collect::<Result<_, _>>()?,
            arithmetic: Arithmetic {
                embed: Embed::new(kernels, element, &stream)?,
                norms: Norms::new(kernels, element, &stream)?,
                rotary: Rotary::new(kernels, recipe.pairing, attention, &stream)?,
                gates: Gates::new(kernels, recipe.activation, element, &stream)?,
                cast: (attention != element)
                    .then(|| Cast::new(kernels, element, &stream))
                    .transpose()?,
                greedy: Greedy::new(kernels, &stream)?,
            },
            config,
            recipe,
            weights,
            gemm,
            stream,
            staging,
            buffers: Buffers::default(),
            element,
            attention,
        })
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The shape of the KV cache that this model needs.
    pub fn shape(&self) -> &CacheShape {
        &self.config.cache
    }

    /// How queries, keys, values and the attention's output are stored.
    pub fn attention(&self) -> Element {
        self.attention
    }

    /// Where the model queues its work.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Bytes of device memory that the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.weights.iter().map(|tensor| tensor.buffer.bytes()).sum()
    }

    /// Runs one step as [`Model::forward`](crate::engine::Model::forward) does, with K and V kept by `kv`.
    ///
    /// # Errors
    /// As there, and the device's.
    pub fn forward(
        &mut self,
        spans: &[Span<'_>],
        kv: &mut dyn DeviceKv,
    ) -> Result<LogitRows, EngineError> {
        let vocab = self.config.vocab;
        let owners = self.layers(spans, kv)?;
        let mut values = vec![0f32; owners.len() * vocab];
        self.logits(owners.len(), |model, rows| {
            let values = &mut values[rows.start * vocab..rows.end * vocab];
            model.buffers.logits.download(values, &mut model.staging, &model.stream)
        })?;
        Ok(LogitRows::new(vocab, values, owners))
    }

    /// Runs one step and takes the most likely token of every row of logits on the device: eight bytes of a
    /// row come to the host.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); a row of which no token can be taken has an error of its own, as
    /// [`argmax`](crate::engine::argmax) gives it.
    pub fn greedy(
        &mut self,
        spans: &[Span<'_>],
        kv: &mut dyn DeviceKv,
    ) -> Result<Vec<Choice>, EngineError> {
        let vocab = self.config.vocab;
        let owners = self.layers(spans, kv)?;
        let mut words = vec![[0u32; WORDS]; owners.len()];
        self.logits(owners.len(), |model, rows| {
            let Self { buffers, staging, stream, arithmetic, .. } = model;
            let context = stream.context();
            let shape = [rows.len(), vocab];
            let logits = buffers.logits.rows(context, Element::F32, shape)?;
            let best = buffers.best.bytes(context, size_of_val(&words[rows.clone()]))?;
            arithmetic.greedy.launch(logits.as_rows(), best, stream)?;
            Ok::<_, DeviceError>(buffers.best.download(&mut words[rows], staging, stream)?)
        })?;
        let choice = |(owner, words)| Choice { owner, token: token(words, vocab) };
        Ok(owners.into_iter().zip(words).map(choice).collect())
    }

    /// Runs the layers, and norms the rows of those tokens that get logits.
    fn layers(
        &mut self,
        spans: &[Span<'_>],
        kv: &mut dyn DeviceKv,
    ) -> Result<Vec<LogitRow>, EngineError> {
        Model::check(&self.config, spans)?;
        let Self { config, recipe, weights, arithmetic, stream, staging, buffers, .. } = self;
        let (context, element) = (stream.context(), self.element);
        let (picks, owners) = wanted(spans);
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let positions = spans.iter().flat_map(|span| (span.position..).take(span.tokens.len()));
        // Positions of the context, whose length is a count of 32 bits.
        let positions: Vec<u32> = positions.map(|position| position as u32).collect();
        let ids = buffers.ids.words(&tokens, staging, stream)?;
        let positions = buffers.positions.words(&positions, staging, stream)?;
        let tokens = tokens.len();
        let &mut ModelConfig { embedding, feed_forward, rms_epsilon: epsilon, .. } = config;
        let heads = heads(config);
        // At their widest first: memory that grows loses what it holds.
        let widest = heads.fused().max(2 * feed_forward);
        buffers.product.rows(context, Element::F32, [tokens, widest])?;
        let widest = embedding.max(heads.queries()).max(feed_forward);
        buffers.input.rows(context, element, [tokens, widest])?;
        let mut residual = buffers.residual.rows(context, Element::F32, [tokens, embedding])?;
        let (table, scale) = (weights.embedding.rows()?, recipe.embedding_scale);
        arithmetic.embed.launch(ids, table, scale, residual.reborrow(), stream)?;
        let pass = Pass {
            config,
            heads,
            recipe,
            arithmetic,
            gemm: &*self.gemm,
            stream,
            element,
            attention: self.attention,
            tokens,
            positions,
        };
        if let Some(first) = weights.layers.first() {
            let input = buffers.input.rows(context, element, [tokens, embedding])?;
            let gain = Gain { weight: first.attention_norm.rows()?, epsilon };
            arithmetic.norms.norm(residual.as_rows(), gain, input, stream)?;
        }
        let mut activations = Activations {
            residual: residual.reborrow(),
            input: &mut buffers.input,
            product: &mut buffers.product,
            q: &mut buffers.q,
            k: &mut buffers.k,
            v: &mut buffers.v,
            attended: &mut buffers.attended,
            growth: &mut buffers.growth,
        };
        for (index, layer) in weights.layers.iter().enumerate() {
            let turns = &self.turns[recipe.layer_ropes[index]];
            pass.attend(index, layer, turns, &mut activations, kv)?;
            let next = weights.layers.get(index + 1).map(|next| &next.attention_norm);
            pass.feed_forward(layer, next, &mut activations)?;
        }
        let picks: Vec<u32> = picks.into_iter().map(|row| row as u32).collect();
        let picks = buffers.picks.words(&picks, staging, stream)?;
        let input = buffers.input.rows(context, element, [picks.count(), embedding])?;
        let gain = Gain { weight: weights.output_norm.rows()?, epsilon };
        arithmetic.norms.norm_picked(residual.as_rows(), picks, gain, input, stream)?;
        Ok(owners)
    }

    /// Makes the logits of the first `rows` rows of what [`layers`](Self::layers) left, as many at a time as
    /// memory is meant for, and has `each` take them.
    fn logits<E>(
        &mut self,
        rows: usize,
        mut each: impl FnMut(&mut Self, Range<usize>) -> Result<(), E>,
    ) -> Result<(), EngineError>
    where
        EngineError: From<E>,
    {
        let ModelConfig { vocab, embedding, .. } = self.config;
        let most = (LOGIT_BYTES / (vocab * size_of::<f32>())).max(1);
        for start in (0..rows).step_by(most) {
            let part = start..rows.min(start + most);
            let (buffers, stream) = (&mut self.buffers, &self.stream);
            let context = stream.context();
            let input = buffers.input.rows(context, self.element, [rows, embedding])?;
            let x = input.as_rows().rows_of(part.clone())?;
            let shape = [part.len(), vocab];
            let y = buffers.logits.rows(context, Element::F32, shape)?;
            let head = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
            multiply(&*self.gemm, head.rows()?, x, y, (1.0, false), stream)?;
            each(self, part)?;
        }
        Ok(())
    }
}
