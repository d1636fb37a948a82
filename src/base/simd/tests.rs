//! Every set this machine has against plain arithmetic.

use half::{bf16, f16};

use super::*;

/// Runs the same checks for one set.
fn check<S: Simd>(simd: S) {
    let store = |v: S::V| {
        let mut out = vec![0f32; S::LANES];
        // SAFETY: `out` holds LANES values.
        unsafe { simd.store(out.as_mut_ptr(), v) };
        out
    };
    let a: Vec<f32> = (0..S::LANES).map(|i| 1.25 * i as f32 - 3.5).collect();
    let b: Vec<f32> = (0..S::LANES).map(|i| 0.5 - (i * i) as f32).collect();
    // SAFETY: both hold LANES values.
    let (va, vb) = unsafe { (simd.load(a.as_ptr()), simd.load(b.as_ptr())) };
    let zip =
        |f: fn(f32, f32) -> f32| -> Vec<f32> { a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect() };
    assert_eq!(store(simd.add(va, vb)), zip(|a, b| a + b));
    assert_eq!(store(simd.sub(va, vb)), zip(|a, b| a - b));
    assert_eq!(store(simd.mul(va, vb)), zip(|a, b| a * b));
    assert_eq!(store(simd.mul_add(va, vb, va)), zip(|a, b| a * b + a));
    assert_eq!(store(simd.max(va, vb)), zip(f32::max));
    assert_eq!(store(simd.min(va, vb)), zip(f32::min));
    let nan = simd.splat(f32::NAN);
    assert!(store(simd.max(va, nan)).iter().all(|x| x.is_nan()), "max drops a NaN");
    assert!(store(simd.min(va, nan)).iter().all(|x| x.is_nan()), "min drops a NaN");
    let rounded: Vec<f32> = a.iter().map(|x| x.round_ties_even()).collect();
    assert_eq!(store(simd.round(va)), rounded);
    assert_eq!(simd.reduce_add(va), a.iter().sum::<f32>());
    assert_eq!(simd.reduce_max(vb), 0.5);
    let (sum_a, sum_b) = (a.iter().sum::<f32>(), b.iter().sum::<f32>());
    let row = |n: usize| [va, vb, simd.splat(n as f32), vb];
    let sums = simd.finish_sums([0, 1, 2, 3].map(|n| simd.fold_sums(row(n))));
    for (n, sums) in sums.into_iter().enumerate() {
        assert_eq!(sums, [sum_a, sum_b, (n * S::LANES) as f32, sum_b]);
    }
    for power in [-126i32, -1, 0, 3, 127] {
        assert_eq!(store(simd.exp2_int(simd.splat(power as f32)))[0], (power as f32).exp2());
    }
    assert_eq!(store(simd.vectorize(|| simd.splat(7.0))), vec![7.0; S::LANES]);

    let bytes: Vec<i8> = (0..S::LANES).map(|i| (i as i8).wrapping_mul(37)).collect();
    // SAFETY: LANES bytes.
    let wide = store(unsafe { simd.load_i8(bytes.as_ptr().cast()) });
    assert_eq!(wide, bytes.iter().map(|&x| f32::from(x)).collect::<Vec<_>>());

    // Every half-precision and every bfloat16 value, NaN compared by being NaN.
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for chunk in all.chunks_exact(S::LANES) {
        // SAFETY: LANES values of two bytes.
        let (half, brain) = unsafe {
            let p = chunk.as_ptr().cast();
            (store(simd.load_f16(p)), store(simd.load_bf16(p)))
        };
        for (i, &bits) in chunk.iter().enumerate() {
            let expected = [f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32()];
            let [low, high] = simd.splat_bf16(u32::from(bits) << 16 | u32::from(!bits));
            let (low, high) = (store(low)[i], store(high)[i]);
            let inverse = bf16::from_bits(!bits).to_f32();
            for (got, want) in [
                (half[i], expected[0]),
                (brain[i], expected[1]),
                (high, expected[1]),
                (low, inverse),
            ] {
                assert!(
                    got == want || (got.is_nan() && want.is_nan()),
                    "{bits:#06x}: {got} {want}"
                );
            }
        }
    }
}

#[test]
fn every_available_set_computes_the_same() {
    check(Portable);
    #[cfg(target_arch = "aarch64")]
    check(Neon::detect().unwrap());
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = Avx2::detect() {
            check(simd);
        }
        if let Some(simd) = Avx512::detect() {
            check(simd);
        }
    }
}

#[test]
fn detection_names_a_set_that_is_there() {
    assert!(Isa::available().contains(&Isa::detect()));
    for isa in Isa::available() {
        let name = serde_json::to_string(&isa).unwrap();
        assert_eq!(Isa::from_name(name.trim_matches('"')), Some(isa));
    }
    assert_eq!(Isa::from_name("sse"), None);
}
