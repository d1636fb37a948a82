//! Rows that see nothing, and batches of nothing.

use headwise::format::PageFormat;

use super::{Backend, Scene, check, shape};

/// Zeros and −∞, which no row that sees a slot has.
pub fn seeing_nothing(backend: &dyn Backend, formats: &[PageFormat]) {
    for &of in backend.effort().single {
        let spans = [1, 2, 20].map(|tokens| (tokens, vec![0, 0]));
        check(backend, &Scene::new(shape(2, of), &spans, formats, 5), 2, "empty heads");
    }
}

/// An eviction within a chunk may leave fewer slots than the chunk has tokens.
pub fn evicted_below_the_chunk(backend: &dyn Backend, formats: &[PageFormat]) {
    for &of in backend.effort().single {
        let spans = [3, 20, 40].map(|tokens| (tokens, vec![1, tokens - 1]));
        let mut scene = Scene::new(shape(2, of), &spans, formats, 6);
        check(backend, &scene, 5, "evicted");
        // Nothing seen is nothing, also to a query that is NaN.
        let values = scene.q.len() / 8;
        scene.q[..values].fill(f32::NAN);
        check(backend, &scene, 5, "evicted, NaN in q");
    }
}

pub fn no_tokens_and_no_spans(backend: &dyn Backend, formats: &[PageFormat]) {
    for &of in backend.effort().single {
        let spans = [(0, vec![20, 0]), (1, vec![5, 21]), (0, vec![3, 3]), (0, vec![0, 0])];
        check(backend, &Scene::new(shape(2, of), &spans, formats, 7), 2, "no tokens");
        check(backend, &Scene::new(shape(2, of), &[], formats, 8), 2, "no spans");
    }
}
