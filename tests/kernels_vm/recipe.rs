//! What architectures beside `llama` do differently, on the driver in host memory, against a forward pass in
//! f64 and plain loops.

use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use headwise::{
    cuda::driver::Stream,
    device::Kernels,
    engine::{
        ContiguousKv, EngineError, GgufFile, Logits, ModelConfig, Span,
        cuda::{Activation, DeviceModel, DeviceSetup, Pairing, Recipe},
    },
};

use super::{
    harness::Random,
    model::{file, gemm, quantized, roomy},
};
use crate::{
    arithmetic::{normed, turned},
    forward::{HostAttention, STORED, Stored, difference, tolerance},
    tiny_llama::{Parts, TinyLlama},
};

/// As in Gemma 3: everything that a recipe can say is said.
fn recipe(config: &ModelConfig) -> Recipe {
    let pairs = config.layer().k_dim() / 2;
    let base = |base: f64| -> Vec<f64> {
        (0..pairs).map(|pair| base.powf(-(pair as f64) / pairs as f64)).collect()
    };
    Recipe {
        embedding_scale: (config.embedding as f32).sqrt(),
        activation: Activation::GeluTanh,
        gated_scale: 1.0 / 16.0,
        pairing: Pairing::Halves,
        head_norms: true,
        post_norms: true,
        ropes: vec![base(10_000.0), base(1_000_000.0)],
        layer_ropes: (0..config.cache.layers()).map(|layer| usize::from(layer % 3 == 2)).collect(),
    }
}

/// The tensors that such a recipe needs beside those of `llama`.
fn with_norms(tiny: &TinyLlama) -> impl FnOnce(&mut Parts) {
    let (layers, width, dim) = (tiny.layers, tiny.heads * tiny.head_dim, tiny.head_dim);
    move |parts| {
        let mut random = Random(5);
        for layer in 0..layers {
            for (name, channels) in [
                ("attn_q_norm", dim),
                ("attn_k_norm", dim),
                ("post_attention_norm", width),
                ("post_ffw_norm", width),
            ] {
                let values = random.floats(channels, 0.3).iter().map(|v| 1.0 + v).collect();
                let tensor = quantized(values, &[channels], GgmlDType::F32);
                parts.tensors.push((format!("blk.{layer}.{name}.weight"), tensor));
            }
        }
    }
}

fn load(
    file: &GgufFile,
    recipe: Recipe,
    kernels: &Kernels,
    stored: Stored,
) -> Result<DeviceModel, EngineError> {
    let stream = Arc::new(Stream::new(kernels.context()).unwrap());
    let Stored { weights, attention } = stored;
    let setup =
        DeviceSetup { kernels, gemm: gemm(), stream, weights, attention, progress: &|_| () };
    DeviceModel::with_recipe(file, ModelConfig::read(file).unwrap(), recipe, setup)
}

/// Logits of every token of one sequence.
fn reference(file: &GgufFile, recipe: &Recipe, tokens: &[u32]) -> Vec<f64> {
    let config = ModelConfig::read(file).unwrap();
    let (cache, width, epsilon) = (&config.cache, config.embedding, f64::from(config.rms_epsilon));
    let layer_shape = config.layer();
    let (d, group) = (layer_shape.k_dim(), layer_shape.group());
    let tensor = |name: &str, shape: &[usize]| -> Vec<f64> {
        file.tensor(name, shape).unwrap().into_iter().map(f64::from).collect()
    };
    let product = |name: &str, rows: usize, x: &[f64]| -> Vec<f64> {
        let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        tensor(name, &[rows, x.len()]).chunks_exact(x.len()).map(dot).collect()
    };
    let norm = |name: &str, x: &[f64]| normed(x, &tensor(name, &[x.len()]), epsilon);
    let table = tensor("token_embd.weight", &[config.embedding_rows, width]);
    let scaled = |&t: &u32| -> Vec<f64> {
        let row = &table[t as usize * width..][..width];
        row.iter().map(|x| x * f64::from(recipe.embedding_scale)).collect()
    };
    let mut stream: Vec<Vec<f64>> = tokens.iter().map(scaled).collect();
    for layer in 0..cache.layers() {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let frequencies = &recipe.ropes[recipe.layer_ropes[layer]];
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in stream.iter_mut().enumerate() {
            let input = norm(&name("attn_norm"), x);
            let heads = |part: &str, rows: usize| {
                let weight = tensor(&name(&format!("{part}_norm")), &[d]);
                let x = product(&name(part), rows, &input);
                let norm = Some((&*weight, epsilon));
                turned(&x, d, recipe.pairing, frequencies, position as u32, norm)
            };
            let q = heads("attn_q", layer_shape.query_heads() * d);
            keys.push(heads("attn_k", layer_shape.k_row()));
            values.push(product(&name("attn_v"), layer_shape.k_row(), &input));
            let mut attended = vec![0.0; q.len()];
            for (head, out) in attended.chunks_exact_mut(d).enumerate() {
                let at = head / group * d;
                let weight = |k: &Vec<f64>| {
                    let dot: f64 =
                        q[head * d..][..d].iter().zip(&k[at..]).map(|(q, k)| q * k).sum();
                    (dot / (d as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = keys.iter().map(weight).collect();
                let sum: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&values) {
                    let value: &[f64] = value;
                    let terms = out.iter_mut().zip(&value[at..]);
                    terms.for_each(|(out, value)| *out += weight / sum * value);
                }
            }
            let y = product(&name("attn_output"), width, &attended);
            let y = norm(&name("post_attention_norm"), &y);
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            let input = norm(&name("ffn_norm"), x);
            let gate = product(&name("ffn_gate"), config.feed_forward, &input);
            let up = product(&name("ffn_up"), config.feed_forward, &input);
            let gelu = |x: f64| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                x / 2.0 * (1.0 + u.tanh())
            };
            let gated: Vec<f64> = gate.iter().zip(up).map(|(&g, u)| gelu(g) * u).collect();
            let y = product(&name("ffn_down"), width, &gated);
            let y = norm(&name("post_ffw_norm"), &y);
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }
    let head = |x: &Vec<f64>| {
        let mut row =
            product("token_embd.weight", config.embedding_rows, &norm("output_norm.weight", x));
        row.truncate(config.vocab);
        row
    };
    stream.iter().flat_map(head).collect()
}

#[test]
fn everything_a_recipe_can_say_is_done() {
    roomy(|_, kernels| {
        let tiny = TinyLlama { layers: 3, ..TinyLlama::default() };
        let (_folder, file) = file(&tiny, with_norms(&tiny));
        let config = ModelConfig::read(&file).unwrap();
        let recipe = recipe(&config);
        let tokens: Vec<u32> = (0..14).map(|i| (i * 7919 + 5) % 300).collect();
        let exact = reference(&file, &recipe, &tokens);
        for stored in STORED {
            let mut model = load(&file, recipe.clone(), kernels, stored).unwrap();
            let stream = Arc::clone(model.stream());
            let mut kv = HostAttention::new(ContiguousKv::new(model.shape().clone()), &stream);
            let sequence = kv.kv.add_sequence();
            for range in [0..9, 9..14] {
                kv.kv.begin_step(&[(sequence, range.len())]).unwrap();
                let (tokens, position) = (&tokens[range.clone()], range.start);
                let span = Span { tokens, position, logits: Logits::All };
                let rows = model.forward(&[span], &mut kv).unwrap();
                let most = tolerance(stored, tiny.layers);
                for ((_, got), exact) in
                    rows.iter().zip(exact.chunks(config.vocab).skip(range.start))
                {
                    let error = difference(got, exact);
                    assert!(error <= most, "{stored:?}: {error}, allowed {most}");
                }
            }
        }
    });
}

#[test]
fn a_recipe_that_contradicts_the_model_is_refused() {
    roomy(|_, kernels| {
        let tiny = TinyLlama::default();
        let (_folder, plain) = file(&tiny, |_| {});
        let full = recipe(&ModelConfig::read(&plain).unwrap());
        let text = |recipe| load(&plain, recipe, kernels, STORED[0]).err().unwrap().to_string();
        assert_eq!(text(full.clone()), "the model file has no tensor blk.0.attn_q_norm.weight");
        for ropes in [vec![0], vec![0, 2]] {
            let text = text(Recipe { layer_ropes: ropes, ..full.clone() });
            assert!(text.starts_with("the list of layers' rotary embeddings is [0"), "{text}");
        }
        let (_folder, normed) = file(&tiny, with_norms(&tiny));
        let less = Recipe { post_norms: false, ..full };
        let text = load(&normed, less, kernels, STORED[0]).err().unwrap().to_string();
        assert!(text.contains("post_attention_norm"), "{text}");
    });
}
