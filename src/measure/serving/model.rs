//! A Llama-shaped decode step: products, glue and, through [`Cache`](super::Cache), attention.

use super::{
    cache::Cache,
    error::ServingError,
    glue::Glue,
    phases::{Phase, Phases},
    shape::{HALF, ModelShape},
};
use crate::{
    cuda::{
        Staging,
        cublas::{Gemm, Product},
        driver::{Context, DeviceBuffer, Stream},
    },
    device::Kernels,
};

/// Random weights are copied from a block of this many values: no multiple of a row, or rows of
/// different matrices would be the same.
const BLOCK: usize = (4 << 20) + 1032;
/// The spread of weights, as models are initialised.
const SPREAD: f32 = 0.035;
/// The base of the rotary embedding's angles.
const ROPE_BASE: f64 = 500_000.0;

/// Random weights on the device. Layers may share theirs, to save memory.
#[derive(Debug)]
pub struct Weights {
    layers: Vec<DeviceBuffer>,
    vocabulary: DeviceBuffer,
    norm: DeviceBuffer,
}

impl Weights {
    /// Allocates and fills the weights of `distinct` layers: a random block is copied over each buffer
    /// on the device.
    pub fn new(
        shape: &ModelShape,
        distinct: usize,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<Self, ServingError> {
        let context = stream.context();
        let mut random = super::prompt::Random::new(1);
        let block: Vec<half::f16> = (0..BLOCK)
            .map(|_| half::f16::from_f32(SPREAD * (2.0 * random.uniform() as f32 - 1.0)))
            .collect();
        let mut filled = |values: usize| {
            let mut buffer = DeviceBuffer::new(context, HALF * values)?;
            fill(&mut buffer, bytemuck::cast_slice(&block), staging, stream)?;
            Ok::<_, ServingError>(buffer)
        };
        let layer = shape.matrices().iter().sum();
        let layers = (0..distinct).map(|_| filled(layer)).collect::<Result<_, _>>()?;
        let vocabulary = filled(shape.vocab * shape.hidden)?;
        let mut norm = DeviceBuffer::new(context, HALF * shape.hidden)?;
        let ones = vec![half::f16::ONE; shape.hidden];
        staging.upload(stream, &mut norm, [(0, bytemuck::cast_slice(&ones))])?;
        Ok(Self { layers, vocabulary, norm })
    }
}

/// Copies `block` over a buffer again and again.
pub(super) fn fill(
    buffer: &mut DeviceBuffer,
    block: &[u8],
    staging: &mut Staging,
    stream: &Stream,
) -> Result<(), ServingError> {
    let bytes = buffer.bytes();
    let mut done = block.len().min(bytes);
    staging.upload(stream, buffer, [(0, &block[..done])])?;
    while done < bytes {
        let more = done.min(bytes - done);
        buffer.copy_within(0, done, more, stream)?;
        done += more;
    }
    Ok(())
}

/// Activations of a batch, and the step over them.
#[derive(Debug)]
pub struct Model<'a, G> {
    shape: ModelShape,
    weights: &'a Weights,
    gemm: &'a G,
    glue: Glue,
    turns: DeviceBuffer,
    x: DeviceBuffer,
    h: DeviceBuffer,
    qkv: DeviceBuffer,
    attention: DeviceBuffer,
    y: DeviceBuffer,
    gate_up: DeviceBuffer,
    act: DeviceBuffer,
    logits: DeviceBuffer,
    ids: DeviceBuffer,
}

impl<'a, G: Gemm> Model<'a, G> {
    /// Allocates for `most_rows` sequences of up to `positions` tokens.
    pub fn new(
        shape: ModelShape,
        weights: &'a Weights,
        gemm: &'a G,
        kernels: &Kernels,
        [most_rows, positions]: [usize; 2],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<Self, ServingError> {
        let context: &Context = stream.context();
        let rows = |values: usize| DeviceBuffer::new(context, HALF * most_rows * values);
        let mut turns =
            DeviceBuffer::new(context, positions * shape.head_dim / 2 * size_of::<[f32; 2]>())?;
        let angles = rope_turns(shape.head_dim, positions);
        staging.upload(stream, &mut turns, [(0, bytemuck::cast_slice(&angles))])?;
        let mut ids = DeviceBuffer::new(context, most_rows * size_of::<u32>())?;
        let first: Vec<u32> = (0..most_rows).map(|row| (row * 97 % shape.vocab) as u32).collect();
        staging.upload(stream, &mut ids, [(0, bytemuck::cast_slice(&first))])?;
        Ok(Self {
            shape,
            weights,
            gemm,
            glue: Glue::new(kernels, stream)?,
            turns,
            x: rows(shape.hidden)?,
            h: rows(shape.hidden)?,
            qkv: rows(shape.qkv())?,
            attention: rows(shape.qkv())?,
            y: rows(shape.hidden)?,
            gate_up: rows(2 * shape.mlp)?,
            act: rows(shape.mlp)?,
            logits: rows(shape.vocab)?,
            ids,
        })
    }

    /// Where the newest tokens are.
    pub fn ids(&self) -> &DeviceBuffer {
        &self.ids
    }

    /// Where the attention's outputs are: rows of [`ModelShape::qkv`] values, of which the query heads'
    /// are used.
    pub fn attention(&self) -> &DeviceBuffer {
        &self.attention
    }

    /// Queues a decode step of the cache's sequences: every one appends a token and gets its next.
    /// `scored`: the step adds to the scores at rest, if the cache keeps any.
    ///
    /// # Safety
    /// The cache has a [planned](Cache::plan) step left, its sequences are no more than the rows
    /// allocated for, and none is longer than the positions.
    pub unsafe fn step(
        &self,
        cache: &Cache,
        scored: bool,
        stream: &Stream,
        phases: &mut Phases,
    ) -> Result<(), ServingError> {
        let Self { shape, glue, weights, .. } = self;
        let rows = cache.sequences();
        let hidden = shape.hidden;
        let [x, h, qkv, attention, y, gate_up, act, logits, ids] = [
            &self.x,
            &self.h,
            &self.qkv,
            &self.attention,
            &self.y,
            &self.gate_up,
            &self.act,
            &self.logits,
            &self.ids,
        ]
        .map(DeviceBuffer::address);
        let (norm, table) = (weights.norm.address(), weights.vocabulary.address());
        let tokens = cache.tokens();
        let product = |outputs, inputs, stride| Product::f16(rows, outputs, inputs, stride);
        let width = shape.query_heads * shape.head_dim;
        phases.mark(Phase::Glue, stream)?;
        // SAFETY: all buffers have `rows` rows of the widths that the shape gives, and the cache was
        // planned for these sequences; all is queued in one stream.
        unsafe {
            glue.embed(rows, hidden, [ids, tokens, table, x, h, norm], stream)?;
            for layer in 0..shape.layers {
                let matrices = &weights.layers[layer % weights.layers.len()];
                let mut at = matrices.address();
                let [w_qkv, w_o, w_gate_up, w_down] = shape.matrices().map(|values| {
                    let here = at;
                    at += (HALF * values) as u64;
                    here
                });
                phases.mark(Phase::Products, stream)?;
                let to_qkv = product(shape.qkv(), hidden, hidden);
                self.gemm.multiply(&to_qkv, [w_qkv, h, qkv], stream)?;
                phases.mark(Phase::Glue, stream)?;
                let turned = [shape.query_heads + shape.kv_heads, shape.head_dim, shape.qkv()];
                glue.rope(rows, turned, [qkv, tokens, self.turns.address()], stream)?;
                cache.attend(layer, [qkv, attention], scored, stream, phases)?;
                phases.mark(Phase::Products, stream)?;
                let out = product(hidden, width, shape.qkv());
                self.gemm.multiply(&out, [w_o, attention, y], stream)?;
                phases.mark(Phase::Glue, stream)?;
                glue.add_norm(rows, hidden, [x, y, h, norm], stream)?;
                phases.mark(Phase::Products, stream)?;
                let widen = product(2 * shape.mlp, hidden, hidden);
                self.gemm.multiply(&widen, [w_gate_up, h, gate_up], stream)?;
                phases.mark(Phase::Glue, stream)?;
                glue.silu(rows, shape.mlp, [gate_up, act], stream)?;
                phases.mark(Phase::Products, stream)?;
                let narrow = product(hidden, shape.mlp, shape.mlp);
                self.gemm.multiply(&narrow, [w_down, act, y], stream)?;
                phases.mark(Phase::Glue, stream)?;
                glue.add_norm(rows, hidden, [x, y, h, norm], stream)?;
            }
            phases.mark(Phase::Products, stream)?;
            let head = product(shape.vocab, hidden, hidden);
            self.gemm.multiply(&head, [table, h, logits], stream)?;
            phases.mark(Phase::Glue, stream)?;
            glue.argmax(rows, shape.vocab, [logits, ids], stream)?;
        }
        phases.end(stream)
    }
}

/// (cosine, sine) of each position and pair of channels.
fn rope_turns(head_dim: usize, positions: usize) -> Vec<[f32; 2]> {
    let half = head_dim / 2;
    let frequencies: Vec<f64> =
        (0..half).map(|i| ROPE_BASE.powf(-(i as f64) / half as f64)).collect();
    let turn = |position: usize, frequency: f64| {
        let (sine, cosine) = (position as f64 * frequency).sin_cos();
        [cosine as f32, sine as f32]
    };
    (0..positions)
        .flat_map(|position| frequencies.iter().map(move |&f| turn(position, f)))
        .collect()
}
