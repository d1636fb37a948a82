use proptest::prelude::*;

use crate::evict::score::mix;
use crate::evict::{EvictError, Score, accumulate, dither, quantize};

fn score(value: f32) -> Score {
    Score::try_from(value).unwrap()
}

#[test]
fn every_code_is_its_own_value() {
    let mut last = f32::NEG_INFINITY;
    for bits in 0..=u16::MAX {
        let code = Score::from_bits(bits);
        assert!(code.to_f32() > last, "{bits}");
        last = code.to_f32();
        assert_eq!(score(last), code);
    }
    assert_eq!(last, f32::INFINITY);
    assert_eq!(Score::MAX.to_f32(), 65_472.0);
    assert_eq!(Score::from_bits(1).to_f32(), (-57f32).exp2());
    assert_eq!(Score::from_bits(1 << 10).to_f32(), (-47f32).exp2());
}

#[test]
fn halfway_rounds_to_even() {
    for bits in [0u16, 1, 0x3FE, 0x3FF, 0x400, 0x401, 0x7FF, 0x4321, 0xFFFC] {
        let [low, high] = [bits, bits + 1].map(|bits| f64::from(Score::from_bits(bits).to_f32()));
        let middle = ((low + high) / 2.0) as f32;
        assert_eq!(score(middle).to_bits(), bits + (bits & 1), "{bits:#x}");
        assert_eq!(score(middle.next_up()).to_bits(), bits + 1);
        assert_eq!(score(middle.next_down()).to_bits(), bits);
    }
}

#[test]
fn the_ends_of_the_range() {
    assert_eq!(score(0.0), Score::ZERO);
    assert_eq!(score(-0.0), Score::ZERO);
    assert_eq!(score(f32::MIN_POSITIVE), Score::ZERO);
    assert_eq!(score(1e9), Score::MAX);
    assert_eq!(score(f32::MAX), Score::MAX);
    assert_eq!(score(f32::INFINITY), Score::INFINITY);
    assert!(Score::INFINITY > Score::MAX);
}

#[test]
fn numbers_that_are_no_scores_are_refused_with_their_slot() {
    let mut scores = [Score::MAX; 40];
    for bad in [f32::NAN, -1e-30, f32::NEG_INFINITY] {
        assert!(matches!(Score::try_from(bad), Err(EvictError::Score { slot: 0, .. })));
        let mut values = [1.0; 40];
        values[33] = bad;
        for refused in [quantize(&values, &mut scores), accumulate(&mut scores, &values, 0, 0)] {
            assert!(matches!(refused, Err(EvictError::Score { slot: 33, .. })), "{refused:?}");
        }
    }
    let short = EvictError::Length { what: "the head's scores", got: 39, expected: 40 };
    assert_eq!(quantize(&[1.0; 39], &mut scores), Err(short));
    assert_eq!(scores, [Score::MAX; 40]);
    quantize(&[2.0; 40], &mut scores).unwrap();
    assert_eq!(scores, [score(2.0); 40]);
}

/// A step of the format at 1 is 1e-3: nearest rounding would lose every one of these.
#[test]
fn small_increments_are_not_lost() {
    let mut scores = [score(1.0); 64];
    for step in 0..100_000 {
        accumulate(&mut scores, &[1e-6; 64], 3, step).unwrap();
    }
    for score in scores {
        let error = score.to_f32() / 1.1 - 1.0;
        assert!(error.abs() < 0.02, "{score:?}");
    }
    let mean = scores.iter().map(|score| score.to_f32()).sum::<f32>() / 64.0;
    assert!((mean / 1.1 - 1.0).abs() < 0.002, "{mean}");
}

#[test]
fn decoding_from_nothing_accumulates_through_all_exponents() {
    let mut scores = [Score::ZERO; 16];
    for step in 0..20_000 {
        accumulate(&mut scores, &[3e-15; 16], 0, step).unwrap();
    }
    for score in scores {
        assert!((score.to_f32() / 6e-11 - 1.0).abs() < 0.02, "{score:?}");
    }
}

#[test]
fn accumulation_knows_the_ends() {
    assert_eq!(Score::INFINITY.accumulate(1.0, 0), Score::INFINITY);
    assert_eq!(score(1.0).accumulate(f32::INFINITY, 0), Score::INFINITY);
    assert_eq!(Score::MAX.accumulate(f32::MAX, u32::MAX), Score::MAX);
    assert_eq!(score(1.0).accumulate(f32::NAN, u32::MAX), score(1.0));
    assert_eq!(score(1.0).accumulate(-1.0, u32::MAX), score(1.0));
}

/// Half a step of the format goes up in about half of the slots, and in other slots of another head or
/// another step.
#[test]
fn slots_heads_and_steps_round_on_their_own() {
    let ups = |head, step| {
        let mut scores = [score(1.0); 4096];
        accumulate(&mut scores, &[0.5 / 1024.0; 4096], head, step).unwrap();
        scores.map(|found| found > score(1.0))
    };
    let first = ups(0, 0);
    let count = |flags: &[bool]| flags.iter().filter(|&&up| up).count() as i64;
    assert!((count(&first) - 2048).abs() < 200, "{}", count(&first));
    for other in [ups(1, 0), ups(2, 0), ups(0, 1), ups(0, 3)] {
        let unlike: Vec<bool> = first.iter().zip(other).map(|(a, b)| *a != b).collect();
        assert!(count(&unlike) > 800, "{}", count(&unlike));
    }
}

/// The reference values of SplitMix64.
#[test]
fn hashes_are_those_of_split_mix() {
    let weyl = 0x9E37_79B9_7F4A_7C15u64;
    let outputs = [0, 1, 2].map(|n| mix(weyl.wrapping_mul(n)));
    assert_eq!(outputs, [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
    assert_eq!(
        [dither(0, 0), dither(0, 2)],
        [0xE220_A839, 0xE220_A839u32.wrapping_add(0x3C6E_F372)]
    );
}

#[test]
fn dither_spreads_over_steps_and_over_seeds() {
    let count = 1 << 12;
    let across_steps: Vec<u32> = (0..count).map(|step| dither(7, step)).collect();
    let across_seeds: Vec<u32> = (0..count).map(|seed| dither(seed, 7)).collect();
    for (values, tolerance) in [(across_steps, 4), (across_seeds, 100)] {
        let mut sixteenths = [0i64; 16];
        values.iter().for_each(|value| sixteenths[(value >> 28) as usize] += 1);
        for (i, filled) in sixteenths.into_iter().enumerate() {
            assert!((filled - 256).abs() <= tolerance, "{i}: {filled}");
        }
    }
}

proptest! {
    #[test]
    fn rounding_is_to_the_nearest_and_monotone(a in 0f32..70_000.0, exponent in -70i32..0) {
        let value = a * (exponent as f32).exp2();
        let found = score(value);
        let gap = |other: Score| (f64::from(other.to_f32()) - f64::from(value)).abs();
        let code = found.to_bits();
        for other in [code.saturating_sub(1), (code + 1).min(0xFFFE)] {
            prop_assert!(gap(found) <= gap(Score::from_bits(other)));
        }
        prop_assert!(score(value * 1.001) >= found);
        if value > 1e-14 && value < 65_000.0 {
            prop_assert!(gap(found) <= f64::from(value) / 2048.0);
        }
    }

    /// Up with the probability of the fraction, never to any but the two neighbours.
    #[test]
    fn accumulation_rounds_to_a_neighbour(bits in 0u16..0xF000, part in 0f32..3.0, dither: u32) {
        let start = Score::from_bits(bits);
        let step = Score::from_bits(bits + 1).to_f32() - start.to_f32();
        let exact = f64::from(start.to_f32()) + f64::from(step * part);
        let found = start.accumulate(step * part, dither);
        let above = Score::from_bits(found.to_bits() + 1).to_f32();
        let below = Score::from_bits(found.to_bits().saturating_sub(1)).to_f32();
        prop_assert!(f64::from(below) <= exact && exact <= f64::from(above));
        prop_assert!(start.accumulate(step * part, 0) <= found);
        prop_assert!(f64::from(start.accumulate(step * part, 0).to_f32()) <= exact);
        prop_assert!(f64::from(start.accumulate(step * part, u32::MAX).to_f32()) >= exact * 0.999_999);
    }

    #[test]
    fn nothing_added_changes_nothing(bits: u16, dither: u32) {
        let score = Score::from_bits(bits);
        prop_assert_eq!(score.accumulate(0.0, dither), score);
    }
}
