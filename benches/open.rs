//! From a model file to a model: its header, its tokenizer, its weights.
//!
//! `cargo bench --bench open` times headers with the vocabularies of well-known models, and
//! `cargo bench --bench open -- MODEL.gguf` a model, phase by phase. `benches/before.sh open` runs both on an
//! earlier version too.

use std::{
    fs::File,
    io::{BufWriter, Result, Write},
    path::Path,
    time::{Duration, Instant},
};

use headwise::engine::{GgufFile, Model, Tokenizer};

const VOCABULARIES: [(&str, usize); 3] =
    [("SmolLM2", 49_152), ("Llama 3", 128_256), ("Gemma 3", 262_144)];

/// Best of five; what takes longer than a second is timed once.
fn time<T>(mut run: impl FnMut() -> T) -> (Duration, T) {
    let mut best: Option<(Duration, T)> = None;
    for _ in 0..5 {
        let start = Instant::now();
        let result = run();
        let time = start.elapsed();
        if best.as_ref().is_none_or(|(fastest, _)| time < *fastest) {
            best = Some((time, result));
        }
        if time > Duration::from_secs(1) {
            break;
        }
    }
    best.expect("five runs")
}

fn text(out: &mut impl Write, text: &str) -> Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

fn texts(out: &mut impl Write, key: &str, list: &[String]) -> Result<()> {
    text(out, key)?;
    // A list, of texts.
    out.write_all(&[9u32, 8].map(u32::to_le_bytes).concat())?;
    out.write_all(&(list.len() as u64).to_le_bytes())?;
    list.iter().try_for_each(|entry| text(out, entry))
}

/// A GGUF file without tensors whose vocabulary has `count` tokens: 256 characters, all pairs of them,
/// then threes, each with the merge that makes it.
fn write_header(path: &Path, count: usize) -> Result<()> {
    let letters: Vec<char> = (0x100..0x200).filter_map(char::from_u32).collect();
    let mut tokens: Vec<String> = letters.iter().map(char::to_string).collect();
    let mut merges = Vec::new();
    for left in 0.. {
        for letter in &letters {
            if tokens.len() < count {
                merges.push(format!("{} {letter}", tokens[left]));
                tokens.push(format!("{}{letter}", tokens[left]));
            }
        }
        if tokens.len() >= count {
            break;
        }
    }
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(b"GGUF\x03\0\0\0")?;
    out.write_all(&[0u64, 5].map(u64::to_le_bytes).concat())?;
    for (key, value) in [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "gpt-2")] {
        text(&mut out, key)?;
        out.write_all(&8u32.to_le_bytes())?;
        text(&mut out, value)?;
    }
    texts(&mut out, "tokenizer.ggml.tokens", &tokens)?;
    texts(&mut out, "tokenizer.ggml.merges", &merges)?;
    text(&mut out, "tokenizer.ggml.token_type")?;
    out.write_all(&[9u32, 5].map(u32::to_le_bytes).concat())?;
    out.write_all(&(tokens.len() as u64).to_le_bytes())?;
    out.write_all(&1u32.to_le_bytes().repeat(tokens.len()))?;
    out.flush()
}

fn phases(name: &str, path: &Path, weights: bool) {
    let bytes = path.metadata().map_or(0, |metadata| metadata.len());
    let (open, file) = time(|| GgufFile::open(path).expect("a GGUF file"));
    let (build, _) = time(|| Tokenizer::from_gguf(&file).expect("a vocabulary"));
    print!("{name:32} {:7.1} MB   open {:8.3} s", bytes as f64 / 1e6, open.as_secs_f64());
    print!("   tokenizer {:6.3} s", build.as_secs_f64());
    if weights {
        let (load, _) = time(|| Model::load(&file).expect("weights"));
        print!("   weights {:6.3} s", load.as_secs_f64());
    }
    println!();
}

fn main() {
    // Cargo adds flags of its own.
    let models: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for model in &models {
        phases("model", Path::new(model), true);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, count) in VOCABULARIES {
        let path = folder.path().join("header.gguf");
        write_header(&path, count).expect("a header");
        phases(&format!("header like {name}'s, {count}"), &path, false);
    }
}
