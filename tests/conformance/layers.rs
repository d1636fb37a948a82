//! What layers do beside plain attention: windows, wide keys, values in keys, soft caps, sink logits.

use headwise::{
    base::{Channels, LayerShape, Window},
    format::PageFormat,
};

use super::{Backend, Scene, check};

/// Decoding and prefill, short and long, where windows begin in a page, at its end, within the chunk, and
/// before everything.
fn spans() -> [(usize, Vec<usize>); 5] {
    [
        (1, vec![300, 1]),
        (37, vec![37, 190]),
        (1, vec![47, 64]),
        (70, vec![300, 71]),
        (3, vec![9, 2]),
    ]
}

fn layer(backend: &dyn Backend, channels: impl Into<Channels>) -> LayerShape {
    let (group, _) = backend.effort().single[0];
    LayerShape::new(2, 2 * group, channels).unwrap()
}

fn channels(backend: &dyn Backend) -> usize {
    backend.effort().single[0].1
}

/// The `nth` layer of a case: two scenes of it or, where there is little time, one, which differs from those of
/// the other layers.
fn try_spans(
    backend: &dyn Backend,
    formats: &[PageFormat],
    layer: &LayerShape,
    nth: usize,
    what: &str,
) {
    let refused = backend.refuses(layer);
    let seeds = if backend.effort().single.len() > 1 { 2 } else { 1 };
    for seed in (nth as u64..).take(seeds) {
        let scene = Scene::new(layer.clone(), &spans(), formats, seed);
        if refused {
            backend.assert_refuses(&scene.store(), what);
        } else {
            check(backend, &scene, 6, what);
        }
    }
}

/// Queries see the newest tokens alone.
pub fn windows(backend: &dyn Backend, formats: &[PageFormat]) {
    for (nth, tokens) in [1, 2, 16, 33, 64, 200, 1000].into_iter().enumerate() {
        let layer = layer(backend, channels(backend)).windowed(Window::of(tokens)).unwrap();
        try_spans(backend, formats, &layer, nth, &format!("a window of {tokens}"));
    }
}

/// And the first ones.
pub fn windows_with_sinks(backend: &dyn Backend, formats: &[PageFormat]) {
    for (nth, (tokens, sinks)) in [(1, 1), (20, 4), (64, 33), (40, 40)].into_iter().enumerate() {
        let window = Window { tokens, sinks };
        let layer = layer(backend, channels(backend)).windowed(window).unwrap();
        try_spans(backend, formats, &layer, nth, &format!("{window:?}"));
    }
}

/// Keys wider than values, and narrower.
pub fn keys_and_values_of_different_widths(backend: &dyn Backend, formats: &[PageFormat]) {
    for (nth, channels) in [Channels::new(192, 128), Channels::new(48, 80), Channels::new(16, 256)]
        .into_iter()
        .enumerate()
    {
        let layer = layer(backend, channels);
        try_spans(backend, formats, &layer, nth, &format!("{channels:?}"));
    }
}

/// One latent row of which the value is the beginning.
pub fn values_in_keys(backend: &dyn Backend, formats: &[PageFormat]) {
    for (nth, channels) in
        [Channels::v_in_k(96, 64), Channels::v_in_k(80, 80), Channels::v_in_k(576, 512)]
            .into_iter()
            .enumerate()
    {
        let layer = layer(backend, channels).scaled(0.11).unwrap();
        try_spans(backend, formats, &layer, nth, &format!("{channels:?}"));
    }
}

/// Scores held to a range.
pub fn soft_caps(backend: &dyn Backend, formats: &[PageFormat]) {
    for (nth, (cap, scale)) in [(1.5, 0.3), (50.0, 0.125), (30.0, 4.0)].into_iter().enumerate() {
        let layer = layer(backend, channels(backend)).scaled(scale).unwrap();
        let layer = layer.softcapped(cap).unwrap();
        try_spans(backend, formats, &layer, nth, &format!("a cap of {cap} at a scale of {scale}"));
    }
}

/// Attention paid to nothing, some and nearly all of it.
pub fn sink_logits(backend: &dyn Backend, formats: &[PageFormat]) {
    for (nth, base) in [-20.0, 0.0, 9.0, 300.0].into_iter().enumerate() {
        let layer = layer(backend, channels(backend));
        let logits: Vec<f32> = (0..layer.query_heads()).map(|head| base + head as f32).collect();
        let layer = layer.with_sink_logits(logits).unwrap();
        try_spans(backend, formats, &layer, nth, &format!("sink logits from {base}"));
    }
}

/// All of it at once.
pub fn everything_together(backend: &dyn Backend, formats: &[PageFormat]) {
    for (nth, channels) in
        [channels(backend).into(), Channels::new(64, 32), Channels::v_in_k(64, 48)]
            .into_iter()
            .enumerate()
    {
        let layer = layer(backend, channels).scaled(0.4).unwrap().softcapped(20.0).unwrap();
        let logits: Vec<f32> = (0..layer.query_heads()).map(|head| 3.0 - head as f32).collect();
        let layer = layer.with_sink_logits(logits).unwrap();
        let layer = layer.windowed(Window { tokens: 50, sinks: 3 }).unwrap();
        try_spans(backend, formats, &layer, nth, &format!("everything, {channels:?}"));
    }
}
