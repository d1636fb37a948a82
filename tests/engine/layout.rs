//! Where tensors lie, how they are stored, and models in several files.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use candle_core::quantized::gguf_file::{self, Value};
use headwise::engine::{GgufFile, Model, ModelError};
use tempfile::TempDir;

use crate::{
    files::{Bench, find, set, whole, zeros},
    tiny_llama::{Parts, TinyLlama},
};

/// Where a tensor's type and offset stand in the directory.
fn entry_of(bytes: &[u8], name: &str) -> (usize, usize) {
    let after = find(bytes, name) + name.len();
    let dimensions = u32::from_le_bytes(bytes[after..after + 4].try_into().unwrap()) as usize;
    let dtype = after + 4 + 8 * dimensions;
    (dtype, dtype + 4)
}

fn offset_of(bytes: &[u8], name: &str) -> u64 {
    let at = entry_of(bytes, name).1;
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn moved(name: &str, offset: u64) -> Result<(), ModelError> {
    let mut bytes = whole();
    let at = entry_of(&bytes, name).1;
    bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
    Bench::new().with_bytes(&bytes)
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let bytes = whole();
    let at = |name| offset_of(&bytes, name);
    // In the order of the file: attn_q is followed by attn_k.
    let (q, k) = ("blk.0.attn_q.weight", "blk.0.attn_k.weight");
    for (name, offset, inside) in
        [(k, at(q), q), (k, at(k) - 32, q), (q, at(q) + 32, q), (q, 0, "token_embd.weight")]
    {
        let error = moved(name, offset).unwrap_err();
        assert!(matches!(error, ModelError::TensorPlace { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("inside tensor") && text.contains(inside), "{text}");
    }
}

#[test]
fn offsets_that_are_not_aligned_are_refused() {
    let name = "output_norm.weight";
    let offset = offset_of(&whole(), name);
    for shift in [1, 8, 31] {
        let error = moved(name, offset - shift).unwrap_err();
        assert!(
            matches!(&error, ModelError::TensorPlace { tensor, .. } if tensor == name),
            "{error:?}"
        );
        assert!(error.to_string().contains("not a multiple of 32"), "{error}");
    }
    // The same offsets, where the file says that tensors lie at multiples of 4,096.
    let bench = Bench::new();
    let _ = bench.changed(|parts| set(parts, "general.alignment", Value::U32(1 << 12)));
    let bytes = [fs::read(bench.path()).unwrap(), vec![0; 1 << 13]].concat();
    let error = bench.with_bytes(&bytes).unwrap_err();
    assert!(error.to_string().contains("not a multiple of 4096"), "{error}");
}

#[test]
fn offsets_beyond_the_file_are_refused() {
    for offset in [1 << 20, u64::MAX - 31] {
        let error = moved("output_norm.weight", offset).unwrap_err();
        assert!(matches!(error, ModelError::TruncatedTensor { .. }), "{error:?}");
    }
}

#[test]
fn a_type_that_cannot_be_decoded_is_named_with_its_tensor() {
    let name = "blk.1.ffn_up.weight";
    for (number, kind) in [(20u32, "IQ4_NL"), (39, "MXFP4"), (15, "Q8_K"), (1000, "type 1000")] {
        let mut bytes = whole();
        let at = entry_of(&bytes, name).0;
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        let error = Bench::new().with_bytes(&bytes).unwrap_err();
        assert!(
            matches!(&error, ModelError::TensorType { tensor, found }
                if tensor == name && found == kind),
            "{error:?}"
        );
        assert!(error.to_string().starts_with(&format!("tensor {name} is stored as {kind}, ")));
    }
}

#[test]
fn entries_that_stand_twice_are_refused() {
    let bench = Bench::new();
    let key = "llama.rope.freq_base";
    for value in [10_000.0, 5.0] {
        let error = bench
            .changed(|parts| parts.metadata.push((key.into(), Value::F32(value))))
            .unwrap_err();
        assert!(
            matches!(&error, ModelError::Twice { what: "metadata key", name, .. } if name == key),
            "{error:?}"
        );
    }
    let tensor = "blk.0.attn_k.weight";
    let error =
        bench.changed(|parts| parts.tensors.push((tensor.into(), zeros(32, 64)))).unwrap_err();
    assert!(
        matches!(&error, ModelError::Twice { what: "tensor", name, .. } if name == tensor),
        "{error:?}"
    );
}

/// A tiny model in three parts, each changed by the closure, which is told its number from zero.
struct Split {
    folder: TempDir,
}

impl Split {
    const PARTS: usize = 3;

    fn write(change: impl Fn(usize, &mut Parts)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let split = Self { folder };
        TinyLlama::default().write_with(&split.folder.path().join("whole.gguf"), |whole| {
            let tensors = std::mem::take(&mut whole.tensors);
            let (all, each) = (tensors.len(), tensors.len().div_ceil(Self::PARTS));
            let mut tensors = tensors.into_iter();
            for number in 0..Self::PARTS {
                let mut parts = Parts {
                    metadata: if number == 0 { whole.metadata.clone() } else { Vec::new() },
                    tensors: tensors.by_ref().take(each).collect(),
                };
                set(&mut parts, "split.no", Value::U16(number as u16));
                set(&mut parts, "split.count", Value::U16(Self::PARTS as u16));
                set(&mut parts, "split.tensors.count", Value::I32(all as i32));
                change(number, &mut parts);
                write(&split.path(number), &parts);
            }
        });
        split
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("tiny-{:05}-of-{:05}.gguf", number + 1, Self::PARTS))
    }

    fn refusal(&self, number: usize) -> String {
        let error = GgufFile::open(self.path(number)).unwrap_err();
        assert!(matches!(error, ModelError::Split { .. }), "{error:?}");
        error.to_string()
    }
}

fn write(path: &Path, parts: &Parts) {
    let metadata: Vec<_> = parts.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<_> = parts.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

#[test]
fn a_split_model_is_the_whole_model() {
    let split = Split::write(|_, _| {});
    let bench = Bench::new();
    bench.changed(|_| {}).unwrap();
    let (whole, parts) =
        (GgufFile::open(bench.path()).unwrap(), GgufFile::open(split.path(0)).unwrap());
    assert_eq!((whole.parts(), parts.parts()), (1, 3));
    assert_eq!(whole.tensor_names().len(), parts.tensor_names().len());
    for name in whole.tensor_names() {
        let shape = whole.tensor_shape(name).unwrap();
        assert_eq!(whole.tensor(name, shape).unwrap(), parts.tensor(name, shape).unwrap());
    }
    let (whole, parts) = (Model::load(&whole).unwrap(), Model::load(&parts).unwrap());
    assert_eq!(whole.config(), parts.config());
}

#[test]
fn what_is_missing_of_a_split_model_is_said() {
    let split = Split::write(|_, _| {});
    let text = split.refusal(1);
    assert!(text.contains("part 2 of 3") && text.contains("tiny-00001-of-00003.gguf"), "{text}");

    fs::remove_file(split.path(2)).unwrap();
    let text = split.refusal(0);
    assert!(text.contains("part 1 of 3, and part 3 is missing"), "{text}");
    assert!(text.contains("tiny-00003-of-00003.gguf"), "{text}");

    let renamed = split.folder.path().join("model.gguf");
    fs::rename(split.path(0), &renamed).unwrap();
    let text = GgufFile::open(&renamed).unwrap_err().to_string();
    assert!(text.contains("part 1 of 3") && text.contains("-00001-of-00003.gguf"), "{text}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    type Change = fn(usize, &mut Parts);
    let changes: [(Change, &str); 7] = [
        (|i, p| set(p, "split.no", Value::U16([0, 2, 1][i])), "split.no is 2, expected 1"),
        (|i, p| set(p, "split.count", Value::U16([3, 3, 4][i])), "split.count is 4, expected 3"),
        (
            |i, p| set(p, "split.tensors.count", Value::I32([20, 19, 20][i])),
            "split.tensors.count is 19, expected 20",
        ),
        (|_, p| p.metadata.retain(|(key, _)| key != "split.count"), "split.count"),
        (|_, p| drop(p.tensors.pop()), "split.tensors.count is 20, its 3 parts have 17 tensors"),
        (
            |i, p| set(p, "llama.rope.freq_base", Value::F32([1e4, 1e4, 5e5][i])),
            "its llama.rope.freq_base is 500000, the first part's is 10000",
        ),
        (
            |i, p| {
                let name = ["llama", "llama", "gemma3"][i];
                set(p, "general.architecture", Value::String(name.into()));
            },
            "\"gemma3\", the first part's is \"llama\"",
        ),
    ];
    for (change, expected) in changes {
        let split = Split::write(change);
        let text = GgufFile::open(split.path(0)).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
    let split = Split::write(|number, parts| {
        if number == 2 {
            parts.tensors.push(("token_embd.weight".into(), zeros(2, 32)));
        }
    });
    let error = GgufFile::open(split.path(0)).unwrap_err();
    assert!(matches!(&error, ModelError::Twice { what: "tensor", .. }), "{error:?}");
}

#[test]
fn rows_of_a_tensor_are_those_of_the_whole() {
    let bench = Bench::new();
    TinyLlama { tied: false, ..TinyLlama::default() }.write(&bench.path());
    let file = GgufFile::open(bench.path()).unwrap();
    // Stored as Q8_0, F16 and Q4_1.
    for (name, rows) in
        [("token_embd.weight", 300), ("output.weight", 300), ("blk.1.ffn_gate.weight", 96)]
    {
        let whole = file.tensor(name, &[rows, 64]).unwrap();
        for part in [0..rows, 0..1, 5..5, 17..64, rows - 1..rows] {
            let got = file.tensor_rows(name, [rows, 64], part.clone()).unwrap();
            assert_eq!(got, whole[part.start * 64..part.end * 64], "{name} {part:?}");
        }
        let beyond = file.tensor_rows(name, [rows, 64], 1..rows + 1);
        assert!(matches!(beyond, Err(ModelError::TensorShape { .. })), "{beyond:?}");
        let other = file.tensor_rows(name, [rows, 32], 0..1);
        assert!(matches!(other, Err(ModelError::TensorShape { .. })), "{other:?}");
    }
    let missing = file.tensor_rows("none", [1, 1], 0..1);
    assert!(matches!(missing, Err(ModelError::MissingTensor(_))));
}
