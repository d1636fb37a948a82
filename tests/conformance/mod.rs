//! What attention promises (docs/attention.md), as cases that every backend runs in every format.
//!
//! A case makes [`Scene`]s, has a [`Backend`] attend, and compares with the [oracle](oracle()). The macro
//! [`conformance!`] makes a test of each case for a backend and a set of page formats, named
//! `backend::format::case`. Host backends are in `tests/attend.rs`, the PTX interpreter in
//! `tests/kernels_vm/conformance.rs`, a real device in `tests/cuda_device.rs`.

pub mod edges;
pub mod layers;
pub mod nonfinite;
mod oracle;
pub mod parity;
pub mod range;
mod scene;

use headwise::{
    attend::{Reduce, SlotScores},
    base::LayerShape,
    format::{PageFormat, SlotFormat},
};

pub use oracle::{Results, oracle};
pub use scene::{Random, Scene, Stored};

/// Something that attends.
pub trait Backend {
    /// Attends with every query of a scene, and scores its slots.
    fn attend(&self, stored: &Stored, scores: SlotScores) -> Results;

    /// Whether the backend says that it does not compute such layers.
    fn refuses(&self, layer: &LayerShape) -> bool;

    /// Panics unless the backend refuses what it says that it does.
    fn assert_refuses(&self, stored: &Stored, what: &str);

    /// Of outputs in units of a head's largest value, of log-sum-exps in units of themselves or 1.
    fn tolerance(&self, layer: &LayerShape, formats: &[PageFormat]) -> f32;

    /// How much of it there is time for.
    fn effort(&self) -> Effort;
}

/// Over what cases go.
pub struct Effort {
    /// Query heads of a KV head, and channels: for decoding and for prefill.
    pub decode: &'static [(usize, usize)],
    pub prefill: &'static [(usize, usize)],
    /// The same for cases about single values.
    pub single: &'static [(usize, usize)],
    /// The same and slots, such that heads are cut and joined again.
    pub long: &'static [((usize, usize), usize)],
    /// Random batches.
    pub seeds: u64,
}

/// Makes a module of tests: each case for `$backend`, a function that calls what it is given with a
/// backend, over each set of formats.
macro_rules! conformance {
    ($backend:ident: $($formats:ident),+) => {
        mod $backend {
            $(mod $formats {
                $crate::conformance::conformance! {
                    @cases $backend $formats
                    parity: decode, prefill, ragged_batches, long_heads;
                    range: equal_logits_of_any_size, one_key_wins_at_any_size,
                        logits_beyond_f32, faint_queries_of_large_keys,
                        sums_that_overflow_on_the_way, values_near_the_largest,
                        denormals_and_minus_zero;
                    nonfinite: a_query_that_is_nan, a_key_that_is_nan, a_value_that_is_nan,
                        infinite_queries, infinite_keys, infinite_values, one_piece_of_many,
                        newer_tokens_reach_no_older_one;
                    layers: windows, windows_with_sinks, keys_and_values_of_different_widths,
                        values_in_keys, soft_caps, sink_logits, everything_together;
                    edges: seeing_nothing, evicted_below_the_chunk, no_tokens_and_no_spans;
                }
            })+
        }
    };
    (@cases $backend:ident $formats:ident $($module:ident: $($case:ident),+;)+) => {
        $($(
            #[test]
            fn $case() {
                let formats = $crate::conformance::formats(stringify!($formats));
                let case = $crate::conformance::$module::$case;
                super::super::$backend(&mut |backend| case(backend, &formats));
            }
        )+)+
    };
}
pub(crate) use conformance;

/// A set of formats by its name: tables of a scene take them in turn.
pub fn formats(name: &str) -> Vec<PageFormat> {
    let all = SlotFormat::ALL;
    match name {
        "mixed" => {
            all.iter().flat_map(|&k| all.iter().map(move |&v| PageFormat { k, v })).collect()
        }
        "k8v16" => vec![PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 }],
        _ => vec![name.parse().unwrap()],
    }
}

/// A layer of `kv_heads` heads.
pub fn shape(kv_heads: usize, (group, head_dim): (usize, usize)) -> LayerShape {
    LayerShape::new(kv_heads, kv_heads * group, head_dim).unwrap()
}

/// Compares a backend with the oracle: output, log-sum-exp, and scores, whose kinds scenes take in turn.
pub fn check(backend: &dyn Backend, scene: &Scene, window: usize, what: &str) {
    const KINDS: [(Reduce, usize); 3] =
        [(Reduce::PerQueryHead, 0), (Reduce::Group, 0), (Reduce::PerQueryHead, 5)];
    let (reduce, skip) = KINDS[scene.seed as usize % KINDS.len()];
    let stored = scene.store();
    let tolerance = backend.tolerance(&scene.layer, &scene.formats());
    let scores = SlotScores::new(window, reduce).skipping(skip);
    let want = oracle(&stored, &scores);
    let got = backend.attend(&stored, scores);
    got.assert_close(&want, &stored, tolerance, &format!("{what}, {reduce:?}, skip {skip}"));
}
