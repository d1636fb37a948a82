//! Model files that are damaged, or of another kind: typed errors, never a panic.

use std::{fs, path::PathBuf};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file::Value},
};
use headwise::engine::{GgufFile, Model, ModelError, Tokenizer, TokenizerError};
use tempfile::TempDir;

use crate::tiny_llama::{Parts, TinyLlama};

pub struct Bench {
    folder: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    pub fn changed(&self, change: impl FnOnce(&mut Parts)) -> Result<(), ModelError> {
        TinyLlama::default().write_with(&self.path(), change);
        self.load()
    }

    pub fn with_bytes(&self, bytes: &[u8]) -> Result<(), ModelError> {
        fs::write(self.path(), bytes).unwrap();
        self.load()
    }

    pub fn load(&self) -> Result<(), ModelError> {
        let file = GgufFile::open(self.path())?;
        Tokenizer::from_gguf(&file)?;
        Model::load(&file).map(drop)
    }
}

pub fn set(parts: &mut Parts, key: &str, value: Value) {
    parts.metadata.retain(|(name, _)| name != key);
    parts.metadata.push((key.to_owned(), value));
}

pub fn zeros(rows: usize, columns: usize) -> QTensor {
    let tensor = Tensor::zeros((rows, columns), candle_core::DType::F32, &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, GgmlDType::F32).unwrap()
}

pub fn whole() -> Vec<u8> {
    let bench = Bench::new();
    bench.changed(|_| {}).unwrap();
    fs::read(bench.path()).unwrap()
}

/// Where the last metadata key begins: before it lies the bulk of the header.
pub fn find(bytes: &[u8], needle: &str) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle.as_bytes()).unwrap()
}

#[test]
fn files_that_are_no_gguf() {
    let bench = Bench::new();
    let missing = GgufFile::open(bench.path()).unwrap_err();
    assert!(matches!(missing, ModelError::Io { .. }));
    for bytes in
        [&b""[..], b"GGU", b"GGUF", b"PK\x03\x04 a wheel", b"GGUF\x09\0\0\0", b"GGUF\0\0\0\0"]
    {
        let error = bench.with_bytes(bytes).unwrap_err();
        assert!(matches!(error, ModelError::NotGguf { .. }), "{error:?}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = whole();
    let bench = Bench::new();
    let directory = find(&bytes, "token_embd.weight");
    let data = find(&bytes, "output_norm.weight") + 64;
    let step = |at: usize| if at < 64 { 1 } else { 41 };
    let mut at = 0;
    while at + 32 <= bytes.len() {
        let error = bench.with_bytes(&bytes[..at]).unwrap_err();
        match error {
            ModelError::NotGguf { .. } => assert!(at < 8, "{at}: {error}"),
            ModelError::TruncatedHeader { .. } => assert!(at >= 8 && at < data, "{at}: {error}"),
            ModelError::TruncatedTensor { .. } => assert!(at > directory, "{at}: {error}"),
            other => panic!("{at}: {other}"),
        }
        at += step(at);
    }
    let last = bench.with_bytes(&bytes[..bytes.len() - 1]);
    assert!(last.is_err(), "the last tensor ends with the file");
}

#[test]
fn flipped_header_bytes_never_panic() {
    let bytes = whole();
    let bench = Bench::new();
    let header = find(&bytes, "output_norm.weight") + 64;
    let mut refused = 0;
    for at in (0..header).filter(|at| *at < 1200 || at % 7 == 0) {
        for mask in [1 << (at % 8), 0xff, 0x80] {
            let mut damaged = bytes.clone();
            damaged[at] ^= mask;
            refused += usize::from(bench.with_bytes(&damaged).is_err());
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn an_alignment_that_would_divide_by_zero() {
    for value in [Value::U32(0), Value::U32(24), Value::U32(1), Value::U64(32)] {
        // candle takes the second key for the first.
        for key in ["general.alignment", "general.alignment\0\0"] {
            let value = value.clone();
            let error = Bench::new().changed(|parts| set(parts, key, value)).unwrap_err();
            assert!(matches!(error, ModelError::MalformedHeader { .. }), "{error:?}");
            assert!(error.to_string().contains("alignment"));
        }
    }
}

#[test]
fn arrays_of_absurd_length_are_not_allocated() {
    let mut bytes = whole();
    let key = find(&bytes, "tokenizer.ggml.token_type");
    // After the key: u32 type (array), u32 element type, u64 length.
    let length = key + "tokenizer.ggml.token_type".len() + 8;
    bytes[length..length + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let error = Bench::new().with_bytes(&bytes).unwrap_err();
    assert!(matches!(error, ModelError::MalformedHeader { .. }), "{error:?}");
}

#[test]
fn tensors_whose_size_overflows() {
    let mut bytes = whole();
    let name = "token_embd.weight";
    // After the name: u32 dimensions, then u64 each.
    let dims = find(&bytes, name) + name.len() + 4;
    bytes[dims..dims + 8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    let error = Bench::new().with_bytes(&bytes).unwrap_err();
    assert!(matches!(error, ModelError::MalformedHeader { .. }), "{error:?}");
    bytes[dims..dims + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let error = Bench::new().with_bytes(&bytes).unwrap_err();
    assert!(matches!(error, ModelError::TruncatedTensor { .. }), "{error:?}");
}

#[test]
fn other_architectures_and_missing_keys() {
    let bench = Bench::new();
    let error = bench
        .changed(|parts| set(parts, "general.architecture", Value::String("gemma2".into())))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "model architecture \"gemma2\" is not supported, only \"llama\" and \"gemma3\" are"
    );
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ] {
        let error =
            bench.changed(|parts| parts.metadata.retain(|(name, _)| name != key)).unwrap_err();
        assert!(matches!(&error, ModelError::MissingKey(missing) if missing == key), "{error:?}");
    }
}

#[test]
fn values_that_make_no_model() {
    let bench = Bench::new();
    for (key, value) in [
        ("llama.block_count", Value::U32(0)),
        ("llama.vocab_size", Value::U32(0)),
        ("llama.context_length", Value::String("long".into())),
        ("llama.attention.head_count", Value::I32(-4)),
        ("llama.rope.dimension_count", Value::U32(15)),
        ("llama.rope.dimension_count", Value::U32(18)),
        ("llama.rope.freq_base", Value::F32(0.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
        // In range as they stand, and not as the forward pass has them.
        ("llama.attention.layer_norm_rms_epsilon", Value::F64(1e-60)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F64(1e300)),
        // More than positions are counted to.
        ("llama.context_length", Value::U64(1 << 32)),
    ] {
        let error = bench.changed(|parts| set(parts, key, value)).unwrap_err();
        assert!(matches!(&error, ModelError::BadValue { key: bad, .. } if bad == key), "{error:?}");
    }
    let error = bench
        .changed(|parts| set(parts, "llama.attention.head_count_kv", Value::U32(3)))
        .unwrap_err();
    assert!(matches!(error, ModelError::Shape(_)), "{error:?}");
    let error =
        bench.changed(|parts| set(parts, "llama.attention.head_count", Value::U32(6))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "metadata key llama.embedding_length is 64, with 6 heads, expected a multiple of \
         attention.head_count"
    );
}

#[test]
fn frequencies_without_end_are_refused() {
    let bench = Bench::new();
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        let error = bench.changed(|parts| set(parts, key, Value::F64(1e-320))).unwrap_err();
        assert!(matches!(error, ModelError::RopeFrequency { pair: 0, .. }), "{key}: {error:?}");
    }
}

#[test]
fn tensors_missing_misshapen_or_unknown() {
    let bench = Bench::new();
    for missing in ["token_embd.weight", "blk.1.ffn_up.weight", "output_norm.weight"] {
        let error =
            bench.changed(|parts| parts.tensors.retain(|(name, _)| name != missing)).unwrap_err();
        assert!(matches!(&error, ModelError::MissingTensor(name) if name == missing), "{error:?}");
    }
    let error = bench
        .changed(|parts| {
            let name = "blk.0.attn_k.weight";
            parts.tensors.retain(|(other, _)| other != name);
            parts.tensors.push((name.into(), zeros(64, 64)));
        })
        .unwrap_err();
    assert!(
        matches!(&error, ModelError::TensorShape { tensor, expected, found }
            if tensor == "blk.0.attn_k.weight" && expected == &[32, 64] && found == &[64, 64]),
        "{error:?}"
    );
    let error = bench
        .changed(|parts| parts.tensors.push(("blk.0.attn_q.bias".into(), zeros(1, 64))))
        .unwrap_err();
    assert!(matches!(&error, ModelError::UnexpectedTensor(name) if name == "blk.0.attn_q.bias"));
    let error = bench.changed(|parts| set(parts, "llama.block_count", Value::U32(3))).unwrap_err();
    assert!(matches!(error, ModelError::MissingTensor(_)), "{error:?}");
}

#[test]
fn more_tokens_than_rows_of_the_embedding() {
    let extend = |parts: &mut Parts, key: &str, value: Value| {
        let entry = parts.metadata.iter_mut().find(|(name, _)| name == key);
        let Some((_, Value::Array(values))) = entry else { panic!("no list {key}") };
        values.push(value);
    };
    let grow = |parts: &mut Parts| {
        extend(parts, "tokenizer.ggml.tokens", Value::String("one more".into()));
        extend(parts, "tokenizer.ggml.token_type", Value::I32(1));
    };
    let stated = Bench::new().changed(grow).unwrap_err();
    let counted = Bench::new().changed(|parts| {
        grow(parts);
        parts.metadata.retain(|(name, _)| name != "llama.vocab_size");
    });
    for error in [stated, counted.unwrap_err()] {
        assert!(matches!(error, ModelError::Vocabulary { tokens: 301, vocab: 300 }), "{error:?}");
    }
}

#[test]
fn vocabularies_of_another_kind() {
    let bench = Bench::new();
    let text = |text: &str| Value::String(text.into());
    let error = bench.changed(|parts| set(parts, "tokenizer.ggml.model", text("t5"))).unwrap_err();
    assert!(matches!(error, ModelError::Tokenizer(TokenizerError::Model(_))), "{error:?}");
    let error =
        bench.changed(|parts| set(parts, "tokenizer.ggml.pre", text("tekken"))).unwrap_err();
    assert!(matches!(error, ModelError::Tokenizer(TokenizerError::PreTokenizer(_))), "{error:?}");
    let error = bench
        .changed(|parts| set(parts, "tokenizer.ggml.token_type", Value::Array(vec![])))
        .unwrap_err();
    assert!(
        matches!(error, ModelError::Tokenizer(TokenizerError::Count { found: 0, tokens: 300, .. })),
        "{error:?}"
    );
    let error = bench
        .changed(|parts| set(parts, "tokenizer.ggml.eos_token_id", Value::U32(300)))
        .unwrap_err();
    assert!(matches!(error, ModelError::Tokenizer(TokenizerError::Count { .. })), "{error:?}");
}
