//! How a model turns its queries and keys.

use super::keys::Keys;
use crate::engine::error::ModelError;

/// Rotary position embedding of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Channels of a head that turn; the others pass through.
    pub dims: usize,
    /// Which channels turn together.
    pub pairs: RopePairs,
    /// The base (θ).
    pub base: f64,
    /// How positions are stretched.
    pub scaling: RopeScaling,
}

/// Which channels are a pair. A GGUF file has the rows of Q and K in the order that its architecture asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// Channels 2i and 2i + 1.
    Neighbours,
    /// Channels i and i + dims / 2.
    Halves,
}

/// How RoPE positions are stretched beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions as they are.
    None,
    /// Positions divided by a factor.
    Linear(f64),
}

impl RopeConfig {
    /// What the keys say of heads of `head_dim` channels; `base` where they have none.
    pub(super) fn read(
        keys: Keys<'_>,
        head_dim: usize,
        pairs: RopePairs,
        base: Option<f64>,
    ) -> Result<Self, ModelError> {
        let name = "rope.dimension_count";
        let dims = keys.count(name)?.unwrap_or(head_dim);
        if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            let expected = "an even number from 2 up to the head dimension";
            return Err(keys.bad(name, expected, dims));
        }
        let name = "rope.freq_base";
        let base = keys.above_zero(name)?.or(base).ok_or_else(|| keys.missing(name))?;
        Ok(Self { dims, pairs, base, scaling: scaling(keys)? })
    }
}

/// As llama.cpp reads it: a factor without a type is linear, and `rope.scale_linear` is the factor's
/// name from before there were types.
fn scaling(keys: Keys<'_>) -> Result<RopeScaling, ModelError> {
    let (name, old_name) = ("rope.scaling.factor", "rope.scale_linear");
    let factor = match (keys.above_zero(name)?, keys.above_zero(old_name)?) {
        (Some(new), Some(old)) if new != old => {
            let found = format!("{old}, not {new}");
            return Err(keys.bad(old_name, "the value of rope.scaling.factor", found));
        }
        (new, old) => new.or(old),
    };
    match (keys.file.text(&keys.key("rope.scaling.type"))?, factor) {
        (Some("none"), _) | (None, None) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(1.0)) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear(factor)),
        (Some("linear"), None) => Err(keys.missing(name)),
        (Some(other), _) => Err(ModelError::RopeScaling(other.to_owned())),
    }
}
