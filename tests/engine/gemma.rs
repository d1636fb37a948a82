//! Gemma 3 against a forward pass in f64 and plain loops, and files that contradict themselves.

use candle_core::quantized::gguf_file::Value;
use headwise::{
    cache::{CacheConfig, Capacity, FormatMap, KvCache},
    engine::{
        ContiguousKv, EngineError, GgufFile, Logits, Model, ModelError, Span,
        eval::{PerplexityOptions, perplexity},
        prefill,
    },
    format::PageFormat,
};

use crate::{
    files::{set, zeros},
    tiny_gemma::{Pattern, TinyGemma},
    tiny_llama::Parts,
};

fn write(tiny: &TinyGemma) -> (tempfile::TempDir, GgufFile, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny.write(&path);
    let file = GgufFile::open(&path).unwrap();
    let model = Model::load(&file).unwrap();
    (folder, file, model)
}

/// One model, its weights in f64.
struct Oracle<'a> {
    tiny: &'a TinyGemma,
    file: &'a GgufFile,
}

impl Oracle<'_> {
    fn product(&self, name: &str, rows: usize, x: &[f64]) -> Vec<f64> {
        let weights = self.file.tensor(name, &[rows, x.len()]).unwrap();
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
        weights.chunks_exact(x.len()).map(dot).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weights = self.file.tensor(name, &[x.len()]).unwrap();
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(1e-6f32)).sqrt();
        x.iter().zip(weights).map(|(x, w)| x * scale * f64::from(w)).collect()
    }

    /// Norms and turns each head: channel i with channel i + d/2.
    fn heads(&self, name: &str, windowed: bool, position: usize, x: &[f64]) -> Vec<f64> {
        let (tiny, half) = (self.tiny, self.tiny.head_dim / 2);
        let (base, factor) = match windowed {
            true => (tiny.local_base.unwrap_or(10_000.0), 1.0),
            false => (tiny.base, f64::from(tiny.factor.unwrap_or(1.0))),
        };
        let turn = |head: &[f64]| {
            let mut head = self.norm(name, head);
            for i in 0..half {
                let angle =
                    position as f64 / factor * f64::from(base).powf(-(i as f64) / half as f64);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = a * angle.sin() + b * angle.cos();
            }
            head
        };
        x.chunks_exact(2 * half).flat_map(turn).collect()
    }

    /// Logits of every token of one sequence.
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let tiny = self.tiny;
        let (width, d) = (tiny.embedding, tiny.head_dim);
        let table = self.file.tensor("token_embd.weight", &[tiny.vocab, width]).unwrap();
        let row = |&token: &u32| table[token as usize * width..][..width].iter();
        let root = (width as f64).sqrt();
        let mut stream: Vec<Vec<f64>> =
            tokens.iter().map(|t| row(t).map(|&x| f64::from(x) * root).collect()).collect();
        for layer in 0..tiny.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let windowed = tiny.windowed(layer);
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in stream.iter_mut().enumerate() {
                let normed = self.norm(&name("attn_norm"), x);
                let q = self.product(&name("attn_q"), tiny.heads * d, &normed);
                let k = self.product(&name("attn_k"), tiny.kv_heads * d, &normed);
                let q = self.heads(&name("attn_q_norm"), windowed, position, &q);
                keys.push(self.heads(&name("attn_k_norm"), windowed, position, &k));
                values.push(self.product(&name("attn_v"), tiny.kv_heads * d, &normed));
                // A window of w tokens: the query's own, and the w - 1 before it.
                let first = match windowed {
                    true => (position + 1).saturating_sub(tiny.window),
                    false => 0,
                };
                let scale = tiny.scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
                let mut attended = Vec::new();
                for head in 0..tiny.heads {
                    let of = |row: &[f64]| -> Vec<f64> {
                        row[head / (tiny.heads / tiny.kv_heads) * d..][..d].to_vec()
                    };
                    let weight = |k: &Vec<f64>| {
                        let dot: f64 =
                            q[head * d..][..d].iter().zip(of(k)).map(|(q, k)| q * k).sum();
                        (dot * scale).exp()
                    };
                    let weights: Vec<f64> = keys[first..].iter().map(weight).collect();
                    let sum: f64 = weights.iter().sum();
                    let mut out = vec![0.0; d];
                    for (weight, value) in weights.iter().zip(&values[first..]) {
                        out.iter_mut().zip(of(value)).for_each(|(out, v)| *out += weight / sum * v);
                    }
                    attended.extend(out);
                }
                let projected = self.product(&name("attn_output"), width, &attended);
                let projected = self.norm(&name("post_attention_norm"), &projected);
                x.iter_mut().zip(projected).for_each(|(x, y)| *x += y);
                let normed = self.norm(&name("ffn_norm"), x);
                let gate = self.product(&name("ffn_gate"), tiny.feed_forward, &normed);
                let up = self.product(&name("ffn_up"), tiny.feed_forward, &normed);
                let gelu = |g: f64| {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                    0.5 * g * (1.0 + inner.tanh())
                };
                let gated: Vec<f64> = gate.iter().zip(up).map(|(&g, u)| gelu(g) * u).collect();
                let down = self.product(&name("ffn_down"), width, &gated);
                let down = self.norm(&name("post_ffw_norm"), &down);
                x.iter_mut().zip(down).for_each(|(x, y)| *x += y);
            }
        }
        stream
            .iter()
            .map(|x| {
                let x = self.norm("output_norm.weight", x);
                self.product("token_embd.weight", tiny.vocab, &x)
            })
            .collect()
    }
}

fn shapes() -> Vec<TinyGemma> {
    let tiny = TinyGemma::default;
    vec![
        tiny(),
        TinyGemma { kv_heads: 1, head_dim: 48, pattern: Pattern::Period(2), seed: 2, ..tiny() },
        TinyGemma {
            layers: 3,
            pattern: Pattern::Flags(vec![false, true, true]),
            factor: Some(8.0),
            local_base: Some(500.0),
            scale: Some(0.1),
            base: 3000.0,
            window: 1,
            seed: 3,
            ..tiny()
        },
        // No window, and one that is longer than the text.
        TinyGemma { layers: 2, window: 0, seed: 4, ..tiny() },
        TinyGemma { layers: 6, window: 64, seed: 5, ..tiny() },
    ]
}

fn tokens() -> Vec<u32> {
    (0..60u32).map(|i| (i * 7919 + 131) % 300).collect()
}

fn assert_close(got: &[f32], exact: &[f64]) {
    assert_eq!(got.len(), exact.len());
    for (got, exact) in got.iter().zip(exact) {
        assert!((f64::from(*got) - exact).abs() < 5e-4 * exact.abs().max(1.0), "{got} {exact}");
    }
}

#[test]
fn chunks_of_any_size_match_plain_loops() {
    for tiny in shapes() {
        let (_folder, file, model) = write(&tiny);
        let exact = Oracle { tiny: &tiny, file: &file }.logits(&tokens());
        for chunk in [1, 7, 20, 60] {
            let mut cache = ContiguousKv::new(model.shape().clone());
            let sequence = cache.add_sequence();
            let mut position = 0;
            for part in tokens().chunks(chunk) {
                cache.begin_step(&[(sequence, part.len())]).unwrap();
                let span = Span { tokens: part, position, logits: Logits::All };
                for (owner, row) in model.forward(&[span], &mut cache).unwrap().iter() {
                    assert_close(row, &exact[position + owner.token]);
                }
                position += part.len();
            }
        }
    }
}

#[test]
fn pages_hold_no_more_than_the_windows_ask_for_and_match_too() {
    for tiny in shapes() {
        let (_folder, file, model) = write(&tiny);
        let exact = Oracle { tiny: &tiny, file: &file }.logits(&tokens());
        for chunk in [1, 7, 60] {
            let cache = KvCache::new(&CacheConfig {
                block_tokens: 4,
                formats: FormatMap::uniform("f32".parse::<PageFormat>().unwrap()),
                capacity: Capacity::Tokens(60),
                ..CacheConfig::new(model.shape().clone(), 0)
            })
            .unwrap();
            let mut sequence = cache.sequence();
            let each = |range: std::ops::Range<usize>, rows: headwise::engine::LogitRows| {
                for (position, (_, row)) in range.zip(rows.iter()) {
                    assert_close(row, &exact[position]);
                }
                Ok::<(), EngineError>(())
            };
            let all = Logits::All;
            prefill::feed(&model, &cache, &mut sequence, &tokens(), chunk, all, each).unwrap();
        }
    }
}

/// Where the model wants a BOS, every window has one, and the text goes on where the window before ended.
#[test]
fn windows_of_a_text_begin_with_the_token_that_the_model_wants() {
    let tiny = TinyGemma { layers: 3, ..TinyGemma::default() };
    let (_folder, file, model) = write(&tiny);
    let oracle = Oracle { tiny: &tiny, file: &file };
    let text = tokens();
    for (begin, cuts) in [(Some(264), [0..19, 19..38]), (None, [0..20, 20..40])] {
        let (mut nll, mut count) = (0.0, 0);
        for cut in cuts {
            let window: Vec<u32> = begin.into_iter().chain(text[cut].iter().copied()).collect();
            for (row, &next) in oracle.logits(&window).iter().zip(&window[1..]) {
                let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
                nll += sum.ln() - row[next as usize];
                count += 1;
            }
        }
        let cache = CacheConfig::new(model.shape().clone(), 0);
        let formats = FormatMap::uniform("f32".parse::<PageFormat>().unwrap());
        let cache = CacheConfig { formats, ..cache };
        let options = PerplexityOptions { context: 20, begin, windows: 2, chunk: 7, cache };
        assert_eq!(options.windows_in(text.len()), 2);
        let got = perplexity(&model, &text, &options, |_| {}).unwrap();
        assert_eq!((got.windows, got.tokens), (2, count));
        assert!((got.nll - nll / count as f64).abs() < 1e-4, "{} {}", got.nll, nll / count as f64);
        let error = perplexity(&model, &text[..18], &options, |_| {}).unwrap_err();
        assert!(matches!(error, EngineError::TextTooShort { found: 18, .. }), "{error:?}");
    }
}

#[test]
fn the_layers_are_those_that_the_file_says() {
    for tiny in shapes() {
        let (_folder, _file, model) = write(&tiny);
        let shape = model.shape();
        assert_eq!(shape.layers(), tiny.layers);
        for (layer, shape) in shape.iter().enumerate() {
            let window = shape.window().map(|window| (window.tokens, window.sinks));
            assert_eq!(window, tiny.windowed(layer).then_some((tiny.window, 0)), "{layer}");
            assert_eq!(shape.scale(), tiny.scale.unwrap_or((tiny.head_dim as f32).sqrt().recip()));
        }
    }
}

fn refused(change: impl FnOnce(&mut Parts)) -> ModelError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyGemma::default().write_with(&path, change);
    Model::open(&path).map(drop).unwrap_err()
}

#[test]
fn numbers_that_cannot_be_are_refused_by_their_key() {
    let flags = |count| Value::Array(vec![Value::Bool(true); count]);
    for (name, value) in [
        ("attention.sliding_window", Value::String("all".into())),
        ("attention.sliding_window_pattern", Value::U32(0)),
        ("attention.sliding_window_pattern", flags(6)),
        ("attention.sliding_window_pattern", flags(8)),
        ("attention.sliding_window_pattern", Value::Array(vec![Value::U32(1); 7])),
        ("attention.scale", Value::F32(-1.0)),
        ("rope.freq_base", Value::F32(0.0)),
        ("rope.freq_base_swa", Value::F32(-5.0)),
        ("rope.dimension_count", Value::U32(34)),
    ] {
        let key = format!("gemma3.{name}");
        let error = refused(|parts| set(parts, &key, value.clone()));
        assert!(
            matches!(&error, ModelError::BadValue { key: bad, .. } if *bad == key),
            "{error:?}"
        );
    }
    // In range as they stand, and not in f32.
    for scale in [1e-60, 1e300] {
        let error = refused(|parts| set(parts, "gemma3.attention.scale", Value::F64(scale)));
        assert!(matches!(error, ModelError::Shape(_)), "{error:?}");
    }
    for (name, value) in [
        ("attention.key_length_swa", Value::U32(16)),
        ("attention.value_length_swa", Value::U32(16)),
        ("attention.value_length", Value::U32(16)),
        ("rope.dimension_count_swa", Value::U32(16)),
        ("final_logit_softcapping", Value::F32(30.0)),
        ("attn_logit_softcapping", Value::F32(50.0)),
        ("hidden_activation", Value::String("silu".into())),
    ] {
        let key = format!("gemma3.{name}");
        let error = refused(|parts| set(parts, &key, value.clone()));
        assert!(
            matches!(&error, ModelError::UnsupportedKey { key: bad, .. } if *bad == key),
            "{error:?}"
        );
    }
    // Another architecture's, and nobody's.
    for name in ["embedding_scale", "tensor_data_layout", "altup.num_inputs"] {
        let key = format!("gemma3.{name}");
        let error = refused(|parts| set(parts, &key, Value::F32(1.0)));
        assert!(
            matches!(&error, ModelError::UnknownKey { key: bad, .. } if *bad == key),
            "{error:?}"
        );
    }
    let key = "gemma3.rope.freq_base";
    let error = refused(|parts| parts.metadata.retain(|(name, _)| name != key));
    assert!(matches!(&error, ModelError::MissingKey(missing) if missing == key), "{error:?}");
    let error = refused(|parts| {
        set(parts, "gemma3.rope.scaling.factor", Value::F64(1e-320));
    });
    assert!(matches!(error, ModelError::RopeFrequency { .. }), "{error:?}");
}

#[test]
fn heads_and_tensors_that_contradict_each_other_are_refused() {
    for (name, value, tensor) in [
        ("attention.head_count", 8, "attn_q"),
        ("attention.head_count_kv", 1, "attn_k"),
        ("attention.key_length", 64, "attn_q"),
    ] {
        let error = refused(|parts| {
            set(parts, &format!("gemma3.{name}"), Value::U32(value));
            if name == "attention.key_length" {
                set(parts, "gemma3.attention.value_length", Value::U32(value));
            }
        });
        let found = format!("{error}");
        assert!(matches!(error, ModelError::TensorShape { .. }), "{found}");
        assert!(found.contains(tensor), "{found}");
    }
    let error = refused(|parts| set(parts, "gemma3.attention.head_count_kv", Value::U32(3)));
    assert!(matches!(error, ModelError::Shape(_)), "{error:?}");
    for missing in ["attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"] {
        let name = format!("blk.3.{missing}.weight");
        let error = refused(|parts| parts.tensors.retain(|(other, _)| *other != name));
        assert!(matches!(&error, ModelError::MissingTensor(found) if *found == name), "{error:?}");
    }
    for other in ["rope_freqs.weight", "blk.0.attn_q.bias"] {
        let error = refused(|parts| parts.tensors.push((other.into(), zeros(1, 32))));
        assert!(
            matches!(&error, ModelError::UnexpectedTensor(found) if found == other),
            "{error:?}"
        );
    }
}
