//! NaN and infinities in queries, keys and values apart: exactly the rows and channels that the formulas
//! make NaN are, and no others.

use headwise::format::PageFormat;

use super::{Backend, Scene, check, shape};

const SLOTS: usize = 70;

/// A sequence that decodes, a chunk that streams on a host, one that takes panels there; two heads.
fn scenes(backend: &dyn Backend, formats: &[PageFormat]) -> Vec<Scene> {
    let scene = |(seed, &of): (usize, &(usize, usize))| {
        let spans = [1, 2, 20].map(|tokens| (tokens, vec![SLOTS, SLOTS - 9]));
        Scene::new(shape(2, of), &spans, formats, seed as u64)
    };
    backend.effort().single.iter().enumerate().map(scene).collect()
}

/// Spoils one number of head 0 of every span, which all queries see, and head 1 keeps its own.
fn with_key(scene: &mut Scene, value: f32) {
    let at = 3 * scene.layer.k_dim() + 5;
    scene.spans.iter_mut().for_each(|(_, tables)| tables[0].k[at] = value);
}

fn with_value(scene: &mut Scene, value: f32) {
    let at = 3 * scene.layer.k_dim() + 5;
    scene.spans.iter_mut().for_each(|(_, tables)| tables[0].v[at] = value);
}

/// Spoils the queries of every third row.
fn with_queries(scene: &mut Scene, value: f32) {
    let dim = scene.layer.k_dim();
    scene.q.chunks_exact_mut(dim).step_by(3).for_each(|q| q[5] = value);
}

pub fn a_query_that_is_nan(backend: &dyn Backend, formats: &[PageFormat]) {
    for mut scene in scenes(backend, formats) {
        with_queries(&mut scene, f32::NAN);
        check(backend, &scene, 4, "NaN in q");
    }
}

pub fn a_key_that_is_nan(backend: &dyn Backend, formats: &[PageFormat]) {
    for mut scene in scenes(backend, formats) {
        with_key(&mut scene, f32::NAN);
        check(backend, &scene, 4, "NaN in K");
    }
}

pub fn a_value_that_is_nan(backend: &dyn Backend, formats: &[PageFormat]) {
    for mut scene in scenes(backend, formats) {
        with_value(&mut scene, f32::NAN);
        check(backend, &scene, 4, "NaN in V");
    }
}

pub fn infinite_queries(backend: &dyn Backend, formats: &[PageFormat]) {
    for value in [f32::INFINITY, f32::NEG_INFINITY] {
        for mut scene in scenes(backend, formats) {
            with_queries(&mut scene, value);
            check(backend, &scene, 4, &format!("{value} in q"));
        }
    }
}

/// With one sign the logit is −∞, and the slot weighs nothing; with the other it is NaN.
pub fn infinite_keys(backend: &dyn Backend, formats: &[PageFormat]) {
    for value in [f32::INFINITY, f32::NEG_INFINITY] {
        for mut scene in scenes(backend, formats) {
            with_key(&mut scene, value);
            check(backend, &scene, 4, &format!("{value} in K"));
            // Nothing else to see.
            for table in scene.tables_mut() {
                table.k.fill(value);
            }
            scene.q.iter_mut().for_each(|q| *q = q.abs() + 1.0);
            check(backend, &scene, 4, &format!("K of {value}"));
        }
    }
}

pub fn infinite_values(backend: &dyn Backend, formats: &[PageFormat]) {
    for value in [f32::INFINITY, f32::NEG_INFINITY] {
        for mut scene in scenes(backend, formats) {
            with_value(&mut scene, value);
            check(backend, &scene, 4, &format!("{value} in V"));
        }
    }
}

/// Of a head that is cut and joined again, the one piece with a NaN or an infinity shows in the whole.
pub fn one_piece_of_many(backend: &dyn Backend, formats: &[PageFormat]) {
    for &(of, slots) in backend.effort().long {
        let scene = || Scene::new(shape(2, of), &[(1, vec![slots; 2])], formats, 3);
        let mut spoilt = scene();
        with_key(&mut spoilt, f32::NAN);
        *spoilt.spans[0].1[1].v.last_mut().unwrap() = f32::NAN;
        check(backend, &spoilt, 1, "NaN in one piece");
        let mut spoilt = scene();
        with_key(&mut spoilt, f32::NEG_INFINITY);
        *spoilt.spans[0].1[1].v.last_mut().unwrap() = f32::INFINITY;
        check(backend, &spoilt, 1, "infinities in one piece");
    }
}

/// A query sees no newer token, so that a NaN in one is nothing to it.
pub fn newer_tokens_reach_no_older_one(backend: &dyn Backend, formats: &[PageFormat]) {
    for mut scene in scenes(backend, formats) {
        let dim = scene.layer.k_dim();
        for (tokens, tables) in &mut scene.spans {
            for table in tables {
                let first = table.k.len() - *tokens / 2 * dim;
                table.k[first..].fill(f32::NAN);
                table.v[first..].fill(f32::NAN);
            }
        }
        check(backend, &scene, 30, "NaN in newer tokens");
    }
}
