//! One layer of a model's KV cache.

use serde::{Deserialize, Serialize};

use super::shape_error::{CHANNEL_ALIGN, MAX_CHANNELS, MAX_HEADS, MAX_SOFTCAP, ShapeError};

/// Heads, channels and attention of one layer.
///
/// A *KV head* is one (layer, head) pair of K and V; the query heads that read it are its *query
/// group*. Query head `q` of a layer reads KV head `q / group`.
///
/// ```
/// use headwise::base::{Channels, LayerShape, Window};
///
/// // A layer of gpt-oss: 8 KV heads of 64 channels, a window of 128 tokens.
/// let local = LayerShape::new(8, 64, 64)?.windowed(Window::of(128))?;
/// assert_eq!(local.group(), 8);
/// // The absorbed form of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1): one head whose
/// // values are the first 512 of its keys' 576 channels.
/// let latent = LayerShape::new(1, 128, Channels::v_in_k(576, 512))?.scaled(192f32.powf(-0.5))?;
/// assert_eq!(latent.v_row(), 0);
/// # Ok::<(), headwise::base::ShapeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct LayerShape {
    kv_heads: usize,
    query_heads: usize,
    channels: Channels,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
    scale: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    softcap: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sink_logits: Option<Box<[f32]>>,
}

/// Channels of the K and the V of one KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Channels {
    /// Channels of a key, and of a query.
    pub k: usize,
    /// Channels of a value, and of an output.
    pub v: usize,
    /// Whether V is the first `v` channels of K, stored once: the absorbed form of latent attention.
    #[serde(default)]
    pub v_in_k: bool,
}

/// How far back the queries of a layer look: a query at position `p` sees the positions above
/// `p - tokens` up to its own, and the first `sinks` of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// Positions that a query sees, its own among them; at least one.
    pub tokens: usize,
    /// First positions of a sequence that every query sees whatever the window; at most `tokens`.
    #[serde(default)]
    pub sinks: usize,
}

/// A layer as a file has it.
#[derive(Deserialize)]
struct Unchecked {
    kv_heads: usize,
    query_heads: usize,
    channels: Channels,
    window: Option<Window>,
    scale: f32,
    softcap: Option<f32>,
    sink_logits: Option<Vec<f32>>,
}

impl TryFrom<Unchecked> for LayerShape {
    type Error = ShapeError;

    fn try_from(layer: Unchecked) -> Result<Self, ShapeError> {
        let mut shape = Self::new(layer.kv_heads, layer.query_heads, layer.channels)?;
        shape = shape.scaled(layer.scale)?;
        if let Some(window) = layer.window {
            shape = shape.windowed(window)?;
        }
        if let Some(cap) = layer.softcap {
            shape = shape.softcapped(cap)?;
        }
        if let Some(logits) = layer.sink_logits {
            shape = shape.with_sink_logits(logits)?;
        }
        Ok(shape)
    }
}

impl Window {
    /// A window without sinks.
    pub const fn of(tokens: usize) -> Self {
        Self { tokens, sinks: 0 }
    }
}

impl Channels {
    /// Every number of channels is a multiple of this: one AVX-512 register of f32, one 16-byte copy of i8.
    pub const ALIGN: usize = CHANNEL_ALIGN;
    /// The most channels of a head.
    pub const MAX: usize = MAX_CHANNELS;

    /// K and V of these widths, each stored.
    pub const fn new(k: usize, v: usize) -> Self {
        Self { k, v, v_in_k: false }
    }

    /// Keys of `k` channels, of which the first `v` are the value.
    pub const fn v_in_k(k: usize, v: usize) -> Self {
        Self { k, v, v_in_k: true }
    }

    /// The channels of both sides where they are alike and each is stored.
    pub fn alike(&self) -> Option<usize> {
        (self.k == self.v && !self.v_in_k).then_some(self.k)
    }

    /// Channels of V that are stored beside K.
    pub fn v_stored(&self) -> usize {
        if self.v_in_k { 0 } else { self.v }
    }

    /// Whether a head may have so many channels.
    pub fn takes(channels: usize) -> bool {
        (1..=Self::MAX).contains(&channels) && channels.is_multiple_of(Self::ALIGN)
    }

    /// Refuses widths that no cache has.
    pub(crate) fn check(&self) -> Result<(), ShapeError> {
        let bad = [self.k, self.v].into_iter().find(|&channels| !Self::takes(channels));
        match bad {
            Some(channels) => Err(ShapeError::Channels(channels)),
            None if self.v_in_k && self.v > self.k => {
                let Self { k, v, .. } = *self;
                Err(ShapeError::ValueBeyondKey { k, v })
            }
            None => Ok(()),
        }
    }
}

/// K and V of one width, each stored.
impl From<usize> for Channels {
    fn from(channels: usize) -> Self {
        Self::new(channels, channels)
    }
}

impl LayerShape {
    /// A layer whose queries see all tokens, with scores scaled by `1 / sqrt(k)`.
    pub fn new(
        kv_heads: usize,
        query_heads: usize,
        channels: impl Into<Channels>,
    ) -> Result<Self, ShapeError> {
        let channels = channels.into();
        if kv_heads == 0 || query_heads == 0 {
            return Err(ShapeError::Zero { layers: 1, kv_heads, query_heads });
        }
        if query_heads > MAX_HEADS {
            return Err(ShapeError::TooManyHeads(query_heads));
        }
        if !query_heads.is_multiple_of(kv_heads) {
            return Err(ShapeError::Ragged { query_heads, kv_heads });
        }
        channels.check()?;
        let scale = (channels.k as f32).sqrt().recip();
        let (window, softcap, sink_logits) = (None, None, None);
        Ok(Self { kv_heads, query_heads, channels, window, scale, softcap, sink_logits })
    }

    /// The same, with queries that look back no further than `window`.
    pub fn windowed(self, window: Window) -> Result<Self, ShapeError> {
        let tokens = 1..=u32::MAX as usize;
        if !tokens.contains(&window.tokens) || window.sinks > window.tokens {
            let Window { tokens, sinks } = window;
            return Err(ShapeError::Window { tokens, sinks });
        }
        Ok(Self { window: Some(window), ..self })
    }

    /// The same, with scores scaled by `scale` instead of `1 / sqrt(k)`.
    pub fn scaled(self, scale: f32) -> Result<Self, ShapeError> {
        if !scale.is_normal() || scale < 0.0 {
            return Err(ShapeError::Scale(scale));
        }
        Ok(Self { scale, ..self })
    }

    /// The same, with scores held to ±`cap`: `cap · tanh(score / cap)`, as in Gemma 2
    /// (arXiv 2408.00118, §2). At most 4,096, since it is computed to some 2e-7 of the cap.
    pub fn softcapped(self, cap: f32) -> Result<Self, ShapeError> {
        if !cap.is_normal() || !(0.0..=MAX_SOFTCAP).contains(&cap) {
            return Err(ShapeError::Softcap(cap));
        }
        Ok(Self { softcap: Some(cap), ..self })
    }

    /// The same, with a logit for each query head that takes part in its softmax and has no value, as in
    /// gpt-oss (arXiv 2508.10925): attention paid to it is paid to nothing.
    pub fn with_sink_logits(self, logits: impl Into<Box<[f32]>>) -> Result<Self, ShapeError> {
        let logits = logits.into();
        if logits.len() != self.query_heads || logits.iter().any(|logit| !logit.is_finite()) {
            let (logits, query_heads) = (logits.len(), self.query_heads);
            return Err(ShapeError::SinkLogits { logits, query_heads });
        }
        Ok(Self { sink_logits: Some(logits), ..self })
    }

    /// KV heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Query heads.
    pub fn query_heads(&self) -> usize {
        self.query_heads
    }

    /// Query heads that read one KV head.
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// Channels of its KV heads.
    pub fn channels(&self) -> Channels {
        self.channels
    }

    /// Channels of a key, and of a query.
    pub fn k_dim(&self) -> usize {
        self.channels.k
    }

    /// Channels of a value, and of an output.
    pub fn v_dim(&self) -> usize {
        self.channels.v
    }

    /// How far back queries look; `None`: to the first token.
    pub fn window(&self) -> Option<Window> {
        self.window
    }

    /// What scores are scaled by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// What scores are held to, if they are.
    pub fn softcap(&self) -> Option<f32> {
        self.softcap
    }

    /// The logit of each query head that has no value, if there are such.
    pub fn sink_logits(&self) -> Option<&[f32]> {
        self.sink_logits.as_deref()
    }

    /// Query values of one token.
    pub fn q_row(&self) -> usize {
        self.query_heads * self.channels.k
    }

    /// Key values of one token.
    pub fn k_row(&self) -> usize {
        self.kv_heads * self.channels.k
    }

    /// Values of V of one token that are given beside its keys.
    pub fn v_row(&self) -> usize {
        self.kv_heads * self.channels.v_stored()
    }

    /// Output values of one token.
    pub fn out_row(&self) -> usize {
        self.query_heads * self.channels.v
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_no_layer_can_have() {
        let layer = || LayerShape::new(2, 4, 64).unwrap();
        assert!(matches!(LayerShape::new(0, 1, 64), Err(ShapeError::Zero { .. })));
        assert!(matches!(LayerShape::new(3, 8, 64), Err(ShapeError::Ragged { .. })));
        for channels in [72, 0, 1040] {
            assert_eq!(LayerShape::new(1, 1, channels), Err(ShapeError::Channels(channels)));
        }
        let beyond = Channels::v_in_k(64, 80);
        assert_eq!(LayerShape::new(1, 1, beyond), Err(ShapeError::ValueBeyondKey { k: 64, v: 80 }));
        for window in [Window::of(0), Window { tokens: 4, sinks: 5 }, Window::of(1 << 33)] {
            assert!(
                matches!(layer().windowed(window), Err(ShapeError::Window { .. })),
                "{window:?}"
            );
        }
        let many = LayerShape::new(1, 1 << 60, 64);
        assert_eq!(many, Err(ShapeError::TooManyHeads(1 << 60)));
        assert_eq!(layer().softcapped(4097.0), Err(ShapeError::Softcap(4097.0)));
        for bad in [0.0, -1.0, f32::INFINITY, 1e-40] {
            assert_eq!(layer().scaled(bad), Err(ShapeError::Scale(bad)));
            assert_eq!(layer().softcapped(bad), Err(ShapeError::Softcap(bad)));
        }
        assert!(layer().scaled(f32::NAN).is_err() && layer().softcapped(f32::NAN).is_err());
        for bad in [vec![0.0; 2], vec![0.0, 1.0, f32::NAN, 0.0], vec![f32::INFINITY; 4]] {
            let refused = layer().with_sink_logits(bad);
            assert!(matches!(refused, Err(ShapeError::SinkLogits { .. })), "{refused:?}");
        }
    }

    #[test]
    fn files_bring_no_other_layers() {
        let layer = LayerShape::new(2, 4, Channels::new(192, 128)).unwrap();
        let layer = layer.windowed(Window { tokens: 128, sinks: 4 }).unwrap();
        let layer = layer.scaled(0.25).unwrap().softcapped(50.0).unwrap();
        let layer = layer.with_sink_logits(vec![0.5, -1.0, 2.0, 0.0]).unwrap();
        let text = serde_json::to_string(&layer).unwrap();
        assert_eq!(serde_json::from_str::<LayerShape>(&text).unwrap(), layer);
        for (from, to) in [
            ("\"kv_heads\":2", "\"kv_heads\":3"),
            ("192", "200"),
            ("\"tokens\":128", "\"tokens\":3"),
            ("0.25", "-0.25"),
            ("50.0", "0"),
            ("0.5,", ""),
        ] {
            assert!(text.contains(from), "{text}");
            let refused = serde_json::from_str::<LayerShape>(&text.replace(from, to));
            assert!(refused.is_err(), "{from} became {to}");
        }
    }
}
