//! What a layer does to scores, as launches take it.

use crate::{
    base::{LayerShape, Window},
    cuda::driver::Argument,
    device::{error::DeviceError, kernels::Terms},
};

/// The values of a layer's [`Terms`]: kernels that were compiled with a term take its value at launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Scale of q·k.
    pub scale: f32,
    /// How far queries look back.
    pub window: Option<Window>,
    /// What scaled scores are held to.
    pub softcap: Option<f32>,
    /// The logits that have no value.
    pub sink_logits: Option<SinkLogits>,
}

/// Where the sink logits of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkLogits {
    /// Device address of `[heads]` f32.
    pub address: u64,
    /// Query heads of a token: row `r` of queries and outputs is of query head `r % heads`.
    pub heads: u32,
}

impl Scoring {
    /// Scores that are scaled and nothing else.
    pub fn scaled(scale: f32) -> Self {
        Self { scale, window: None, softcap: None, sink_logits: None }
    }

    /// What `layer` does; `sink_logits` is the device address of its sink logits, where it has some.
    pub fn of(layer: &LayerShape, sink_logits: u64) -> Self {
        let heads = layer.query_heads() as u32;
        Self {
            scale: layer.scale(),
            window: layer.window(),
            softcap: layer.softcap(),
            sink_logits: layer.sink_logits().map(|_| SinkLogits { address: sink_logits, heads }),
        }
    }

    /// What there is.
    pub fn terms(&self) -> Terms {
        Terms {
            window: self.window.is_some(),
            softcap: self.softcap.is_some(),
            sink_logits: self.sink_logits.is_some(),
        }
    }

    /// Refuses kernels that were compiled for other terms.
    pub(super) fn check(&self, compiled: Terms) -> Result<(), DeviceError> {
        let given = self.terms();
        if given == compiled { Ok(()) } else { Err(DeviceError::OtherTerms { given, compiled }) }
    }

    /// The window's arguments, as the kernels take them.
    pub(super) fn window_arguments(&self) -> impl Iterator<Item = Argument> {
        // A window of `u32::MAX` tokens at most: [`LayerShape::windowed`].
        let values = self.window.map(|window| [window.tokens as u32, window.sinks as u32]);
        values.into_iter().flatten().map(Argument::U32)
    }

    /// The soft cap's argument.
    pub(super) fn softcap_argument(&self) -> impl Iterator<Item = Argument> {
        self.softcap.into_iter().map(Argument::F32)
    }

    /// The sink logits' arguments.
    pub(super) fn sink_arguments(&self) -> impl Iterator<Item = Argument> {
        let values = self
            .sink_logits
            .map(|sinks| [Argument::U64(sinks.address), Argument::U32(sinks.heads)]);
        values.into_iter().flatten()
    }
}
