//! Rows in half precision.

use half::{bf16, f16};

use super::*;

/// Rows of each type give what their values give in f32, and outputs are that, rounded.
#[test]
fn rows_of_every_type_are_their_values() {
    let mut model = Model::new(11);
    let cache = cache(&model, mixed(), 300);
    let shape = model.shape.clone();
    let of = shape.layer(0);
    // Values that both half formats have.
    let mut values = |count: usize| -> Vec<f32> {
        model.values(count).into_iter().map(|x| (x * 64.0).round() / 64.0).collect()
    };
    let (q, k, v) = (values(7 * of.q_row()), values(7 * of.k_row()), values(7 * of.v_row()));
    let mut want = vec![0.0; q.len()];
    let mut sequence = cache.sequence();
    let mut step = cache.step([(&mut sequence, 7)]).unwrap();
    step.attend(0, &q, &k, &v, &mut want).unwrap();

    let halves = |x: &[f32]| -> Vec<f16> { x.iter().map(|&x| f16::from_f32(x)).collect() };
    let brains = |x: &[f32]| -> Vec<bf16> { x.iter().map(|&x| bf16::from_f32(x)).collect() };
    let mut sequence = cache.sequence();
    let mut step = cache.step([(&mut sequence, 7)]).unwrap();
    let mut out = vec![f16::ZERO; q.len()];
    step.attend(0, &halves(&q), &halves(&k), &halves(&v), &mut out).unwrap();
    assert_eq!(out, halves(&want));
    let mut sequence = cache.sequence();
    let mut step = cache.step([(&mut sequence, 7)]).unwrap();
    // Each argument in a type of its own.
    let mut out = vec![bf16::ZERO; q.len()];
    step.attend(0, &brains(&q), &k, &halves(&v), &mut out).unwrap();
    assert_eq!(out, brains(&want));

    let mut short = vec![f16::ZERO; 3];
    let mut sequence = cache.sequence();
    let mut step = cache.step([(&mut sequence, 7)]).unwrap();
    let refused = step.attend(0, &brains(&q), &k, &halves(&v), &mut short);
    let expected = CacheError::WrongLength { what: "out", got: 3, expected: q.len() };
    assert_eq!(refused, Err(expected));
}
