//! The shape of a model's KV cache.

use std::{ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    layer::{Channels, LayerShape},
    shape_error::{self, ShapeError},
};

/// The layers of a model's KV cache.
///
/// A sequence has a head table for each KV head of each layer; these *heads* are counted layer by layer.
///
/// ```
/// use headwise::base::{CacheShape, LayerShape, Window};
///
/// // 32 layers with 8 KV heads of 128 channels, each read by four query heads.
/// let alike = CacheShape::new(32, 8, 32, 128)?;
/// assert_eq!(alike.heads(), 256);
/// // Gemma 3 270M: of six layers, five look back 512 tokens.
/// let global = LayerShape::new(1, 4, 256)?;
/// let local = global.clone().windowed(Window::of(512))?;
/// let gemma = (0..18).map(|layer| if layer % 6 == 5 { &global } else { &local }.clone());
/// assert_eq!(CacheShape::from_layers(gemma)?.heads(), 18);
/// # Ok::<(), headwise::base::ShapeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Runs", try_from = "Runs")]
pub struct CacheShape {
    layers: Arc<[LayerShape]>,
    /// The first head of each layer, and how many heads there are.
    starts: Arc<[usize]>,
}

/// A shape as files have it: alike layers together.
#[derive(Serialize, Deserialize)]
struct Runs(Vec<Run>);

#[derive(Serialize, Deserialize)]
struct Run {
    layers: usize,
    #[serde(flatten)]
    layer: LayerShape,
}

impl From<CacheShape> for Runs {
    fn from(shape: CacheShape) -> Self {
        let runs = shape.layers.chunk_by(|a, b| a == b);
        Self(runs.map(|run| Run { layers: run.len(), layer: run[0].clone() }).collect())
    }
}

impl TryFrom<Runs> for CacheShape {
    type Error = ShapeError;

    fn try_from(Runs(runs): Runs) -> Result<Self, ShapeError> {
        let layers = runs.iter().fold(0usize, |sum, run| sum.saturating_add(run.layers));
        if layers > Self::MAX_HEADS {
            return Err(ShapeError::TooManyHeads(layers));
        }
        Self::from_layers(runs.into_iter().flat_map(|run| vec![run.layer; run.layers]))
    }
}

impl CacheShape {
    /// The most (layer, head) pairs.
    pub const MAX_HEADS: usize = shape_error::MAX_HEADS;

    /// A shape of alike layers: `layers` × `kv_heads` tables, `query_heads` per layer, K and V of
    /// `head_dim` channels, no window.
    pub fn new(
        layers: usize,
        kv_heads: usize,
        query_heads: usize,
        channels: impl Into<Channels>,
    ) -> Result<Self, ShapeError> {
        if layers == 0 {
            return Err(ShapeError::Zero { layers, kv_heads, query_heads });
        }
        let layer = LayerShape::new(kv_heads, query_heads, channels)?;
        match layers.checked_mul(kv_heads) {
            Some(heads) if heads <= Self::MAX_HEADS => Self::from_layers(vec![layer; layers]),
            heads => Err(ShapeError::TooManyHeads(heads.unwrap_or(usize::MAX))),
        }
    }

    /// A shape of these layers, at least one.
    pub fn from_layers(layers: impl IntoIterator<Item = LayerShape>) -> Result<Self, ShapeError> {
        let layers: Arc<[LayerShape]> = layers.into_iter().collect();
        if layers.is_empty() {
            return Err(ShapeError::Zero { layers: 0, kv_heads: 0, query_heads: 0 });
        }
        let mut end = 0usize;
        let ends = layers.iter().map(|layer| {
            end = end.saturating_add(layer.kv_heads());
            end
        });
        let starts: Arc<[usize]> = [0].into_iter().chain(ends).collect();
        if end > Self::MAX_HEADS {
            return Err(ShapeError::TooManyHeads(end));
        }
        Ok(Self { layers, starts })
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// A layer, one of [`layers`](Self::layers).
    pub fn layer(&self, layer: usize) -> &LayerShape {
        &self.layers[layer]
    }

    /// All layers in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &LayerShape> {
        self.layers.iter()
    }

    /// KV heads over all layers: the head tables of one sequence.
    pub fn heads(&self) -> usize {
        self.starts[self.layers.len()]
    }

    /// The heads of a layer.
    pub fn layer_heads(&self, layer: usize) -> Range<usize> {
        self.starts[layer]..self.starts[layer + 1]
    }

    /// Where (layer, KV head) stands among the [`heads`](Self::heads) of a sequence.
    pub fn head_index(&self, layer: usize, kv_head: usize) -> usize {
        debug_assert!(kv_head < self.layers[layer].kv_heads());
        self.starts[layer] + kv_head
    }

    /// The (layer, KV head) that a head is.
    pub fn locate(&self, head: usize) -> (usize, usize) {
        debug_assert!(head < self.heads());
        let layer = self.starts.partition_point(|&start| start <= head) - 1;
        (layer, head - self.starts[layer])
    }

    /// The layer of each head.
    pub fn layer_of_heads(&self) -> impl Iterator<Item = &LayerShape> {
        self.iter().flat_map(|layer| std::iter::repeat_n(layer, layer.kv_heads()))
    }

    /// The layer that all layers are like, if they are.
    pub fn alike(&self) -> Option<&LayerShape> {
        let first = &self.layers[0];
        self.layers.iter().all(|layer| layer == first).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Window;

    #[test]
    fn groups_and_indices() {
        let shape = CacheShape::new(30, 3, 9, 64).unwrap();
        assert_eq!(shape.alike().unwrap().group(), 3);
        assert_eq!(shape.heads(), 90);
        assert_eq!(shape.head_index(29, 2), 89);
        assert_eq!(shape.layer(7).k_row(), 192);
    }

    #[test]
    fn heads_are_counted_layer_by_layer() {
        let layers = [(1, 64), (4, 32), (2, 128)]
            .map(|(kv_heads, channels)| LayerShape::new(kv_heads, 2 * kv_heads, channels).unwrap());
        let shape = CacheShape::from_layers(layers).unwrap();
        assert_eq!((shape.layers(), shape.heads(), shape.alike()), (3, 7, None));
        let channels: Vec<usize> = shape.layer_of_heads().map(LayerShape::k_dim).collect();
        for (head, channels) in channels.into_iter().enumerate() {
            let (layer, kv_head) = shape.locate(head);
            assert_eq!(shape.head_index(layer, kv_head), head);
            assert!(shape.layer_heads(layer).contains(&head));
            assert_eq!(channels, shape.layer(layer).k_dim());
        }
    }

    #[test]
    fn refuses_what_no_cache_can_have() {
        assert!(matches!(CacheShape::new(0, 1, 1, 64), Err(ShapeError::Zero { .. })));
        assert!(matches!(CacheShape::from_layers([]), Err(ShapeError::Zero { .. })));
        assert!(matches!(CacheShape::new(1, 3, 8, 64), Err(ShapeError::Ragged { .. })));
        assert!(matches!(CacheShape::new(1, 1, 1, 72), Err(ShapeError::Channels(72))));
        assert!(matches!(CacheShape::new(1 << 12, 32, 32, 64), Err(ShapeError::TooManyHeads(_))));
        let wide = LayerShape::new(1 << 15, 1 << 15, 16).unwrap();
        let refused = CacheShape::from_layers(vec![wide; 3]);
        assert_eq!(refused, Err(ShapeError::TooManyHeads(3 << 15)));
    }

    #[test]
    fn files_bring_no_other_shapes() {
        let alike = CacheShape::new(30, 3, 9, 64).unwrap();
        let local = LayerShape::new(1, 4, 256).unwrap().windowed(Window::of(512)).unwrap();
        let global = LayerShape::new(1, 4, 256).unwrap();
        let mixed = CacheShape::from_layers([local.clone(), local, global]).unwrap();
        for shape in [&alike, &mixed] {
            let text = serde_json::to_string(shape).unwrap();
            assert_eq!(&serde_json::from_str::<CacheShape>(&text).unwrap(), shape);
        }
        let text = serde_json::to_string(&alike).unwrap();
        for (from, to) in [
            ("\"layers\":30", "\"layers\":0"),
            ("\"layers\":30", "\"layers\":18446744073709551615"),
            ("\"query_heads\":9", "\"query_heads\":8"),
            ("64", "72"),
        ] {
            assert!(text.contains(from), "{text}");
            let refused = serde_json::from_str::<CacheShape>(&text.replace(from, to));
            assert!(refused.is_err(), "{from} became {to}");
        }
    }
}
