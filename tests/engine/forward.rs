//! The forward pass against the f64 reference, in every way to cut text into steps.

use headwise::engine::{
    ContiguousKv, EngineError, GgufFile, LogitRow, Logits, Model, NllSum, Span, Tokenizer, argmax,
};

use crate::{real_model::real_model, reference, tiny_llama::TinyLlama};

fn write(tiny: &TinyLlama) -> (tempfile::TempDir, GgufFile, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny.write(&path);
    let file = GgufFile::open(&path).unwrap();
    let model = Model::load(&file).unwrap();
    (folder, file, model)
}

fn tokens(count: usize, salt: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 7919 + salt * 131) % 300).collect()
}

fn assert_close(got: &[f32], exact: &[f64]) {
    assert_eq!(got.len(), exact.len());
    for (got, exact) in got.iter().zip(exact) {
        assert!((f64::from(*got) - exact).abs() < 2e-4 * exact.abs().max(1.0), "{got} {exact}");
    }
}

#[test]
fn chunks_of_any_size_match_the_reference() {
    let shapes = [
        TinyLlama::default(),
        TinyLlama { tied: false, seed: 2, ..TinyLlama::default() },
        TinyLlama { heads: 6, kv_heads: 1, head_dim: 32, seed: 3, ..TinyLlama::default() },
        TinyLlama {
            heads: 2,
            kv_heads: 2,
            head_dim: 80,
            layers: 1,
            seed: 4,
            ..TinyLlama::default()
        },
    ];
    for tiny in shapes {
        let (_folder, file, model) = write(&tiny);
        let tokens = tokens(60, 1);
        let exact = reference::logits(&file, &tokens);
        for chunk in [1, 7, 20, 60] {
            let mut cache = ContiguousKv::new(model.shape().clone());
            let sequence = cache.add_sequence();
            let mut position = 0;
            for part in tokens.chunks(chunk) {
                cache.begin_step(&[(sequence, part.len())]).unwrap();
                let span = Span { tokens: part, position, logits: Logits::All };
                let rows = model.forward(&[span], &mut cache).unwrap();
                assert_eq!(rows.len(), part.len());
                for (owner, row) in rows.iter() {
                    assert_close(row, &exact[position + owner.token]);
                }
                position += part.len();
            }
        }
    }
}

#[test]
fn sequences_in_one_step_do_not_see_each_other() {
    let (_folder, file, model) = write(&TinyLlama::default());
    let texts = [tokens(30, 1), tokens(12, 2), tokens(21, 3)];
    let mut cache = ContiguousKv::new(model.shape().clone());
    let ids: Vec<_> = texts.iter().map(|_| cache.add_sequence()).collect();
    // First parts of unequal length, then the rest: one of them token by token with the others.
    let cuts = [20, 11, 1];
    let wants = [Logits::None, Logits::Last, Logits::All];
    let step: Vec<_> = ids.iter().copied().zip(cuts).collect();
    cache.begin_step(&step).unwrap();
    let spans: Vec<_> = (0..3)
        .map(|i| Span { tokens: &texts[i][..cuts[i]], position: 0, logits: wants[i] })
        .collect();
    let rows = model.forward(&spans, &mut cache).unwrap();
    let owners: Vec<LogitRow> = rows.iter().map(|(owner, _)| owner).collect();
    assert_eq!(owners, [LogitRow { span: 1, token: 10 }, LogitRow { span: 2, token: 0 }]);
    let exact: Vec<_> = texts.iter().map(|text| reference::logits(&file, text)).collect();
    assert_close(rows.get(0).unwrap().1, &exact[1][10]);
    assert_close(rows.last_of(2).unwrap(), &exact[2][0]);
    assert!(rows.last_of(0).is_none() && rows.get(2).is_none());

    let step: Vec<_> = (0..3).map(|i| (ids[i], texts[i].len() - cuts[i])).collect();
    cache.begin_step(&step).unwrap();
    let spans: Vec<_> = (0..3)
        .map(|i| Span { tokens: &texts[i][cuts[i]..], position: cuts[i], logits: Logits::All })
        .collect();
    for (owner, row) in model.forward(&spans, &mut cache).unwrap().iter() {
        assert_close(row, &exact[owner.span][cuts[owner.span] + owner.token]);
    }
}

#[test]
fn refuses_steps_before_the_cache_sees_them() {
    let (_folder, _file, model) = write(&TinyLlama::default());
    let mut cache = ContiguousKv::new(model.shape().clone());
    let span = |tokens, position| Span { tokens, position, logits: Logits::Last };
    let mut run = |span| model.forward(&[span], &mut cache).unwrap_err();
    assert!(matches!(run(span(&[], 0)), EngineError::EmptySpan { span: 0 }));
    assert!(matches!(run(span(&[300], 0)), EngineError::TokenId { token: 300, vocab: 300 }));
    let beyond = EngineError::ContextExceeded { needed: 257, context: 256 };
    assert_eq!(run(span(&[1, 2], 255)).to_string(), beyond.to_string());
    assert!(matches!(run(span(&[1], usize::MAX)), EngineError::ContextExceeded { .. }));
    // Nothing was announced to the cache: it says so instead of indexing out of bounds.
    assert!(matches!(run(span(&[1], 0)), EngineError::StepShape { .. }));
}

#[test]
fn the_real_model_predicts_what_everybody_knows() {
    let Some(path) = real_model() else { return };
    let file = GgufFile::open(path).unwrap();
    let (model, tokenizer) = (Model::load(&file).unwrap(), Tokenizer::from_gguf(&file).unwrap());
    assert_eq!(model.shape().heads(), 90);
    let text = "One, two, three, four, five, six, seven, eight,";
    let prompt = tokenizer.encode(text).unwrap();
    let mut cache = ContiguousKv::new(model.shape().clone());
    let sequence = cache.add_sequence();
    cache.begin_step(&[(sequence, prompt.len())]).unwrap();
    let span = Span { tokens: &prompt, position: 0, logits: Logits::All };
    let rows = model.forward(&[span], &mut cache).unwrap();
    let mut likelihood = NllSum::default();
    for ((_, row), &next) in rows.iter().zip(&prompt[1..]) {
        likelihood.add(row, next).unwrap();
    }
    // A wrong RoPE layout or a lost scale gives thousands.
    assert!(likelihood.perplexity().unwrap() < 12.0, "{likelihood:?}");

    let prompt = tokenizer.encode("The capital of France is").unwrap();
    let sequence = cache.add_sequence();
    cache.begin_step(&[(sequence, prompt.len())]).unwrap();
    let span = Span { tokens: &prompt, position: 0, logits: Logits::Last };
    let rows = model.forward(&[span], &mut cache).unwrap();
    let next = argmax(rows.last_of(0).unwrap()).unwrap();
    assert_eq!(tokenizer.decode(&[next]).unwrap(), " Paris");
}
