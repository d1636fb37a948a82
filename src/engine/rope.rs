//! Rotary position embedding (Su et al. 2021, "RoFormer") on interleaved pairs.
//!
//! GGUF stores Llama's query and key weights permuted so that channels 2i and 2i+1 form pair i;
//! the two-halves layout of other frameworks is not used here.

use rayon::prelude::*;

use super::{
    config::{LlamaConfig, RopeScaling},
    error::ModelError,
};

/// The frequencies of a model's RoPE.
#[derive(Debug)]
pub(super) struct Rope {
    head_dim: usize,
    /// Radians per position, pair by pair.
    frequencies: Vec<f64>,
}

/// cos and sin of every pair at one position.
pub(super) type Turn = [(f32, f32)];

impl Rope {
    /// `divisors` (one per pair) are the frequency factors of the file, where it has some.
    ///
    /// # Errors
    /// A frequency by which a position within the context is turned by no finite angle.
    pub fn new(config: &LlamaConfig, divisors: Option<&[f32]>) -> Result<Self, ModelError> {
        let stretch = match config.rope_scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear(factor) => factor,
        };
        let frequencies: Vec<f64> = (0..config.rope_dims / 2)
            .map(|pair| {
                let exponent = -2.0 * pair as f64 / config.rope_dims as f64;
                let divisor = divisors.map_or(1.0, |divisors| f64::from(divisors[pair]));
                config.rope_base.powf(exponent) / divisor / stretch
            })
            .collect();
        let finite = |frequency: f64| (frequency * config.context as f64).is_finite();
        if let Some(pair) = frequencies.iter().position(|&frequency| !finite(frequency)) {
            return Err(ModelError::RopeFrequency { pair, frequency: frequencies[pair] });
        }
        Ok(Self { head_dim: config.layer().k_dim(), frequencies })
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
            let pairs = x_turned.chunks_exact(2).zip(out_turned.chunks_exact_mut(2));
            for ((x, out), &(cos, sin)) in pairs.zip(turn) {
                out[0] = x[0] * cos - x[1] * sin;
                out[1] = x[0] * sin + x[1] * cos;
            }
            out_rest.copy_from_slice(x_rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::CacheShape;

    fn config(rope_dims: usize, rope_scaling: RopeScaling) -> LlamaConfig {
        LlamaConfig {
            cache: CacheShape::new(1, 1, 1, 16).unwrap(),
            embedding: 16,
            feed_forward: 16,
            vocab: 8,
            embedding_rows: 8,
            context: 64,
            rope_dims,
            rope_base: 10_000.0,
            rope_scaling,
            rms_epsilon: 1e-5,
        }
    }

    #[test]
    fn turns_interleaved_pairs_and_keeps_the_rest() {
        let rope = Rope::new(&config(8, RopeScaling::None), None).unwrap();
        let x: Vec<f32> = (0..16).map(|i| i as f32 + 1.0).collect();
        let mut out = vec![f32::NAN; 16];
        rope.turn(&rope.turns(&[3]), &x, &mut out);
        for pair in 0..4 {
            let angle = 3.0 * 10_000f64.powf(-2.0 * pair as f64 / 8.0);
            let (a, b) = (f64::from(x[2 * pair]), f64::from(x[2 * pair + 1]));
            let exact = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
            assert!((f64::from(out[2 * pair]) - exact[0]).abs() < 1e-5);
            assert!((f64::from(out[2 * pair + 1]) - exact[1]).abs() < 1e-5);
        }
        assert_eq!(out[8..], x[8..]);
    }

    #[test]
    fn linear_scaling_and_divisors_stretch_positions() {
        let x: Vec<f32> = (0..16).map(|i| i as f32 - 7.5).collect();
        let (mut plain, mut scaled, mut divided) = (vec![0.0; 16], vec![0.0; 16], vec![0.0; 16]);
        let turn = |scaling, divisors, position, out: &mut [f32]| {
            let rope = Rope::new(&config(16, scaling), divisors).unwrap();
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
        let new =
            |scaling, divisors: &[f32]| Rope::new(&config(16, scaling), Some(divisors)).map(drop);
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
