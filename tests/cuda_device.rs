//! The CUDA side on a device, where this machine has one.

#[cfg(feature = "engine")]
#[path = "cuda_support/arithmetic.rs"]
mod arithmetic;
#[path = "cuda_support/backend.rs"]
mod backend;
#[path = "cuda_support/compiler.rs"]
mod compiler;
#[path = "conformance/mod.rs"]
mod conformance;
#[path = "cuda_support/door.rs"]
mod door;
#[path = "cuda_support/engine.rs"]
mod engine;
#[cfg(feature = "engine")]
#[path = "cuda_support/forward.rs"]
mod forward;
#[path = "cuda_support/graph.rs"]
mod graph;
#[path = "cuda_support/launches.rs"]
mod launch_cases;
#[path = "cuda_support/lifecycle.rs"]
mod lifecycle;
#[cfg(feature = "engine")]
#[path = "cuda_support/matrix.rs"]
mod matrix;
#[path = "cuda_support/memory.rs"]
mod memory;
#[path = "cuda_support/serving.rs"]
mod serving_loop;
#[path = "common/skipped.rs"]
mod skipped;
#[cfg(feature = "engine")]
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

use std::sync::Arc;

use headwise::{
    base::LayerShape,
    cuda::driver::{Context, Driver, Stream},
    device::{
        Kernels,
        kernels::{KernelFile, Specialisation},
    },
    format::{PageFormat, PageLayout, SlotFormat},
    measure::{
        serving::Tables,
        verify::{
            AttentionCase, append_agrees_with_the_host, attention_errors, attention_specialisation,
            formats, store_agrees_with_the_host, tolerance,
        },
    },
};

/// The first device; `None`, loudly, where there is none.
fn context() -> Option<Context> {
    match Driver::open().and_then(|driver| Context::new(&driver, 0)) {
        Ok(context) => Some(context),
        Err(error) => {
            skipped::skipped(format_args!("this test needs a CUDA device, and {error}"));
            None
        }
    }
}

fn kernels(context: &Context) -> Option<Arc<Kernels>> {
    compiler::nvrtc().map(|nvrtc| Arc::new(Kernels::new(context, nvrtc, None)))
}

#[test]
fn pages_survive_every_operation() {
    let Some(context) = context() else { return };
    (0..8).for_each(|seed| store_agrees_with_the_host(&context, None, seed).unwrap());
    let Some(kernels) = kernels(&context) else { return };
    (0..8).for_each(|seed| store_agrees_with_the_host(&context, Some(&kernels), seed).unwrap());
}

#[test]
fn staging_mirror_and_fence_wait_for_what_they_must() {
    let Some(context) = context() else { return };
    (0..8).for_each(|seed| memory::staging_delivers(&context, seed));
    memory::staging_serves_two_streams(&context);
    (0..4).for_each(|seed| memory::mirror_follows(&context, seed));
    memory::fence_retires_in_order(&context);
}

#[test]
fn attention_is_that_of_the_reference() {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    let mixed = [
        PageFormat::default(),
        PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 },
        PageFormat::both(SlotFormat::F32),
        PageFormat::both(SlotFormat::Bf16),
        PageFormat::both(SlotFormat::I8),
    ];
    let shapes = [(1, 64), (3, 64), (4, 128), (8, 128), (4, 256), (20, 64)];
    // Compiled side by side: one after another they would take minutes.
    let wanted: Vec<(KernelFile, Specialisation)> = shapes
        .into_iter()
        .flat_map(|(group, dim)| {
            mixed.map(|format| attention_specialisation(format, group, dim).unwrap())
        })
        .flat_map(|specialisation| {
            use KernelFile::{Decode, Merge, Prefill, Score};
            [Decode, Merge, Prefill, Score].map(|file| (file, specialisation))
        })
        .collect();
    kernels.prepare(&wanted, &Stream::new(&context).unwrap()).unwrap();
    for (seed, (group, head_dim)) in shapes.into_iter().enumerate() {
        let layer = LayerShape::new(4, 4 * group, head_dim).unwrap();
        let case =
            AttentionCase { layer: &layer, formats: &mixed, longest: 20_000, seed: seed as u64 };
        let errors = attention_errors(&kernels, &case).unwrap();
        assert!(errors.within(tolerance(&mixed)), "{layer:?}: {errors:?}");
    }
}

#[test]
fn a_cache_is_the_same_in_both_memories() {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    for seed in 0..20 {
        door::both_memories_agree(&kernels, 500, seed);
    }
}

#[test]
fn an_engines_decode_loop_is_that_of_the_reference() {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    let layer = LayerShape::new(3, 12, 64).unwrap();
    for format in formats() {
        let layout = PageLayout::new(format, 64, 8192).unwrap();
        let lengths = [[700, 1], [701, 2], [20, 3], [0, 40], [1, 41], [300, 17]];
        engine::decode_loop_agrees(&kernels, layout, &layer, &lengths, 2e-3);
    }
}

#[test]
fn rows_are_encoded_as_on_the_host() {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    for format in formats() {
        for head_dim in [64, 80, 128, 256] {
            append_agrees_with_the_host(&kernels, format, head_dim, 9).unwrap();
        }
    }
}

#[test]
fn a_captured_decode_follows_later_plans() {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    graph::a_captured_decode_follows_later_plans(&kernels);
}

/// The suite of all attention backends.
fn gpu(test: &mut dyn FnMut(&dyn conformance::Backend)) {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    test(&backend::Device(&kernels));
}

conformance::conformance!(gpu: f32, f16, bf16, i8, k8v16);

/// The formats alike for K and V, and one pair of unlike ones.
fn few_formats() -> impl Iterator<Item = PageFormat> {
    let mixed = PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 };
    SlotFormat::ALL.iter().map(|&format| PageFormat::both(format)).chain([mixed])
}

#[test]
fn a_decode_loop_that_scores_and_evicts_is_the_hosts() {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    for format in few_formats() {
        let scored = Tables::PerHead { scores: Some(1) };
        serving_loop::decode_loop(&kernels, format, scored, [1500, 40]);
        for tables in [Tables::PerHead { scores: None }, Tables::Shared] {
            serving_loop::decode_loop(&kernels, format, tables, [70, 33]);
        }
    }
}

#[test]
fn a_late_eviction_is_the_hosts() {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    let scored = Tables::PerHead { scores: Some(1) };
    let format = PageFormat::default();
    serving_loop::evicting_loop(&kernels, format, scored, [3000, 900], [1.0, 8.0], &[2]);
}

#[test]
fn a_sequences_scores_and_positions_follow_its_slots() {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    few_formats().for_each(|format| lifecycle::scores_and_positions_follow_slots(&kernels, format));
}

#[test]
fn prompts_scores_and_gathered_rows_are_the_hosts() {
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    launch_cases::sums_become_scores_at_rest(&kernels);
    few_formats().for_each(|format| launch_cases::gathered_rows_are_the_hosts(&kernels, format));
}

/// The kernels between an engine's products.
#[cfg(feature = "engine")]
mod between_products {
    use headwise::device::Kernels;

    use super::arithmetic::arithmetic;

    fn on_a_device(case: &mut dyn FnMut(&Kernels)) {
        let Some(context) = super::context() else { return };
        let Some(kernels) = super::kernels(&context) else { return };
        case(&kernels);
    }

    arithmetic!(on_a_device);
}

/// With products by cuBLAS.
#[cfg(feature = "engine")]
#[test]
fn a_models_logits_are_the_hosts() {
    use headwise::cuda::cublas::{CuBlas, Gemm};
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    if let Err(error) = CuBlas::open(&context) {
        return skipped::skipped(format_args!("this test multiplies by cuBLAS, and {error}"));
    }
    let gemm = || -> Box<dyn Gemm + Send> { Box::new(CuBlas::open(&context).unwrap()) };
    let wide = tiny_llama::TinyLlama {
        heads: 6,
        head_dim: 64,
        layers: 4,
        feed_forward: 800,
        ..Default::default()
    };
    for tiny in [tiny_llama::TinyLlama::default(), wide] {
        for stored in forward::STORED {
            forward::forward_agrees(&kernels, &gemm, &tiny, stored);
            forward::forward_through_pages(&kernels, &gemm, &tiny, stored);
        }
    }
}

/// A real model's logits on the device against the host's: mean divergence, and perplexity. Reads the GGUF file
/// `HEADWISE_MODEL` and the text `HEADWISE_TEXT`; says so where they are not given.
#[cfg(feature = "engine")]
#[test]
fn a_real_models_logits_are_the_hosts() {
    use headwise::{
        cache::CacheConfig,
        cuda::{
            Element,
            cublas::{CuBlas, Gemm},
        },
        engine::{
            GgufFile, Logits, Model, Runner, Tokenizer,
            cuda::{DeviceModel, DeviceSetup, OnDevice},
            log_softmax, prefill,
        },
    };
    let Some(context) = context() else { return };
    let Some(kernels) = kernels(&context) else { return };
    let named = |name| std::env::var_os(name).map(std::path::PathBuf::from);
    let (Some(model), Some(text)) = (named("HEADWISE_MODEL"), named("HEADWISE_TEXT")) else {
        skipped::skipped("this test needs HEADWISE_MODEL, a GGUF file, and HEADWISE_TEXT");
        return;
    };
    let gemm: Box<dyn Gemm + Send> = match CuBlas::open(&context) {
        Ok(gemm) => Box::new(gemm),
        Err(error) => {
            skipped::skipped(error);
            return;
        }
    };
    let file = GgufFile::open(&model).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let text = std::fs::read_to_string(text).unwrap();
    let text: String = text.chars().take(8_000).collect();
    let tokens = tokenizer.encode_plain(&text).unwrap();
    let tokens = &tokens[..tokens.len().min(1024)];
    let host = Model::load(&file).unwrap();
    let config = CacheConfig::new(host.shape().clone(), tokens.len());
    let mut expected: Vec<Vec<f64>> = Vec::new();
    let cache = Runner::cache(&host, &config).unwrap();
    let mut sequence = cache.sequence();
    let all = Logits::All;
    prefill::feed(&host, &cache, &mut sequence, tokens, 256, all, |_, rows| {
        expected.extend(rows.iter().map(|(_, row)| log_softmax(row).unwrap()));
        Ok(())
    })
    .unwrap();
    let stream = Arc::new(Stream::new(&context).unwrap());
    let setup = DeviceSetup {
        kernels: &kernels,
        gemm,
        stream,
        weights: Element::F16,
        attention: Element::F32,
        progress: &|_| (),
    };
    let device = OnDevice::new(DeviceModel::load(&file, setup).unwrap(), kernels);
    let cache = device.cache(&config).unwrap();
    let mut sequence = cache.sequence();
    let (mut divergence, mut sums, mut count) = (0.0, [0.0; 2], 0);
    prefill::feed(&device, &cache, &mut sequence, tokens, 256, all, |range, rows| {
        for (position, (_, row)) in range.zip(rows.iter()) {
            let (want, got) = (&expected[position], log_softmax(row).unwrap());
            divergence += want.iter().zip(&got).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            if let Some(&next) = tokens.get(position + 1) {
                sums[0] -= want[next as usize];
                sums[1] -= got[next as usize];
            }
            count += 1;
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(count, tokens.len());
    let [host, device] = sums.map(|sum| (sum / (count - 1) as f64).exp());
    let (divergence, change) = (divergence / count as f64, device / host - 1.0);
    println!("KL {divergence:.2e}, perplexity {host:.4} on the host, {device:.4} on the device");
    assert!(divergence <= 1e-3 && change.abs() <= 1e-3, "KL {divergence}, perplexity {change:+}");
}
