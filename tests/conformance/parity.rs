//! The same results as the oracle over shapes, lengths and windows.

use headwise::format::PageFormat;

use super::{Backend, Random, Scene, check, shape};

/// Lengths around every boundary; empty heads.
pub fn decode(backend: &dyn Backend, formats: &[PageFormat]) {
    for (seed, &(group, dim)) in backend.effort().decode.iter().enumerate() {
        let spans = [(1, vec![0, 1, 37]), (1, vec![130, 259, 15])];
        let scene = Scene::new(shape(3, (group, dim)), &spans, formats, seed as u64);
        check(backend, &scene, 1, &format!("head_dim {dim}, group {group}"));
    }
}

/// From nothing, after earlier pages, after an eviction that left fewer slots than tokens.
pub fn prefill(backend: &dyn Backend, formats: &[PageFormat]) {
    for (seed, &(group, dim)) in backend.effort().prefill.iter().enumerate() {
        let spans = [(37, vec![37, 101]), (18, vec![70, 5]), (2, vec![9, 0])];
        let scene = Scene::new(shape(2, (group, dim)), &spans, formats, seed as u64);
        check(backend, &scene, 7, &format!("head_dim {dim}, group {group}"));
    }
}

/// Any number of sequences of any lengths, decoding and prefill side by side.
pub fn ragged_batches(backend: &dyn Backend, formats: &[PageFormat]) {
    for seed in 0..backend.effort().seeds {
        let mut random = Random(seed);
        let of = backend.effort().decode;
        let of = of[random.below(of.len())];
        let kv_heads = 1 + random.below(3);
        let spans: Vec<_> = (0..random.below(4))
            .map(|_| {
                let most = 1 + random.below(300);
                let slots = (0..kv_heads).map(|_| random.below(most + 1)).collect();
                ([0, 1, 1, 3, 17, 40][random.below(6)], slots)
            })
            .collect();
        let scene = Scene::new(shape(kv_heads, of), &spans, formats, seed);
        check(backend, &scene, random.below(6), &format!("seed {seed}, {spans:?}"));
    }
}

/// Heads that are cut and joined again.
pub fn long_heads(backend: &dyn Backend, formats: &[PageFormat]) {
    for &(of, slots) in backend.effort().long {
        let spans = [(1, vec![slots, slots - 1]), (32, vec![slots / 2 + 50, 33])];
        check(backend, &Scene::new(shape(2, of), &spans, formats, 2), 3, "long heads");
    }
}
