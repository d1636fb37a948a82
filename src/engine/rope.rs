//! Rotary position embedding (Su et al. 2021, "RoFormer").

use rayon::prelude::*;

use super::{
    config::{RopeConfig, RopePairs, RopeScaling},
    error::ModelError,
};

/// The frequencies of a model's RoPE.
#[derive(Debug)]
pub(super) struct Rope {
    head_dim: usize,
    order: RopePairs,
    /// Radians per position, pair by pair.
    frequencies: Vec<f64>,
}

/// cos and sin of every pair at one position.
pub(super) type Turn = [(f32, f32)];

impl Rope {
    /// For heads of `head_dim` channels, at positions below `context`. `divisors` (one per pair) are the
    /// frequency factors of the file, where it has some.
    ///
    /// # Errors
    /// A frequency by which a position within the context is turned by no finite angle.
    pub fn new(
        config: &RopeConfig,
        head_dim: usize,
        context: usize,
        divisors: Option<&[f32]>,
    ) -> Result<Self, ModelError> {
        let &RopeConfig { dims, pairs: order, base, scaling } = config;
        let stretch = match scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear(factor) => factor,
        };
        let frequencies: Vec<f64> = (0..dims / 2)
            .map(|pair| {
                let exponent = -2.0 * pair as f64 / dims as f64;
                let divisor = divisors.map_or(1.0, |divisors| f64::from(divisors[pair]));
                base.powf(exponent) / divisor / stretch
            })
            .collect();
        let finite = |frequency: f64| (frequency * context as f64).is_finite();
        if let Some(pair) = frequencies.iter().position(|&frequency| !finite(frequency)) {
            return Err(ModelError::RopeFrequency { pair, frequency: frequencies[pair] });
        }
        Ok(Self { head_dim, order, frequencies })
    }

    /// Radians per position of every pair.
    #[cfg(feature = "cuda")]
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// Pairs of one head that turn.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// cos and sin for every position, \[positions\]\[pairs\].
    ///
    /// Angles grow to the context length, where f32 has few digits left behind the point: they are
    /// computed in f64 and only cos and sin are rounded.
    pub fn turns(&self, positions: &[usize]) -> Vec<(f32, f32)> {
        positions
            .par_iter()
            .flat_map_iter(|&position| {
                self.frequencies.iter().map(move |frequency| {
                    let (sin, cos) = (position as f64 * frequency).sin_cos();
                    (cos as f32, sin as f32)
                })
            })
            .collect()
    }

    /// Turns the heads of one token; `x` and `out` are \[heads\]\[head_dim\].
    pub fn turn(&self, turn: &Turn, x: &[f32], out: &mut [f32]) {
        let turned = 2 * turn.len();
        for (x, out) in x.chunks_exact(self.head_dim).zip(out.chunks_exact_mut(self.head_dim)) {
            let (x_turned, x_rest) = x.split_at(turned);
            let (out_turned, out_rest) = out.split_at_mut(turned);
            match self.order {
                RopePairs::Neighbours => {
                    let pairs = x_turned.chunks_exact(2).zip(out_turned.chunks_exact_mut(2));
                    for ((x, out), &(cos, sin)) in pairs.zip(turn) {
                        out[0] = x[0] * cos - x[1] * sin;
                        out[1] = x[0] * sin + x[1] * cos;
                    }
                }
                RopePairs::Halves => {
                    let (a, b) = x_turned.split_at(turn.len());
                    let (out_a, out_b) = out_turned.split_at_mut(turn.len());
                    let pairs = a.iter().zip(b).zip(out_a.iter_mut().zip(out_b));
                    for (((&a, &b), (out_a, out_b)), &(cos, sin)) in pairs.zip(turn) {
                        *out_a = a * cos - b * sin;
                        *out_b = a * sin + b * cos;
                    }
                }
            }
            out_rest.copy_from_slice(x_rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of heads of 16 channels.
    fn rope(
        dims: usize,
        pairs: RopePairs,
        scaling: RopeScaling,
        divisors: Option<&[f32]>,
    ) -> Result<Rope, ModelError> {
        let config = RopeConfig { dims, pairs, base: 10_000.0, scaling };
        Rope::new(&config, 16, 64, divisors)
    }

    #[test]
    fn turns_pairs_and_keeps_the_rest() {
        let x: Vec<f32> = (0..16).map(|i| i as f32 + 1.0).collect();
        let halves: [usize; 4] = [0, 1, 2, 3];
        for (order, places) in [
            (RopePairs::Neighbours, halves.map(|pair| (2 * pair, 2 * pair + 1))),
            (RopePairs::Halves, halves.map(|pair| (pair, pair + 4))),
        ] {
            let rope = rope(8, order, RopeScaling::None, None).unwrap();
            let mut out = vec![f32::NAN; 16];
            rope.turn(&rope.turns(&[3]), &x, &mut out);
            for (pair, (first, second)) in places.into_iter().enumerate() {
                let angle = 3.0 * 10_000f64.powf(-2.0 * pair as f64 / 8.0);
                let (a, b) = (f64::from(x[first]), f64::from(x[second]));
                let exact = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
                assert!((f64::from(out[first]) - exact[0]).abs() < 1e-5);
                assert!((f64::from(out[second]) - exact[1]).abs() < 1e-5);
            }
            assert_eq!(out[8..], x[8..]);
        }
    }

    #[test]
    fn linear_scaling_and_divisors_stretch_positions() {
        let x: Vec<f32> = (0..16).map(|i| i as f32 - 7.5).collect();
        let (mut plain, mut scaled, mut divided) = (vec![0.0; 16], vec![0.0; 16], vec![0.0; 16]);
        let turn = |scaling, divisors, position, out: &mut [f32]| {
            let rope = rope(16, RopePairs::Neighbours, scaling, divisors).unwrap();
            rope.turn(&rope.turns(&[position]), &x, out);
        };
        turn(RopeScaling::None, None, 5, &mut plain);
        turn(RopeScaling::Linear(4.0), None, 20, &mut scaled);
        turn(RopeScaling::None, Some(&[2.0; 8]), 10, &mut divided);
        assert_eq!(plain, scaled);
        assert_eq!(plain, divided);
    }

    #[test]
    fn frequencies_that_turn_by_no_angle_are_refused() {
        let new = |scaling, divisors: &[f32]| {
            rope(16, RopePairs::Halves, scaling, Some(divisors)).map(drop)
        };
        for (scaling, wrong, refused) in [
            (RopeScaling::Linear(1e-300), 1.0, None),
            (RopeScaling::Linear(1e-307), 1.0, Some(0)),
            (RopeScaling::Linear(f64::MIN_POSITIVE / 1e10), 1.0, Some(0)),
            (RopeScaling::None, f32::MIN_POSITIVE, None),
            (RopeScaling::None, 0.0, Some(5)),
            (RopeScaling::None, f32::NAN, Some(5)),
        ] {
            let mut divisors = [1.0; 8];
            divisors[5] = wrong;
            match (new(scaling, &divisors), refused) {
                (Ok(()), None) => {}
                (Err(ModelError::RopeFrequency { pair, .. }), Some(refused)) => {
                    assert_eq!(pair, refused, "{scaling:?} {wrong}");
                }
                (found, _) => panic!("{scaling:?} {wrong}: {found:?}"),
            }
        }
    }
}
