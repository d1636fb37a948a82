//! SentencePiece vocabularies against the ids of the `sentencepiece` package, which
//! `benches/peers/sentencepiece_ids.py` has written to the two JSON files.

use candle_core::quantized::gguf_file::Value;
use headwise::engine::{GgufFile, ModelError, StreamDecoder, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::Value as Json;

use crate::{
    files::set,
    real_model::gemma,
    tiny_llama::{Parts, TinyLlama},
};

/// A small vocabulary of the fixture.
struct Small {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    space_first: bool,
    texts: Vec<(String, Vec<u32>)>,
}

fn texts(list: &Json) -> Vec<(String, Vec<u32>)> {
    let ids =
        |ids: &Json| ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let entries = list.as_array().unwrap().iter();
    entries.map(|entry| (entry["text"].as_str().unwrap().to_owned(), ids(&entry["ids"]))).collect()
}

fn fixture() -> Vec<Small> {
    let all: Json = serde_json::from_str(include_str!("pieces.json")).unwrap();
    let list = |entry: &Json| entry.as_array().unwrap().clone();
    let small = |entry: &Json| Small {
        tokens: list(&entry["tokens"]).iter().map(|t| t.as_str().unwrap().to_owned()).collect(),
        scores: list(&entry["scores"]).iter().map(|s| s.as_f64().unwrap() as f32).collect(),
        types: list(&entry["types"]).iter().map(|t| t.as_i64().unwrap() as i32).collect(),
        space_first: entry["space_first"].as_bool().unwrap(),
        texts: texts(&entry["texts"]),
    };
    all.as_array().unwrap().iter().map(small).collect()
}

fn list<T>(values: &[T], value: impl Fn(&T) -> Value) -> Value {
    Value::Array(values.iter().map(value).collect())
}

/// The tokenizer of a file with this vocabulary.
fn build(small: &Small, change: impl FnOnce(&mut Parts)) -> Result<Tokenizer, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pieces.gguf");
    TinyLlama::default().write_with(&path, |parts| {
        for key in ["pre", "merges", "add_bos_token"] {
            parts.metadata.retain(|(name, _)| name.strip_prefix("tokenizer.ggml.") != Some(key));
        }
        let mut set = |key: &str, value| set(parts, &format!("tokenizer.ggml.{key}"), value);
        set("model", Value::String("llama".into()));
        set("tokens", list(&small.tokens, |token| Value::String(token.clone())));
        set("scores", list(&small.scores, |score| Value::F32(*score)));
        set("token_type", list(&small.types, |kind| Value::I32(*kind)));
        set("add_space_prefix", Value::Bool(small.space_first));
        set("unknown_token_id", Value::U32(0));
        set("bos_token_id", Value::U32(1));
        set("eos_token_id", Value::U32(2));
        change(parts);
    });
    Tokenizer::from_gguf(&GgufFile::open(path).unwrap())
}

#[test]
fn ids_of_small_vocabularies_equal_those_of_sentencepiece() {
    let all = fixture();
    assert_eq!(all.len(), 4);
    for small in &all {
        let tokenizer = build(small, |_| {}).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
        assert_eq!(tokenizer.begin(), Some(1));
        assert!(tokenizer.add_bos(), "these models want one unless their file says otherwise");
        assert!(small.texts.len() > 40);
        for (text, ids) in &small.texts {
            assert_eq!(tokenizer.encode_plain(text).unwrap(), *ids, "{text:?}");
        }
    }
}

#[test]
fn ids_of_gemma_equal_those_of_sentencepiece() {
    let Some(path) = gemma() else { return };
    let tokenizer = Tokenizer::from_gguf(&GgufFile::open(path).unwrap()).unwrap();
    assert_eq!(tokenizer.vocab(), 262_144);
    let texts = texts(&serde_json::from_str(include_str!("gemma_ids.json")).unwrap());
    assert!(texts.len() >= 80);
    for (text, ids) in &texts {
        assert_eq!(tokenizer.encode_plain(text).unwrap(), *ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids).unwrap(), text.replace('▁', " "));
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(2), Some(1), true));
    // <eos> and <end_of_turn>, and not the end of struck-out text in HTML.
    assert_eq!(tokenizer.ends().collect::<Vec<_>>(), [1, 106]);
    let turn = "<start_of_turn>user\nHi</s><end_of_turn>\n";
    let ids = tokenizer.encode(turn).unwrap();
    assert_eq!((ids[0], ids[ids.len() - 2]), (105, 106));
    assert_eq!(tokenizer.decode(&ids).unwrap(), turn);
    let plain = tokenizer.encode_plain(turn).unwrap();
    assert!(!plain.iter().any(|&id| tokenizer.is_control(id)));
    assert_eq!(tokenizer.encode_prompt("<bos>Hi").unwrap(), tokenizer.encode_prompt("Hi").unwrap());
}

#[test]
fn control_tokens_are_found_only_where_they_are_asked_for() {
    for small in &fixture() {
        let tokenizer = build(small, |_| {}).unwrap();
        let (a, b) = (tokenizer.encode_plain("a").unwrap(), tokenizer.encode_plain("b").unwrap());
        let written = tokenizer.encode("<s>a</s>b").unwrap();
        assert_eq!(written, [&[1], &a[..], &[2], &b[..]].concat());
        assert_eq!(tokenizer.encode_prompt("<s>a").unwrap(), [&[1], &a[..]].concat());
        let plain = tokenizer.encode_plain_prompt("<s>a").unwrap();
        assert_eq!(plain.iter().filter(|&&id| id == 1).count(), 1, "the BOS");
        assert!(tokenizer.encode_plain("").unwrap().is_empty());
    }
}

#[test]
fn vocabularies_that_spell_not_every_text_are_refused() {
    let all = fixture();
    let refused = |change: &dyn Fn(&mut Small), parts: &dyn Fn(&mut Parts)| {
        let mut small = fixture().swap_remove(0);
        change(&mut small);
        build(&small, parts).unwrap_err()
    };
    let without = |key: &'static str| {
        refused(&|_| {}, &|parts| parts.metadata.retain(|(name, _)| name != key))
    };
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.tokens"] {
        let error = without(key);
        assert!(matches!(&error, ModelError::MissingKey(name) if name == key), "{error:?}");
    }
    let error = refused(&|small| small.scores.truncate(small.tokens.len() - 1), &|_| {});
    assert!(
        matches!(&error, ModelError::Tokenizer(TokenizerError::Count { found, tokens, .. })
            if found + 1 == *tokens),
        "{error:?}"
    );
    let error = refused(&|small| small.scores[7] = f32::NAN, &|_| {});
    assert!(error.to_string().contains("tokenizer.ggml.scores"), "{error}");
    let error = refused(&|small| small.tokens[3 + 65] = "<0x4>".into(), &|_| {});
    assert_eq!(error.to_string(), "token \"<0x4>\" should be a byte, as <0x0A> is");
    let error = refused(&|small| small.tokens[3 + 256] = "b".into(), &|_| {});
    assert!(matches!(error, ModelError::Tokenizer(TokenizerError::Duplicate { first: 259, .. })));
    // A byte is gone, and so is the token for what is unknown.
    let no_byte = |small: &mut Small| {
        small.types[3 + 65] = 3;
        small.types[0] = 3;
    };
    let key = "tokenizer.ggml.unknown_token_id";
    let error = refused(&no_byte, &|parts| parts.metadata.retain(|(name, _)| name != key));
    let expected = TokenizerError::NoFallback { byte: 65 }.to_string();
    assert_eq!(error.to_string(), expected);
    let error = refused(&|_| {}, &|parts| {
        set(parts, "tokenizer.ggml.remove_extra_whitespaces", Value::Bool(true));
    });
    assert!(matches!(error, ModelError::UnsupportedKey { .. }), "{error:?}");
    assert!(build(&all[0], |_| {}).is_ok());
}

proptest! {
    #[test]
    fn any_text_comes_back_whole_and_streamed(
        text in prop_oneof![any::<String>(), "[ abcé東\n🙂]{0,60}"],
    ) {
        // The first two can write every byte; the first begins a text with a space of its own.
        for small in &fixture()[..2] {
            let tokenizer = build(small, |_| {}).unwrap();
            let ids = tokenizer.encode_plain(&text).unwrap();
            let first = if small.space_first && !text.is_empty() { " " } else { "" };
            let whole = format!("{first}{}", text.replace('▁', " "));
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), whole.clone());
            let mut stream = StreamDecoder::default();
            let mut streamed = String::new();
            for id in ids {
                streamed.push_str(&stream.push(tokenizer.token_bytes(id).unwrap()));
            }
            prop_assert_eq!(streamed, whole);
            prop_assert_eq!(stream.finish(), "");
        }
    }
}
