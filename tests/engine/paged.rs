//! The model on the paged cache, against the same model on a plain contiguous one.

use std::sync::Arc;

use headwise::{
    cache::{CacheConfig, Capacity, FormatMap, KvCache},
    engine::{ContiguousKv, Logits, Model, Span, Tokenizer, argmax, prefill},
    evict::{Budget, Policy, ScorerKind},
    format::{PageFormat, SlotFormat},
};

use crate::{real_model::real_model, tiny_llama::TinyLlama};

fn tiny() -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyLlama { heads: 6, kv_heads: 2, head_dim: 32, ..TinyLlama::default() }.write(&path);
    let model = Model::open(&path).unwrap();
    (folder, model)
}

fn cache(model: &Model, format: PageFormat, tokens: usize) -> KvCache {
    let formats = FormatMap::uniform(format);
    let capacity = Capacity::Tokens(tokens);
    KvCache::new(&CacheConfig { formats, capacity, ..CacheConfig::new(model.shape().clone(), 0) })
        .unwrap()
}

/// Greedy tokens and all logits after `prompt`, on a contiguous cache.
fn contiguous(model: &Model, prompt: &[u32], tokens: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
    let mut kv = ContiguousKv::new(model.shape().clone());
    let id = kv.add_sequence();
    let mut fed = prompt.to_vec();
    let (mut position, mut logits) = (0, Vec::new());
    while logits.len() < tokens {
        let new = &fed[position..];
        kv.begin_step(&[(id, new.len())]).unwrap();
        let span = Span { tokens: new, position, logits: Logits::Last };
        let rows = model.forward(&[span], &mut kv).unwrap();
        let row = rows.last_of(0).unwrap().to_vec();
        position = fed.len();
        fed.push(argmax(&row).unwrap());
        logits.push(row);
    }
    (fed.split_off(prompt.len()), logits)
}

/// The same through pages.
fn paged(
    model: &Model,
    cache: KvCache,
    prompt: &[u32],
    tokens: usize,
) -> (Vec<u32>, Vec<Vec<f32>>) {
    let mut sequence = cache.sequence();
    let mut fed = prompt.to_vec();
    let mut logits: Vec<Vec<f32>> = Vec::new();
    while logits.len() < tokens {
        let new = fed[sequence.tokens()..].to_vec();
        prefill::feed(model, &cache, &mut sequence, &new, 100, Logits::Last, |_, rows| {
            logits.extend(rows.last_of(0).map(<[f32]>::to_vec));
            Ok(())
        })
        .unwrap();
        fed.push(argmax(logits.last().unwrap()).unwrap());
    }
    cache.audit([&sequence]).unwrap();
    (fed.split_off(prompt.len()), logits)
}

fn assert_same(got: (Vec<u32>, Vec<Vec<f32>>), want: (Vec<u32>, Vec<Vec<f32>>), tolerance: f32) {
    assert_eq!(got.0, want.0);
    for (got, want) in got.1.iter().flatten().zip(want.1.iter().flatten()) {
        assert!((got - want).abs() <= tolerance, "{got} {want}");
    }
}

#[test]
fn f32_pages_generate_what_a_contiguous_cache_generates() {
    let (_folder, model) = tiny();
    let prompt: Vec<u32> = (0..70).map(|i| (i * 7919 + 5) % 300).collect();
    let format = PageFormat::both(SlotFormat::F32);
    let pages = paged(&model, cache(&model, format, 256), &prompt, 100);
    assert_same(pages, contiguous(&model, &prompt, 100), 1e-4);
}

#[test]
fn f32_pages_generate_what_a_contiguous_cache_generates_on_the_real_model() {
    let Some(path) = real_model() else { return };
    let model = Model::open(&path).unwrap();
    let tokenizer =
        Tokenizer::from_gguf(&headwise::engine::GgufFile::open(&path).unwrap()).unwrap();
    let prompt = tokenizer.encode_prompt(include_str!("../../docs/attention.md")).unwrap();
    let prompt = &prompt[..prompt.len().min(200)];
    let format = PageFormat::both(SlotFormat::F32);
    let pages = paged(&model, cache(&model, format, 512), prompt, 256);
    assert_same(pages, contiguous(&model, prompt, 256), 1e-3);
}

#[test]
fn a_sequence_evicted_between_chunks_never_holds_more_than_its_budget_and_a_chunk() {
    let (_folder, model) = tiny();
    let cache = cache(&model, PageFormat::default(), 256);
    let tokens: Vec<u32> = (0..240).map(|i| (i * 7919 + 5) % 300).collect();
    let scorer: Arc<dyn headwise::evict::Scorer> = Arc::from(ScorerKind::KvCompress.build());
    let mut sequence = cache.sequence();
    sequence.observe(Arc::clone(&scorer));
    let (budget, chunk) = (4 * 4, 48);
    let compression = headwise::cache::Compression {
        scorer,
        policy: Policy { sinks: 4, window: 16, ..Policy::default() },
        budget: Budget::Pages(budget),
    };
    for part in tokens.chunks(chunk) {
        prefill::feed(&model, &cache, &mut sequence, part, chunk, Logits::None, |_, _| Ok(()))
            .unwrap();
        let held = cache.stats().held;
        assert!(held <= budget + cache.table_plan().pages_for(chunk), "{held}");
        cache.compress(&mut sequence, &compression).unwrap();
        assert!(cache.stats().held <= budget);
    }
    cache.audit([&sequence]).unwrap();
}
