//! What the scorers that look at keys compute of them.

/// ‖key‖, in f64 so that no finite key overflows.
pub(super) fn norm(key: &[f32]) -> f64 {
    dot(key, key).sqrt()
}

/// Summed in lanes, because one chain of additions would wait for itself.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (lane, (&x, &y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += f64::from(x) * f64::from(y);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&x, &y)| f64::from(x) * f64::from(y));
    lanes.into_iter().chain(rest).sum()
}
