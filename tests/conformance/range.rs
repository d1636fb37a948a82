//! Finite inputs give finite outputs, and the right ones, over f32's whole range.

use headwise::format::{PageFormat, SlotFormat};

use super::{Backend, Scene, check, shape};

/// The largest magnitude that a case may store: each format holds it with all the others.
fn largest(format: SlotFormat) -> f32 {
    match format {
        SlotFormat::F32 => f32::MAX,
        SlotFormat::Bf16 => 3.38e38,
        SlotFormat::F16 => 65_504.0,
        SlotFormat::I8 => 1e6,
    }
}

/// Scenes by turns of few slots and of many, over all pairs of (query heads, channels): a sequence that
/// decodes, a chunk that streams on a host, one that takes panels there.
struct Scenes<'a> {
    backend: &'a dyn Backend,
    formats: &'a [PageFormat],
    made: usize,
}

impl<'a> Scenes<'a> {
    fn new(backend: &'a dyn Backend, formats: &'a [PageFormat]) -> Self {
        Self { backend, formats, made: 0 }
    }

    fn next(&mut self) -> Scene {
        let of = self.backend.effort().single;
        let (of, slots) = (of[self.made % of.len()], [70, 17, 1, 90][self.made % 4]);
        let spans = [1, 2, 20].map(|tokens| (tokens, vec![slots, 1 + slots / 2]));
        let scene = Scene::new(shape(2, of), &spans, self.formats, self.made as u64);
        self.made += 1;
        scene
    }
}

/// Sets the keys so that the logit of slot `i` is `logit(i)`, as far as the formats go: then the query
/// takes what is left.
fn set_logits(scene: &mut Scene, most: f32, logit: impl Fn(usize) -> f32) {
    let dim = scene.layer.k_dim();
    let scale = (dim as f32).sqrt();
    let keys = scene.tables().map(|table| largest(table.format.k)).fold(f32::MAX, f32::min);
    // A power of two, so that products are exact. The root apart, or it would overflow.
    let query = (most / (keys / scale)).max(scale).log2().ceil().exp2();
    for table in scene.tables_mut() {
        table.k.fill(0.0);
        for (slot, key) in table.k.iter_mut().step_by(dim).enumerate() {
            *key = logit(slot) / query * scale;
        }
    }
    scene.point_queries(query);
}

/// Two equal logits count the same, however large: the output is the mean of what is seen.
pub fn equal_logits_of_any_size(backend: &dyn Backend, formats: &[PageFormat]) {
    let mut scenes = Scenes::new(backend, formats);
    for size in [0.0, 6e4, 1e6, 1e10, 1e20, 1e30, 1e37, 1e38, 2.3e38, 2.4e38, 3e38] {
        for sign in [1.0, -1.0] {
            let mut scene = scenes.next();
            set_logits(&mut scene, size, |_| sign * size);
            check(backend, &scene, 2, &format!("logits of {}", sign * size));
        }
    }
}

/// Of logits far apart the largest takes all.
pub fn one_key_wins_at_any_size(backend: &dyn Backend, formats: &[PageFormat]) {
    let mut scenes = Scenes::new(backend, formats);
    for size in [6e4, 1e6, 1e20, 1e37, 2.4e38, 3e38] {
        for (low, high) in [(-size, size), (size / 2.0, size), (-size, -size / 2.0), (-size, 0.0)] {
            let mut scene = scenes.next();
            set_logits(&mut scene, size, |slot| if slot % 29 == 1 { high } else { low });
            check(backend, &scene, 2, &format!("logits of {low} and {high}"));
        }
    }
}

/// Logits that f32 has no number for: they are compared all the same, and the log-sum-exp saturates.
pub fn logits_beyond_f32(backend: &dyn Backend, formats: &[PageFormat]) {
    let mut scenes = Scenes::new(backend, formats);
    for sign in [1.0, -1.0, 1.0, -1.0] {
        let mut scene = scenes.next();
        let dim = scene.layer.k_dim();
        for table in scene.tables_mut() {
            // Every slot twice.
            let key = |i: usize| sign * largest(table.format.k) / (1.0 + (i / dim / 2) as f32);
            (0..table.k.len()).for_each(|i| table.k[i] = key(i));
        }
        scene.q.fill(f32::MAX);
        check(backend, &scene, 2, &format!("beyond, {sign}"));
    }
}

/// Queries near zero and keys so large that their products count.
pub fn faint_queries_of_large_keys(backend: &dyn Backend, formats: &[PageFormat]) {
    let mut scenes = Scenes::new(backend, formats);
    for size in [2e-7, 1e-6, 1e-4] {
        let mut scene = scenes.next();
        let dim = scene.layer.k_dim();
        for table in scene.tables_mut() {
            let most = largest(table.format.k);
            for (slot, key) in table.k.chunks_exact_mut(dim).enumerate() {
                key.fill(if slot % 3 == 1 { most } else { 0.0 });
            }
        }
        scene.q.fill(size);
        check(backend, &scene, 2, &format!("queries of {size}"));
    }
}

/// Products that overflow, but whose sum is small.
pub fn sums_that_overflow_on_the_way(backend: &dyn Backend, formats: &[PageFormat]) {
    let mut scenes = Scenes::new(backend, formats);
    for _ in 0..4 {
        let mut scene = scenes.next();
        let dim = scene.layer.k_dim();
        for table in scene.tables_mut() {
            let most = largest(table.format.k);
            for (slot, key) in table.k.chunks_exact_mut(dim).enumerate() {
                // Pairs that cancel exactly.
                key.fill(0.0);
                let at = 1 + slot % (dim / 2 - 2);
                for channel in [at, at + 1, dim - at - 1, dim - at] {
                    key[channel] = most;
                }
            }
        }
        (0..scene.q.len()).for_each(|i| scene.q[i] = if i % 2 == 0 { 1e38 } else { -1e38 });
        check(backend, &scene, 2, "cancelling products");
    }
}

/// A mean of values is no larger than they are, though their sum may be.
pub fn values_near_the_largest(backend: &dyn Backend, formats: &[PageFormat]) {
    let mut scenes = Scenes::new(backend, formats);
    for _ in 0..4 {
        let mut scene = scenes.next();
        for table in scene.tables_mut() {
            let most = largest(table.format.v);
            table.v.iter_mut().for_each(|v| *v = most.copysign(*v));
        }
        check(backend, &scene, 2, "large values of both signs");
        for table in scene.tables_mut() {
            let most = largest(table.format.v);
            table.v.fill(most);
        }
        check(backend, &scene, 2, "large values");
        scene.q.fill(0.0);
        check(backend, &scene, 2, "large values, equal weights");
    }
}

/// The smallest numbers there are change nothing, nor does the sign of zero.
pub fn denormals_and_minus_zero(backend: &dyn Backend, formats: &[PageFormat]) {
    let mut scenes = Scenes::new(backend, formats);
    for tiny in [0.0, -0.0, 1e-45, 1e-40, -1e-38] {
        let mut scene = scenes.next();
        scene.q.iter_mut().step_by(2).for_each(|q| *q = tiny);
        check(backend, &scene, 2, &format!("queries of {tiny:e}"));
        for table in scene.tables_mut() {
            table.k.fill(tiny);
            table.v.fill(tiny);
        }
        check(backend, &scene, 2, &format!("keys and values of {tiny:e}"));
    }
}
