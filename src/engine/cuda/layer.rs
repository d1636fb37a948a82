//! One layer on a device.

use super::{
    cast::Cast,
    embed::Embed,
    gate::Gates,
    greedy::Greedy,
    kv::DeviceKv,
    norm::{Gain, Growth, Norms},
    recipe::Recipe,
    rope::{HeadNorms, Heads, Projected, Rotary, Turns},
    scratch::Scratch,
    weights::{Layer, Tensor},
};
use crate::{
    cuda::{
        DeviceRows, DeviceRowsMut, DeviceWords, Element,
        cublas::{Gemm, multiply},
        driver::Stream,
    },
    engine::{config::ModelConfig, error::EngineError},
};

/// What is launched between products.
#[derive(Debug)]
pub(super) struct Arithmetic {
    pub embed: Embed,
    pub norms: Norms,
    pub rotary: Rotary,
    pub gates: Gates,
    /// Of the attention's output, where products do not read it as it is.
    pub cast: Option<Cast>,
    pub greedy: Greedy,
}

/// A step on its way through the layers.
pub(super) struct Pass<'a> {
    pub config: &'a ModelConfig,
    pub heads: Heads,
    pub recipe: &'a Recipe,
    pub arithmetic: &'a Arithmetic,
    pub gemm: &'a dyn Gemm,
    pub stream: &'a Stream,
    /// What products read.
    pub element: Element,
    /// What attention reads and writes.
    pub attention: Element,
    pub tokens: usize,
    pub positions: DeviceWords<'a>,
}

/// Activations, all \[tokens\]\[…\]. What a layer leaves for the next is the residual stream, and in `input`
/// its norm.
pub(super) struct Activations<'a> {
    pub residual: DeviceRowsMut<'a>,
    /// What the next product reads.
    pub input: &'a mut Scratch,
    pub product: &'a mut Scratch,
    pub q: &'a mut Scratch,
    pub k: &'a mut Scratch,
    pub v: &'a mut Scratch,
    pub attended: &'a mut Scratch,
    /// What the residual stream grows by, where it is normed first.
    pub growth: &'a mut Scratch,
}

impl Pass<'_> {
    /// Projects, turns, attends, and adds what attention gives.
    pub fn attend(
        &self,
        index: usize,
        layer: &Layer<Tensor>,
        turns: &Turns,
        a: &mut Activations<'_>,
        kv: &mut dyn DeviceKv,
    ) -> Result<(), EngineError> {
        let &Self { arithmetic, stream, tokens, element, attention, heads, .. } = self;
        let (context, queries, row) = (stream.context(), heads.queries(), heads.kv * heads.dim);
        let x = a.input.rows(context, element, [tokens, self.config.embedding])?;
        let mut product = a.product.rows(context, Element::F32, [tokens, heads.fused()])?;
        let fused = product.reborrow();
        multiply(self.gemm, layer.qkv.rows()?, x.as_rows(), fused, (1.0, false), stream)?;

        let mut q = a.q.rows(context, attention, [tokens, queries])?;
        let mut moved = match attention {
            Element::F32 => None,
            _ => Some([
                a.k.rows(context, attention, [tokens, row])?,
                a.v.rows(context, attention, [tokens, row])?,
            ]),
        };
        let epsilon = self.config.rms_epsilon;
        let norms = match &layer.head_norms {
            Some([q, k]) => Some(HeadNorms { q: q.rows()?, k: k.rows()?, epsilon }),
            None => None,
        };
        let rows = Projected {
            product: product.reborrow(),
            q: q.reborrow(),
            kv: moved.as_mut().map(|rows| rows.each_mut().map(DeviceRowsMut::reborrow)),
        };
        arithmetic.rotary.launch(heads, self.positions, turns, norms, rows, stream)?;

        let [k, v] = match &moved {
            Some(rows) => rows.each_ref().map(DeviceRowsMut::as_rows),
            None => {
                let product = product.as_rows();
                [
                    product.slice(queries..queries + row)?,
                    product.slice(queries + row..queries + 2 * row)?,
                ]
            }
        };
        let mut out = a.attended.rows(context, attention, [tokens, queries])?;
        kv.attend(index, q.as_rows(), k, v, out.reborrow(), stream)?;
        let (weight, post) = (&layer.attention_output, &layer.post_attention_norm);
        let next = Some(&layer.feed_forward_norm);
        match &arithmetic.cast {
            Some(cast) => {
                let mut x = a.input.rows(context, element, [tokens, queries])?;
                cast.launch(out.as_rows(), x.reborrow(), stream)?;
                self.add(weight, x.as_rows(), 1.0, post, a.residual.reborrow(), a.growth)?;
            }
            None => self.add(weight, out.as_rows(), 1.0, post, a.residual.reborrow(), a.growth)?,
        }
        self.norm(post, next, a)
    }

    /// The gated layer. `next` is the norm of the layer after it, if there is one.
    pub fn feed_forward(
        &self,
        layer: &Layer<Tensor>,
        next: Option<&Tensor>,
        a: &mut Activations<'_>,
    ) -> Result<(), EngineError> {
        let &Self { arithmetic, stream, tokens, element, .. } = self;
        let (context, channels) = (stream.context(), self.config.feed_forward);
        let x = a.input.rows(context, element, [tokens, self.config.embedding])?;
        let mut product = a.product.rows(context, Element::F32, [tokens, 2 * channels])?;
        let fused = product.reborrow();
        multiply(self.gemm, layer.gate_up.rows()?, x.as_rows(), fused, (1.0, false), stream)?;
        let mut x = a.input.rows(context, element, [tokens, channels])?;
        let scale = self.recipe.gated_scale;
        arithmetic.gates.launch(product.as_rows(), scale, x.reborrow(), stream)?;
        let post = &layer.post_feed_forward_norm;
        let residual = a.residual.reborrow();
        self.add(&layer.down, x.as_rows(), 1.0 / scale, post, residual, a.growth)?;
        self.norm(post, next, a)
    }

    /// The product that the residual stream grows by: into it, or, where a norm comes first, beside it.
    fn add(
        &self,
        weight: &Tensor,
        x: DeviceRows<'_>,
        scale: f32,
        post: &Option<Tensor>,
        residual: DeviceRowsMut<'_>,
        growth: &mut Scratch,
    ) -> Result<(), EngineError> {
        let shape = [self.tokens, self.config.embedding];
        let (gemm, stream, weight) = (self.gemm, self.stream, weight.rows()?);
        match post {
            Some(_) => {
                let y = growth.rows(stream.context(), Element::F32, shape)?;
                multiply(gemm, weight, x, y, (scale, false), stream)?;
            }
            None => multiply(gemm, weight, x, residual, (scale, true), stream)?,
        }
        Ok(())
    }

    /// Adds what waits for a norm, and norms the residual stream for the next product.
    fn norm(
        &self,
        post: &Option<Tensor>,
        next: Option<&Tensor>,
        a: &mut Activations<'_>,
    ) -> Result<(), EngineError> {
        let &Self { stream, arithmetic: Arithmetic { norms, .. }, .. } = self;
        let (context, epsilon) = (stream.context(), self.config.rms_epsilon);
        let shape = [self.tokens, self.config.embedding];
        let out = a.input.rows(context, self.element, shape)?;
        let mut x = a.residual.reborrow();
        let y = a.growth.rows(context, Element::F32, shape)?;
        let post = post.as_ref().map(Tensor::rows).transpose()?;
        let growth = post.map(|post| Growth { rows: y.as_rows(), norm: Some(post) });
        let next = next.map(Tensor::rows).transpose()?;
        match (growth, next.map(|weight| Gain { weight, epsilon })) {
            (Some(growth), Some(gain)) => {
                norms.add_and_norm(growth, x.reborrow(), gain, out, stream)?;
            }
            (Some(growth), None) => norms.add(growth, x.reborrow(), epsilon, stream)?,
            (None, Some(gain)) => norms.norm(x.as_rows(), gain, out, stream)?,
            (None, None) => {}
        }
        Ok(())
    }
}
