//! Vector loops of the forward pass, compiled for every instruction set that `pulp` can pick at
//! run time (AVX-512, AVX2+FMA, NEON, scalar).

use pulp::{Arch, Simd, WithSimd};

/// `out[row][token] = weights[row] · x[token]` for a few tokens.
///
/// `weights` is \[rows\]\[depth\], `x` is \[tokens\]\[depth\], `out` is \[rows\]\[tokens\]. Every
/// weight is read once for up to four tokens, which is what the memory-bound small batch needs.
pub(super) struct RowDots<'a> {
    pub weights: &'a [f32],
    pub x: &'a [f32],
    pub depth: usize,
    pub out: &'a mut [f32],
}

const ROWS: usize = 4;
const TOKENS: usize = 4;

impl RowDots<'_> {
    pub fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for RowDots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weights, x, depth, out } = self;
        let tokens = x.len() / depth;
        let blocks = weights.chunks(ROWS * depth).zip(out.chunks_mut(ROWS * tokens));
        for (weights, out) in blocks {
            if weights.len() == ROWS * depth {
                let rows = std::array::from_fn(|row| &weights[row * depth..][..depth]);
                block::<S, ROWS>(simd, rows, x, depth, out);
            } else {
                for (row, out) in weights.chunks_exact(depth).zip(out.chunks_exact_mut(tokens)) {
                    block::<S, 1>(simd, [row], x, depth, out);
                }
            }
        }
    }
}

#[inline(always)]
fn block<S: Simd, const R: usize>(
    simd: S,
    rows: [&[f32]; R],
    x: &[f32],
    depth: usize,
    out: &mut [f32],
) {
    let tokens = x.len() / depth;
    for (index, group) in x.chunks(TOKENS * depth).enumerate() {
        let first = index * TOKENS;
        match group.len() / depth {
            TOKENS => tile::<S, R, TOKENS>(simd, rows, group, depth, &mut out[first..], tokens),
            3 => tile::<S, R, 3>(simd, rows, group, depth, &mut out[first..], tokens),
            2 => tile::<S, R, 2>(simd, rows, group, depth, &mut out[first..], tokens),
            _ => tile::<S, R, 1>(simd, rows, group, depth, &mut out[first..], tokens),
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const R: usize, const T: usize>(
    simd: S,
    rows: [&[f32]; R],
    x: &[f32],
    depth: usize,
    out: &mut [f32],
    stride: usize,
) {
    let xs: [&[f32]; T] = std::array::from_fn(|token| &x[token * depth..][..depth]);
    let row_parts = rows.map(|row| S::as_simd_f32s(row));
    let x_parts = xs.map(|x| S::as_simd_f32s(x));
    let vectors = row_parts[0].0.len();
    let row_heads = row_parts.map(|(head, _)| &head[..vectors]);
    let x_heads = x_parts.map(|(head, _)| &head[..vectors]);
    let mut sums = [[simd.splat_f32s(0.0); T]; R];
    for i in 0..vectors {
        let x: [S::f32s; T] = std::array::from_fn(|token| x_heads[token][i]);
        for row in 0..R {
            let weight = row_heads[row][i];
            for token in 0..T {
                sums[row][token] = simd.mul_add_e_f32s(weight, x[token], sums[row][token]);
            }
        }
    }
    for row in 0..R {
        for token in 0..T {
            let tail = row_parts[row].1.iter().zip(x_parts[token].1);
            let tail: f32 = tail.map(|(w, x)| w * x).sum();
            out[row * stride + token] = simd.reduce_sum_f32s(sums[row][token]) + tail;
        }
    }
}

/// Σ x².
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut out = [0.0];
    RowDots { weights: x, x, depth: x.len(), out: &mut out }.run();
    out[0]
}

/// eˣ to within 2 units in the last place, 0 below −87.3, never +∞ (clamped at 88.3).
///
/// Branch-free so that a loop over it becomes vector code; libm's is a call per element.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.3;
    // 1.5·2²³: adding it rounds to an integer that then stands in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let low = if x < LOWEST { LOWEST } else { x };
    let clamped = if low > HIGHEST { HIGHEST } else { low };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Cephes' expf polynomial on [-ln2/2, ln2/2].
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let value = mantissa * scale;
    if x < LOWEST { 0.0 } else { value }
}

/// What a gated feed-forward layer multiplies with (Shazeer 2020, "GLU Variants Improve Transformer").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// `g · σ(g)`: SwiGLU.
    Silu,
    /// GELU by its tanh (Hendrycks and Gimpel 2016), `½ g (1 + tanh(√(2/π) (g + 0.044715 g³)))`: GEGLU.
    GeluTanh,
}

impl Gate {
    /// `out = gate(g) · u`. `gate_up` is \[tokens\]\[2\]\[channels\], `out` is \[tokens\]\[channels\].
    pub fn apply(self, gate_up: &[f32], channels: usize, out: &mut [f32]) {
        match self {
            Self::Silu => gated(gate_up, channels, out, silu),
            Self::GeluTanh => gated(gate_up, channels, out, gelu_tanh),
        }
    }
}

#[inline(always)]
fn silu(g: f32) -> f32 {
    g / (1.0 + exp(-g))
}

#[inline(always)]
fn gelu_tanh(g: f32) -> f32 {
    // ½ (1 + tanh(z)) = 1 / (1 + e^(-2z)).
    const TWICE: f32 = 1.595_769;
    g / (1.0 + exp(-TWICE * (g + 0.044_715 * g * g * g)))
}

fn gated(gate_up: &[f32], channels: usize, out: &mut [f32], gate: impl Fn(f32) -> f32 + Copy) {
    struct Gated<'a, F>(&'a [f32], usize, &'a mut [f32], F);
    impl<F: Fn(f32) -> f32 + Copy> WithSimd for Gated<'_, F> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self(gate_up, channels, out, gate) = self;
            for (row, out) in gate_up.chunks_exact(2 * channels).zip(out.chunks_exact_mut(channels))
            {
                let (gates, up) = row.split_at(channels);
                for ((out, &g), &u) in out.iter_mut().zip(gates).zip(up) {
                    *out = gate(g) * u;
                }
            }
        }
    }
    Arch::new().dispatch(Gated(gate_up, channels, out, gate));
}

/// Softmax of `scale * row` in place. An empty row stays empty.
pub(super) fn softmax(row: &mut [f32], scale: f32) {
    struct Softmax<'a>(&'a mut [f32], f32);
    impl WithSimd for Softmax<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            const LANES: usize = 16;
            let Self(row, scale) = self;
            let mut tops = [f32::NEG_INFINITY; LANES];
            let mut chunks = row.chunks_exact(LANES);
            for chunk in &mut chunks {
                for (top, &value) in tops.iter_mut().zip(chunk) {
                    *top = if value > *top { value } else { *top };
                }
            }
            let tail = chunks.remainder().iter();
            let top = tops.iter().chain(tail).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let mut sums = [0.0f32; LANES];
            let mut chunks = row.chunks_exact_mut(LANES);
            for chunk in &mut chunks {
                for (sum, value) in sums.iter_mut().zip(chunk) {
                    *value = exp((*value - top) * scale);
                    *sum += *value;
                }
            }
            let mut sum: f32 = sums.iter().sum();
            for value in chunks.into_remainder() {
                *value = exp((*value - top) * scale);
                sum += *value;
            }
            let inverse = 1.0 / sum;
            for value in row {
                *value *= inverse;
            }
        }
    }
    Arch::new().dispatch(Softmax(row, scale));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in -873_000..=883_000 {
            let x = (step as f32 * 1e-4).clamp(-87.3, 88.3);
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn row_dots_match_plain_sums_for_every_remainder() {
        for depth in [1, 15, 16, 17, 64, 100] {
            for tokens in 1..=9 {
                for rows in 1..=9 {
                    let weights: Vec<f32> =
                        (0..rows * depth).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
                    let x: Vec<f32> = (0..tokens * depth)
                        .map(|i| ((i * 104_729) % 97) as f32 / 48.0 - 1.0)
                        .collect();
                    let mut out = vec![f32::NAN; rows * tokens];
                    RowDots { weights: &weights, x: &x, depth, out: &mut out }.run();
                    for row in 0..rows {
                        for token in 0..tokens {
                            let exact: f64 = (0..depth)
                                .map(|i| {
                                    f64::from(weights[row * depth + i])
                                        * f64::from(x[token * depth + i])
                                })
                                .sum();
                            let got = f64::from(out[row * tokens + token]);
                            assert!((got - exact).abs() < 1e-4, "{depth} {tokens} {rows}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn softmax_matches_f64() {
        for length in [1, 5, 16, 33, 100] {
            let row: Vec<f32> = (0..length).map(|i| ((i * 31) % 17) as f32 - 8.0).collect();
            let mut got = row.clone();
            softmax(&mut got, 0.3);
            let weights: Vec<f64> = row.iter().map(|&x| (f64::from(x) * 0.3).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (got, weight) in got.iter().zip(weights) {
                assert!((f64::from(*got) - weight / sum).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn gates_match_f64() {
        let channels = 37;
        let gate_up: Vec<f32> = (0..4 * channels).map(|i| (i as f32 - 70.0) / 9.0).collect();
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let gelu = |g: f64| {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            0.5 * g * (1.0 + z.tanh())
        };
        let gates: [(Gate, &dyn Fn(f64) -> f64); 2] =
            [(Gate::Silu, &silu), (Gate::GeluTanh, &gelu)];
        for (gate, exact) in gates {
            let mut out = vec![0.0; 2 * channels];
            gate.apply(&gate_up, channels, &mut out);
            for token in 0..2 {
                for i in 0..channels {
                    let g = f64::from(gate_up[token * 2 * channels + i]);
                    let u = f64::from(gate_up[token * 2 * channels + channels + i]);
                    let exact = exact(g) * u;
                    let got = f64::from(out[token * channels + i]);
                    assert!((got - exact).abs() <= 2e-6 * exact.abs().max(1.0), "{gate:?} {g}");
                }
            }
        }
    }
}
