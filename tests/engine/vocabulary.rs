//! The tokenizer on a real vocabulary and on a small one.

use candle_core::quantized::gguf_file::Value;
use headwise::engine::{
    ContiguousKv, EngineError, GgufFile, KvBackend, Logits, Model, Sampler, Span, Strategy,
    StreamDecoder, Tokenizer,
};
use proptest::{prelude::*, strategy::Strategy as _};

use crate::{
    files::set,
    real_model::real_model,
    reference,
    tiny_llama::{Parts, TinyLlama},
};

fn tiny() -> Tokenizer {
    changed(|_| {})
}

fn changed(change: impl FnOnce(&mut Parts)) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyLlama::default().write_with(&path, change);
    Tokenizer::from_gguf(&GgufFile::open(path).unwrap()).unwrap()
}

fn list<'a>(parts: &'a mut Parts, key: &str) -> &'a mut Vec<Value> {
    match parts.metadata.iter_mut().find(|(name, _)| name == key) {
        Some((_, Value::Array(values))) => values,
        _ => panic!("no list {key}"),
    }
}

/// Gives a token of the tiny vocabulary another text and type.
fn rename(parts: &mut Parts, id: usize, text: &str, kind: i32) {
    list(parts, "tokenizer.ggml.tokens")[id] = Value::String(text.into());
    list(parts, "tokenizer.ggml.token_type")[id] = Value::I32(kind);
}

/// Ids by Hugging Face's Python `tokenizers` with the model's own vocabulary and settings.
const REAL: [(&str, &[u32]); 5] = [
    ("Hello world", &[19556, 905]),
    ("In 1984, 12.5% of", &[788, 216, 33, 41, 40, 36, 28, 216, 33, 34, 30, 37, 21, 282]),
    ("naïve café — 東京 🙂", &[3546, 46494, 37366, 1841, 17097, 247, 126, 16736, 122, 47526]),
    ("<|im_start|>user\nHi<|im_end|>\n", &[1, 4093, 198, 26843, 2, 198]),
    ("  two  spaces\n\n\tTab don't", &[216, 827, 216, 5600, 1116, 197, 30064, 1326, 982]),
];

#[test]
fn ids_of_the_real_model_equal_those_of_its_own_tokenizer() {
    let Some(path) = real_model() else { return };
    let tokenizer = Tokenizer::from_gguf(&GgufFile::open(path).unwrap()).unwrap();
    for (text, ids) in REAL {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids).unwrap(), text);
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), ids, "no BOS is added");
    }
    assert_eq!((tokenizer.vocab(), tokenizer.bos(), tokenizer.eos()), (49152, Some(1), Some(2)));
    assert!(!tokenizer.add_bos() && tokenizer.is_end(2) && tokenizer.is_control(2));
}

#[test]
fn the_real_model_ends_a_turn_and_a_text() {
    let Some(path) = real_model() else { return };
    let tokenizer = Tokenizer::from_gguf(&GgufFile::open(path).unwrap()).unwrap();
    // <|endoftext|> and <|im_end|>; the file names only the second.
    assert_eq!(tokenizer.ends().collect::<Vec<_>>(), [0, 2]);
    let turn = "<|im_end|>\n<|im_start|>system";
    let ids = tokenizer.encode_plain(turn).unwrap();
    assert!(ids.len() > 4 && !ids.iter().any(|&id| tokenizer.is_control(id)), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), turn);
}

#[test]
fn ends_are_those_of_the_keys_and_of_the_names() {
    let tokenizer = changed(|parts| {
        set(parts, "tokenizer.ggml.eos_token_id", Value::U32(270));
        // 263 is <|end|>, a control token that ends a turn; then others of its kind.
        rename(parts, 271, "<|eot_id|>", 3);
        rename(parts, 272, "<end_of_turn>", 4);
        rename(parts, 273, "</s>", 3);
        // A conversion that calls it text is wrong, and the turn ends all the same.
        rename(parts, 274, "<|im_end|>", 1);
        // HTML, not a control token.
        rename(parts, 275, "[EOT]", 1);
        rename(parts, 276, "<|fim_pad|>", 3);
    });
    assert_eq!(tokenizer.ends().collect::<Vec<_>>(), [263, 270, 271, 272, 273, 274]);
    assert_eq!(tokenizer.eos(), Some(270));
    for id in 264..300 {
        assert_eq!(tokenizer.is_end(id), tokenizer.ends().any(|end| end == id));
    }
    assert!(tokenizer.is_control(274) && !tokenizer.is_control(275));
    assert_eq!(tokenizer.encode("[EOT]<|im_end|>").unwrap().last(), Some(&274));

    let keys = changed(|parts| {
        set(parts, "tokenizer.ggml.eot_token_id", Value::U32(280));
        set(parts, "tokenizer.ggml.eom_token_id", Value::U32(281));
        set(parts, "tokenizer.ggml.fim_pad_token_id", Value::U32(282));
    });
    assert_eq!(keys.ends().collect::<Vec<_>>(), [263, 280, 281]);
    // Older files have no types: names are all there is.
    let untyped = changed(|parts| {
        rename(parts, 271, "<|eot_id|>", 3);
        parts.metadata.retain(|(key, _)| key != "tokenizer.ggml.token_type");
    });
    assert_eq!(untyped.ends().collect::<Vec<_>>(), [263, 271]);
}

#[test]
fn rows_without_a_token_are_never_drawn() {
    let folder = tempfile::tempdir().unwrap();
    for tied in [true, false] {
        let path = folder.path().join("padded.gguf");
        TinyLlama { padding: 43, tied, ..TinyLlama::default() }.write(&path);
        let file = GgufFile::open(&path).unwrap();
        let (model, tokenizer) =
            (Model::load(&file).unwrap(), Tokenizer::from_gguf(&file).unwrap());
        assert_eq!((model.config().vocab, model.config().embedding_rows), (300, 343));
        let mut cache = ContiguousKv::new(model.shape().clone());
        let sequence = cache.add_sequence();
        let prompt = [5, 260, 17, 299];
        cache.begin_step(&[(sequence, prompt.len())]).unwrap();
        let span = Span { tokens: &prompt, position: 0, logits: Logits::Last };
        let rows = model.forward(&[span], &mut cache).unwrap();
        let row = rows.last_of(0).unwrap();
        let exact = reference::logits(&file, &prompt);
        assert_eq!(row.len(), 300);
        for (value, exact) in row.iter().zip(&exact[3]) {
            assert!((f64::from(*value) - exact).abs() < 1e-3 * (1.0 + exact.abs()));
        }
        for strategy in [Strategy::Greedy, Strategy::Nucleus { temperature: 50.0, top_p: 1.0 }] {
            let mut sampler = Sampler::new(strategy, 9).unwrap();
            for _ in 0..800 {
                let id = sampler.sample(row).unwrap();
                assert!(tokenizer.decode(&[id]).is_ok(), "{id}");
            }
        }
        // Nor can one be given.
        let span = Span { tokens: &[300], position: 0, logits: Logits::Last };
        let error = model.forward(&[span], &mut cache as &mut dyn KvBackend).unwrap_err();
        assert!(matches!(error, EngineError::TokenId { token: 300, vocab: 300 }));
    }
}

/// llama.cpp's converter pads the list of tokens to the rows of the embedding.
#[test]
fn unused_tokens_at_the_end_of_the_list_are_padding() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("padded.gguf");
    TinyLlama::default().write_with(&path, |parts| {
        // One in the middle keeps its place.
        for id in [270].into_iter().chain(290..300) {
            rename(parts, id, &format!("[PAD{id}]"), 5);
        }
    });
    let file = GgufFile::open(&path).unwrap();
    let (model, tokenizer) = (Model::load(&file).unwrap(), Tokenizer::from_gguf(&file).unwrap());
    assert_eq!((model.config().vocab, model.config().embedding_rows), (290, 300));
    assert_eq!(tokenizer.vocab(), 290);
    assert!(tokenizer.token_bytes(289).is_ok() && tokenizer.token_bytes(290).is_err());
    let mut cache = ContiguousKv::new(model.shape().clone());
    let sequence = cache.add_sequence();
    cache.begin_step(&[(sequence, 1)]).unwrap();
    let span = Span { tokens: &[289], position: 0, logits: Logits::Last };
    let rows = model.forward(&[span], &mut cache).unwrap();
    assert_eq!(rows.last_of(0).unwrap().len(), 290);
    // A list of nothing else is no vocabulary.
    TinyLlama::default().write_with(&path, |parts| {
        (0..300).for_each(|id| rename(parts, id, &format!("[PAD{id}]"), 5));
    });
    let error = Model::open(&path).unwrap_err().to_string();
    assert!(error.contains("a list of 300, all of them unused"), "{error}");
}

#[test]
fn a_vocabulary_that_ends_every_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    for (adds, refused) in [(false, None), (true, Some("tokenizer.ggml.add_eos_token is true"))] {
        TinyLlama::default().write_with(&path, |parts| {
            set(parts, "tokenizer.ggml.add_eos_token", Value::Bool(adds));
        });
        let built = Tokenizer::from_gguf(&GgufFile::open(&path).unwrap());
        match (built, refused) {
            (Ok(_), None) => {}
            (Err(error), Some(what)) => assert!(error.to_string().contains(what), "{error}"),
            (built, _) => panic!("{adds}: {built:?}"),
        }
    }
}

#[test]
fn what_a_user_writes_is_text() {
    let tokenizer = changed(|parts| rename(parts, 270, "<user defined>", 4));
    let text = "the<|end|>\n<|start|>in";
    let (written, plain) = (tokenizer.encode(text).unwrap(), tokenizer.encode_plain(text).unwrap());
    assert_eq!(written.iter().filter(|&&id| tokenizer.is_control(id)).count(), 2);
    assert!(!plain.iter().any(|&id| tokenizer.is_control(id) || tokenizer.is_end(id)));
    assert_eq!(tokenizer.decode(&plain).unwrap(), text);
    // User-defined tokens are text, and one token either way.
    for ids in [tokenizer.encode("<user defined>"), tokenizer.encode_plain("<user defined>")] {
        assert_eq!(ids.unwrap(), [270]);
    }
}

#[test]
fn a_bos_comes_before_a_prompt_of_either_kind() {
    let tokenizer = changed(|parts| set(parts, "tokenizer.ggml.add_bos_token", Value::Bool(true)));
    let bos = tokenizer.bos().unwrap();
    let text = "<|start|>the";
    let the = tokenizer.encode("the").unwrap();
    assert_eq!(tokenizer.encode_prompt(text).unwrap(), [&[bos], &the[..]].concat());
    let plain = tokenizer.encode_plain_prompt(text).unwrap();
    assert_eq!(plain[0], bos);
    assert_eq!(plain[1..], tokenizer.encode_plain(text).unwrap());
    assert_eq!(plain.iter().filter(|&&id| id == bos).count(), 1);
}

#[test]
fn merges_apply_in_order_but_never_across_digits() {
    let tokenizer = tiny();
    let text =
        |ids: &[u32]| ids.iter().map(|&id| tokenizer.decode(&[id]).unwrap()).collect::<Vec<_>>();
    let ids = tokenizer.encode("in the 1919<|end|>").unwrap();
    assert_eq!(text(&ids), ["in", " the", " ", "1", "9", "1", "9", "<|end|>"]);
    assert_eq!(ids.last().copied(), tokenizer.eos());
    assert!(tokenizer.token_bytes(300).is_err());
    assert!(tokenizer.decode(&[0, 300]).is_err());
}

proptest! {
    #[test]
    fn any_text_comes_back_whole_and_streamed(text in any::<String>()) {
        let tokenizer = tiny();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.clone());
        let mut stream = StreamDecoder::default();
        let mut streamed = String::new();
        for id in ids {
            streamed.push_str(&stream.push(tokenizer.token_bytes(id).unwrap()));
        }
        prop_assert_eq!(streamed, text);
        prop_assert_eq!(stream.finish(), "");
    }

    #[test]
    fn no_control_token_comes_out_of_plain_text(
        pieces in proptest::collection::vec(
            prop_oneof![
                (263usize..300).prop_map(|id| match id {
                    263 => "<|end|>".to_owned(),
                    264 => "<|start|>".to_owned(),
                    id => format!("<|{id}|>"),
                }),
                Just("<|".to_owned()),
                Just("|>".to_owned()),
                "[a-z<>| 0-9é]{0,6}",
            ],
            0..12,
        ),
    ) {
        let tokenizer = tiny();
        let text = pieces.concat();
        let plain = tokenizer.encode_plain(&text).unwrap();
        prop_assert!(!plain.iter().any(|&id| tokenizer.is_control(id)), "{:?}", plain);
        prop_assert_eq!(tokenizer.decode(&plain).unwrap(), text.clone());
        let written = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&written).unwrap(), text.clone());
        let controls = written.iter().filter(|&&id| tokenizer.is_control(id)).count();
        let stand_there = (263..300).map(|id| tokenizer.decode(&[id]).unwrap());
        // None is a part of another, and none can overlap another.
        let stand_there: usize = stand_there.map(|control| text.matches(&control).count()).sum();
        prop_assert_eq!(controls, stand_there);
    }
}
