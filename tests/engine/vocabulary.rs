//! The tokenizer on a real vocabulary and on a small one.

use headwise::engine::{GgufFile, StreamDecoder, Tokenizer};
use proptest::prelude::*;

use crate::{real_model::real_model, tiny_llama::TinyLlama};

fn tiny() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyLlama::default().write(&path);
    Tokenizer::from_gguf(&GgufFile::open(path).unwrap()).unwrap()
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
}
