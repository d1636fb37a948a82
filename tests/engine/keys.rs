//! Metadata keys that change the mathematics: read, neutral, or refused by name.

use candle_core::quantized::gguf_file::Value;
use headwise::engine::{GgufFile, ModelConfig, ModelError, RopeScaling};

use crate::files::{Bench, set};

fn text(text: &str) -> Value {
    Value::String(text.into())
}

/// Head dimension 16, context 256.
fn neutral_and_other() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
    use Value::{Array, Bool, F32, U32};
    vec![
        ("attention.sliding_window", vec![U32(0), U32(256), U32(4096)], vec![U32(1), U32(255)]),
        ("attention.scale", vec![F32(0.25), F32(0.0)], vec![F32(0.015625), F32(1.0)]),
        ("attention.output_scale", vec![F32(1.0)], vec![F32(0.5)]),
        ("attention.clamp_kqv", vec![F32(0.0)], vec![F32(8.0)]),
        ("attention.max_alibi_bias", vec![F32(0.0)], vec![F32(8.0)]),
        ("attention.temperature_scale", vec![F32(0.0)], vec![F32(0.1)]),
        ("attention.causal", vec![Bool(true)], vec![Bool(false), U32(1)]),
        ("attention.value_length", vec![U32(16)], vec![U32(32)]),
        ("attention.kv_lora_rank", vec![U32(0)], vec![U32(512)]),
        ("logit_scale", vec![F32(1.0), U32(1)], vec![F32(0.0625), F32(8.0), F32(f32::NAN)]),
        ("residual_scale", vec![F32(1.0)], vec![F32(0.22)]),
        ("embedding_scale", vec![F32(1.0)], vec![F32(12.0)]),
        ("final_logit_softcapping", vec![F32(0.0)], vec![F32(30.0)]),
        ("attn_logit_softcapping", vec![F32(0.0)], vec![F32(50.0), text("0")]),
        ("use_parallel_residual", vec![Bool(false)], vec![Bool(true)]),
        ("hidden_activation", vec![text("silu")], vec![text("gelu")]),
        ("expert_count", vec![U32(0)], vec![U32(8)]),
        ("expert_used_count", vec![U32(0)], vec![U32(2)]),
        ("pooling_type", vec![U32(0)], vec![U32(1)]),
        ("rope.scaling.attn_factor", vec![F32(1.0)], vec![F32(1.19)]),
        ("rope.scaling.yarn_ext_factor", vec![F32(0.0)], vec![F32(1.0)]),
        ("rope.dimension_sections", vec![Array(vec![U32(0); 4])], vec![Array(vec![U32(8); 4])]),
    ]
}

#[test]
fn keys_that_change_the_mathematics_pass_only_where_they_do_not() {
    let bench = Bench::new();
    for (name, neutral, others) in neutral_and_other() {
        let key = format!("llama.{name}");
        for value in neutral {
            let passed = bench.changed(|parts| set(parts, &key, value.clone()));
            assert!(passed.is_ok(), "{key} {value:?}: {passed:?}");
        }
        for value in others {
            let error = bench.changed(|parts| set(parts, &key, value.clone())).unwrap_err();
            assert!(
                matches!(&error, ModelError::UnsupportedKey { key: named, .. } if *named == key),
                "{key} {value:?}: {error:?}"
            );
        }
    }
    let error =
        bench.changed(|parts| set(parts, "llama.logit_scale", Value::F32(0.0625))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "metadata key llama.logit_scale is 0.0625, which is not supported, only 1 is"
    );
}

#[test]
fn keys_of_the_architecture_that_nobody_knows_are_refused() {
    let bench = Bench::new();
    for key in ["llama.attention.layer_norm_epsilon", "llama.ssm.state_size", "llama.new.idea"] {
        let error = bench.changed(|parts| set(parts, key, Value::F32(0.0))).unwrap_err();
        assert!(
            matches!(&error, ModelError::UnknownKey { key: named, .. } if named == key),
            "{error:?}"
        );
    }
    for key in ["general.new.idea", "llamas.new.idea", "gemma3.attention.sliding_window", "other"] {
        bench.changed(|parts| set(parts, key, Value::U32(7))).unwrap();
    }
    for key in ["llama.rope.scaling.original_context_length", "llama.rope.scaling.yarn_beta_fast"] {
        bench.changed(|parts| set(parts, key, Value::U32(32))).unwrap();
    }
}

fn scaling(entries: &[(&str, Value)]) -> Result<RopeScaling, ModelError> {
    let bench = Bench::new();
    bench.changed(|parts| {
        for (key, value) in entries {
            set(parts, &format!("llama.rope.{key}"), value.clone());
        }
    })?;
    Ok(ModelConfig::read(&GgufFile::open(bench.path()).unwrap()).unwrap().rope.scaling)
}

#[test]
fn rope_scaling_is_read_or_refused() {
    let (kind, factor, old) = ("scaling.type", "scaling.factor", "scale_linear");
    let number = Value::F32;
    for (entries, expected) in [
        (vec![], RopeScaling::None),
        (vec![(kind, text("linear")), (factor, number(2.0))], RopeScaling::Linear(2.0)),
        // As llama.cpp: without a type it is linear.
        (vec![(factor, number(4.0))], RopeScaling::Linear(4.0)),
        (vec![(old, number(4.0))], RopeScaling::Linear(4.0)),
        (vec![(kind, text("linear")), (old, number(8.0))], RopeScaling::Linear(8.0)),
        (vec![(factor, number(2.0)), (old, number(2.0))], RopeScaling::Linear(2.0)),
        (vec![(factor, number(1.0))], RopeScaling::None),
        (vec![(kind, text("none")), (factor, number(4.0))], RopeScaling::None),
    ] {
        assert_eq!(scaling(&entries).unwrap(), expected, "{entries:?}");
    }
    let error = scaling(&[(kind, text("yarn")), (factor, number(2.0))]).unwrap_err();
    assert!(matches!(&error, ModelError::RopeScaling(name) if name == "yarn"), "{error:?}");
    let error = scaling(&[(kind, text("linear"))]).unwrap_err();
    assert!(matches!(&error, ModelError::MissingKey(key) if key.ends_with(factor)), "{error:?}");
    for (entries, bad) in [
        (vec![(factor, number(0.0))], factor),
        (vec![(factor, number(f32::INFINITY))], factor),
        (vec![(factor, text("2"))], factor),
        (vec![(old, number(-1.0))], old),
        (vec![(factor, number(2.0)), (old, number(4.0))], old),
    ] {
        let error = scaling(&entries).unwrap_err();
        assert!(
            matches!(&error, ModelError::BadValue { key, .. } if key.ends_with(bad)),
            "{error:?}"
        );
    }
}
