//! From the tensors of a GGUF file to device memory.

use std::collections::HashSet;

use super::recipe::{Recipe, heads};
use crate::{
    cuda::{CudaError, DeviceRows, Element, driver::DeviceBuffer},
    engine::{
        config::ModelConfig,
        error::{EngineError, ModelError},
        gguf::GgufFile,
        load::{EMBEDDING, OUTPUT, OUTPUT_NORM, ROPE_DIVISORS, layer_tensor},
    },
};

/// The weights of one layer; before they are loaded, what they are made of. Products that read the same input
/// are one matrix.
#[derive(Debug)]
pub(super) struct Layer<T> {
    pub attention_norm: T,
    /// Rows: all query heads, then all K heads, then all V heads.
    pub qkv: T,
    /// Of q and of k.
    pub head_norms: Option<[T; 2]>,
    pub attention_output: T,
    pub post_attention_norm: Option<T>,
    pub feed_forward_norm: T,
    /// Rows: the gate, then up.
    pub gate_up: T,
    pub down: T,
    pub post_feed_forward_norm: Option<T>,
}

/// All weights of a model, or what they are made of.
#[derive(Debug)]
pub(super) struct Weights<T> {
    pub embedding: T,
    pub layers: Vec<Layer<T>>,
    pub output_norm: T,
    /// `None` when the head is tied to the embedding.
    pub output: Option<T>,
}

/// A matrix, or a vector as its one row, in device memory.
#[derive(Debug)]
pub(super) struct Tensor {
    pub buffer: DeviceBuffer,
    pub element: Element,
    pub shape: [usize; 2],
}

impl Tensor {
    /// All of it.
    pub fn rows(&self) -> Result<DeviceRows<'_>, CudaError> {
        DeviceRows::of(&self.buffer, self.element, self.shape)
    }
}

/// Tensors of a file that make one on the device, one below the other.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub parts: Vec<Part>,
    pub columns: usize,
    pub element: Element,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub name: String,
    /// Rows in the file; none for a vector.
    pub in_file: Option<usize>,
    /// The first of them, which the device gets.
    pub rows: usize,
}

impl Planned {
    /// Rows on the device.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        let numbers = self.rows().saturating_mul(self.columns);
        numbers.saturating_mul(self.element.bytes())
    }
}

impl<T> Layer<T> {
    fn try_map<U>(
        self,
        f: &mut impl FnMut(T) -> Result<U, EngineError>,
    ) -> Result<Layer<U>, EngineError> {
        Ok(Layer {
            attention_norm: f(self.attention_norm)?,
            qkv: f(self.qkv)?,
            head_norms: self
                .head_norms
                .map(|[q, k]| Ok::<_, EngineError>([f(q)?, f(k)?]))
                .transpose()?,
            attention_output: f(self.attention_output)?,
            post_attention_norm: self.post_attention_norm.map(&mut *f).transpose()?,
            feed_forward_norm: f(self.feed_forward_norm)?,
            gate_up: f(self.gate_up)?,
            down: f(self.down)?,
            post_feed_forward_norm: self.post_feed_forward_norm.map(&mut *f).transpose()?,
        })
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        let whole = [
            &self.attention_norm,
            &self.qkv,
            &self.attention_output,
            &self.feed_forward_norm,
            &self.gate_up,
            &self.down,
        ];
        let optional = [&self.post_attention_norm, &self.post_feed_forward_norm];
        whole
            .into_iter()
            .chain(optional.into_iter().flatten())
            .chain(self.head_norms.iter().flatten())
    }
}

impl<T> Weights<T> {
    /// Every tensor through `f`, in the order of the forward pass.
    pub fn try_map<U>(
        self,
        f: &mut impl FnMut(T) -> Result<U, EngineError>,
    ) -> Result<Weights<U>, EngineError> {
        let embedding = f(self.embedding)?;
        let layers = self.layers.into_iter().map(|layer| layer.try_map(f));
        Ok(Weights {
            embedding,
            layers: layers.collect::<Result<_, _>>()?,
            output_norm: f(self.output_norm)?,
            output: self.output.map(f).transpose()?,
        })
    }

    /// All tensors.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let ends = [&self.embedding, &self.output_norm].into_iter().chain(&self.output);
        ends.chain(self.layers.iter().flat_map(Layer::iter))
    }
}

impl Weights<Planned> {
    /// What a model of that configuration is made of. Every tensor is in the file, with the dimensions that
    /// the configuration asks for, and the file has no other.
    pub fn plan(
        file: &GgufFile,
        config: &ModelConfig,
        recipe: &Recipe,
        element: Element,
    ) -> Result<Self, ModelError> {
        let plan = Plan { file, element };
        let width = config.embedding;
        let table = |name: &str| {
            let rows = config.embedding_rows;
            // Rows without a token would be drawn like others.
            let rows = Part { name: name.to_owned(), in_file: Some(rows), rows: config.vocab };
            plan.matrix(vec![rows], width)
        };
        let planned = Self {
            embedding: table(EMBEDDING)?,
            layers: (0..config.cache.layers())
                .map(|layer| plan.layer(config, recipe, layer))
                .collect::<Result<_, _>>()?,
            output_norm: plan.vector(OUTPUT_NORM.to_owned(), width)?,
            output: file.tensor_shape(OUTPUT).map(|_| table(OUTPUT)).transpose()?,
        };
        let mut known: HashSet<&str> = planned
            .iter()
            .flat_map(|tensor| &tensor.parts)
            .map(|part| part.name.as_str())
            .collect();
        known.insert(ROPE_DIVISORS);
        match file.tensor_names().filter(|&name| !known.contains(name)).min() {
            Some(unexpected) => Err(ModelError::UnexpectedTensor(unexpected.to_owned())),
            None => Ok(planned),
        }
    }
}

struct Plan<'a> {
    file: &'a GgufFile,
    element: Element,
}

impl Plan<'_> {
    fn layer(
        &self,
        config: &ModelConfig,
        recipe: &Recipe,
        layer: usize,
    ) -> Result<Layer<Planned>, ModelError> {
        let &ModelConfig { embedding, feed_forward, .. } = config;
        let heads = heads(config);
        let [queries, dim, row] = [heads.queries(), heads.dim, heads.kv * heads.dim];
        let vector = |name: &str, channels| self.vector(layer_tensor(layer, name), channels);
        let post = |name: &str| recipe.post_norms.then(|| vector(name, embedding)).transpose();
        let matrix = |parts: &[(&str, usize)], columns| {
            let part = |&(name, rows): &(&str, usize)| Part {
                name: layer_tensor(layer, name),
                in_file: Some(rows),
                rows,
            };
            self.matrix(parts.iter().map(part).collect(), columns)
        };
        let qkv = [("attn_q", queries), ("attn_k", row), ("attn_v", row)];
        Ok(Layer {
            attention_norm: vector("attn_norm", embedding)?,
            qkv: matrix(&qkv, embedding)?,
            head_norms: match recipe.head_norms {
                true => Some([vector("attn_q_norm", dim)?, vector("attn_k_norm", dim)?]),
                false => None,
            },
            attention_output: matrix(&[("attn_output", embedding)], queries)?,
            post_attention_norm: post("post_attention_norm")?,
            feed_forward_norm: vector("ffn_norm", embedding)?,
            gate_up: matrix(&[("ffn_gate", feed_forward), ("ffn_up", feed_forward)], embedding)?,
            down: matrix(&[("ffn_down", embedding)], feed_forward)?,
            post_feed_forward_norm: post("post_ffw_norm")?,
        })
    }

    fn matrix(&self, parts: Vec<Part>, columns: usize) -> Result<Planned, ModelError> {
        for part in &parts {
            let rows = part.in_file.unwrap_or_default();
            self.check(&part.name, &[rows, columns])?;
        }
        Ok(Planned { parts, columns, element: self.element })
    }

    fn vector(&self, name: String, columns: usize) -> Result<Planned, ModelError> {
        self.check(&name, &[columns])?;
        let parts = vec![Part { name, in_file: None, rows: 1 }];
        Ok(Planned { parts, columns, element: Element::F32 })
    }

    fn check(&self, name: &str, shape: &[usize]) -> Result<(), ModelError> {
        match self.file.tensor_shape(name) {
            None => Err(ModelError::MissingTensor(name.to_owned())),
            Some(found) if found != shape => Err(ModelError::TensorShape {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: found.to_vec(),
            }),
            Some(_) => Ok(()),
        }
    }
}
