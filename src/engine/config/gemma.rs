//! What Gemma 3 (arXiv 2503.19786) has beside Llama: local layers, and how scores are scaled.

use super::{
    keys::Keys,
    rope::{RopeConfig, RopeScaling},
};
use crate::{
    base::{CacheShape, LayerShape, Window},
    engine::{
        error::ModelError,
        gguf::metadata::{Array, Scalar, Value},
    },
};

/// Of so many layers the last is global, where a file does not say.
const PERIOD: usize = 6;
/// The local layers' base of RoPE, where a file does not say.
const LOCAL_BASE: f64 = 10_000.0;
/// Layers of the 27B model, whose scores are scaled by the embedding's channels per head.
const LAYERS_27B: usize = 62;

/// Layers, of which some see only a window.
pub(super) fn layers(
    keys: Keys<'_>,
    layers: usize,
    layer: LayerShape,
    embedding: usize,
) -> Result<CacheShape, ModelError> {
    let default = match layers {
        LAYERS_27B => ((embedding / layer.query_heads()) as f64).sqrt().recip(),
        _ => (layer.k_dim() as f64).sqrt().recip(),
    };
    let scale = keys.above_zero("attention.scale")?.unwrap_or(default);
    let global = layer.scaled(scale as f32)?;
    let window = keys.count("attention.sliding_window")?.unwrap_or(0);
    if window == 0 {
        return Ok(CacheShape::from_layers(vec![global; layers])?);
    }
    keys.only("attention.key_length_swa", global.k_dim(), "channels of all layers")?;
    keys.only("attention.value_length_swa", global.v_dim(), "channels of all layers")?;
    let local = global.clone().windowed(Window::of(window))?;
    let pattern = pattern(keys, layers)?;
    let shapes =
        pattern.into_iter().map(|windowed| if windowed { &local } else { &global }.clone());
    Ok(CacheShape::from_layers(shapes)?)
}

/// Which layers are windowed: stated one by one, or all but every so many-th.
fn pattern(keys: Keys<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    let name = "attention.sliding_window_pattern";
    let key = keys.key(name);
    if let Some(Value::Array(array)) = keys.file.metadata().value(&key) {
        let expected = "a flag for each layer, or a count";
        let found = || format!("a list of {}, with {layers} layers", array.len());
        let Array::Scalars(flags) = array else { return Err(keys.bad(name, expected, found())) };
        let flag = |scalar| match scalar {
            Some(Scalar::Flag(windowed)) => Some(windowed),
            _ => None,
        };
        let flags: Option<Vec<bool>> = flags.iter().map(flag).collect();
        let flags = flags.filter(|flags| flags.len() == layers);
        return flags.ok_or_else(|| keys.bad(name, expected, found()));
    }
    let period = match keys.count(name)? {
        Some(_) => keys.positive(name)?,
        None => PERIOD,
    };
    Ok((0..layers).map(|layer| layer % period != period - 1).collect())
}

/// How windowed layers turn: with a base of their own, and positions as they are.
pub(super) fn local_rope(keys: Keys<'_>, global: RopeConfig) -> Result<RopeConfig, ModelError> {
    keys.only("rope.dimension_count_swa", global.dims, "channels of all layers")?;
    let base = keys.above_zero("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    Ok(RopeConfig { base, scaling: RopeScaling::None, ..global })
}
