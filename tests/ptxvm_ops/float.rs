//! Floating-point arithmetic in f32, f64, f16 and bf16.

use half::{bf16, f16};

use super::harness::{agree, check, eval};

const NAN: u64 = 0x7fff_ffff;

fn f(v: f32) -> u64 {
    v.to_bits().into()
}

fn of(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

/// The bits of a result, NaN made canonical as PTX does.
fn canon(v: f32) -> u64 {
    if v.is_nan() { NAN } else { f(v) }
}

#[test]
fn f32_basics_round_to_nearest() {
    agree("add.f32 %r0, %r1, %r2;", |[a, b, ..]| canon(of(a) + of(b)));
    agree("sub.rn.f32 %r0, %r1, %r2;", |[a, b, ..]| canon(of(a) - of(b)));
    agree("mul.f32 %r0, %r1, %r2;", |[a, b, ..]| canon(of(a) * of(b)));
    agree("div.rn.f32 %r0, %r1, %r2;", |[a, b, ..]| canon(of(a) / of(b)));
    agree("sqrt.rn.f32 %r0, %r1;", |[a, ..]| canon(of(a).sqrt()));
    agree("rcp.rn.f32 %r0, %r1;", |[a, ..]| canon(1.0 / of(a)));
    agree("fma.rn.f32 %r0, %r1, %r2, %r3;", |[a, b, c, _]| canon(of(a).mul_add(of(b), of(c))));
}

#[test]
fn f32_fma_rounds_once() {
    // 1 + 2^-24 lies on a tie; the product's low bits must break it.
    let a = 1.0 + f32::EPSILON;
    let cases = [(a, a, -1.0), (a, 1.0 - f32::EPSILON, f32::EPSILON / 4.0), (1e-30, 1e-10, 1e-40)];
    for (a, b, c) in cases {
        check("fma.rn.f32 %r0, %r1, %r2, %r3;", &[(&[f(a), f(b), f(c)], f(a.mul_add(b, c)))]);
    }
    let ulp = 2f32.powi(-23);
    let tie = [1.0 + ulp, 1.0 + 2f32.powi(-12), 2f32.powi(-40)];
    let want = tie[0].mul_add(tie[1], tie[2]);
    check("fma.rn.f32 %r0, %r1, %r2, %r3;", &[(&tie.map(f), f(want))]);
}

#[test]
fn f32_directed_rounding_brackets_the_exact_result() {
    let rows: Vec<[u64; 4]> = (1..200u32)
        .map(|i| [f(i as f32 / 7.0), f(-3.0 / i as f32), f(1e-3 * i as f32), 0])
        .collect();
    let all = |op: &str| ["rm", "rn", "rp", "rz"].map(|m| eval(&op.replace("$", m), &rows));
    for op in
        ["fma.$.f32 %r0, %r1, %r2, %r3;", "add.$.f32 %r0, %r1, %r2;", "mul.$.f32 %r0, %r1, %r2;"]
    {
        let [down, near, up, zero] = all(op);
        let mut inexact = 0;
        for i in 0..rows.len() {
            let (d, n, u) = (of(down[i]), of(near[i]), of(up[i]));
            assert!(d <= n && n <= u && (u == d || u == d.next_up()), "{op} row {i}");
            assert_eq!(of(zero[i]), if u <= 0.0 { u } else { d }, "{op} row {i}");
            inexact += usize::from(u != d);
        }
        assert!(inexact > 100, "{op}: {inexact} inexact results");
    }
    check("add.rm.f32 %r0, %r1, %r2;", &[(&[f(1.0), f(-1.0)], f(-0.0)), (&[f(0.0), f(0.0)], 0)]);
    check("add.rp.f32 %r0, %r1, %r2;", &[(&[f(1.0), f(-1.0)], 0)]);
}

#[test]
fn f32_flush_saturate_and_nan() {
    check(
        "add.ftz.f32 %r0, %r1, %r2;",
        &[(&[1, 0], 0), (&[0x8000_0001, 0x8000_0000], 0x8000_0000)],
    );
    check("mul.ftz.f32 %r0, %r1, %r2;", &[(&[f(1e-30), f(1e-10)], 0)]);
    check("mul.f32 %r0, %r1, %r2;", &[(&[f(1e-30), f(1e-10)], f(1e-30 * 1e-10))]);
    check(
        "add.sat.f32 %r0, %r1, %r2;",
        &[(&[f(0.75), f(0.5)], f(1.0)), (&[f(-0.75), f(0.5)], 0), (&[NAN, f(0.5)], 0)],
    );
    check("add.f32 %r0, %r1, %r2;", &[(&[0xffc0_1234, 0], NAN)]);
    check("neg.f32 %r0, %r1;", &[(&[f(1.5)], f(-1.5)), (&[0], f(-0.0))]);
    check("abs.f32 %r0, %r1;", &[(&[f(-1.5)], f(1.5))]);
    check("neg.ftz.f32 %r0, %r1;", &[(&[1], f(-0.0))]);
    check("copysign.f32 %r0, %r1, %r2;", &[(&[f(-1.0), f(3.0)], f(-3.0))]);
}

#[test]
fn min_and_max_prefer_numbers() {
    for (op, want) in [("min", f(-0.0)), ("max", 0)] {
        check(
            &format!("{op}.f32 %r0, %r1, %r2;"),
            &[
                (&[f(-0.0), 0], want),
                (&[0, f(-0.0)], want),
                (&[NAN, f(3.0)], f(3.0)),
                (&[f(3.0), NAN], f(3.0)),
                (&[NAN, 0xffc0_0000], NAN),
            ],
        );
        check(&format!("{op}.NaN.f32 %r0, %r1, %r2;"), &[(&[NAN, f(3.0)], NAN)]);
    }
    check("max.f32 %r0, %r1, %r2, %r3;", &[(&[f(1.0), f(5.0), f(2.0)], f(5.0))]);
    check("min.f16x2 %r0, %r1, %r2;", &[(&[0x3c00_7e00, 0x4000_4000], 0x3c00_4000)]);
    check("max.NaN.bf16x2 %r0, %r1, %r2;", &[(&[0x3f80_7fc0, 0x4000_4000], 0x4000_7fff)]);
}

#[test]
fn approximations_are_within_two_ulp() {
    let rows: Vec<[u64; 4]> = (1..200u32).map(|i| [f(i as f32 * 0.37), 0, 0, 0]).collect();
    let near = |code: &str, exact: fn(f64) -> f64| {
        for (row, got) in rows.iter().zip(eval(code, &rows)) {
            let want = exact(of(row[0]).into()) as f32;
            assert!((of(got) - want).abs() <= want.abs() * 2.5e-7, "{code} of {}", of(row[0]));
        }
    };
    near("ex2.approx.ftz.f32 %r0, %r1;", f64::exp2);
    near("lg2.approx.f32 %r0, %r1;", f64::log2);
    near("rsqrt.approx.f32 %r0, %r1;", |v| 1.0 / v.sqrt());
    near("rcp.approx.ftz.f32 %r0, %r1;", |v| 1.0 / v);
    near("sqrt.approx.f32 %r0, %r1;", f64::sqrt);
    near("tanh.approx.f32 %r0, %r1;", f64::tanh);
    near("sin.approx.f32 %r0, %r1;", f64::sin);
    near("cos.approx.f32 %r0, %r1;", f64::cos);
    near("div.approx.f32 %r0, %r1, 0f40400000;", |v| v / 3.0);
    near("div.full.f32 %r0, %r1, 0f40E00000;", |v| v / 7.0);
    let infinity = f(f32::INFINITY);
    check(
        "ex2.approx.ftz.f32 %r0, %r1;",
        &[
            (&[f(f32::NEG_INFINITY)], 0),
            (&[f(-200.0)], 0),
            (&[f(-127.0)], 0),
            (&[f(0.0)], f(1.0)),
            (&[f(128.0)], infinity),
            (&[NAN], NAN),
        ],
    );
    check("ex2.approx.f32 %r0, %r1;", &[(&[f(-127.0)], f(2f32.powi(-127)))]);
    check("rcp.approx.f32 %r0, %r1;", &[(&[0], infinity), (&[f(-0.0)], f(f32::NEG_INFINITY))]);
    check("lg2.approx.f32 %r0, %r1;", &[(&[0], f(f32::NEG_INFINITY)), (&[f(-1.0)], NAN)]);
}

#[test]
fn f64_arithmetic() {
    let d = |v: f64| v.to_bits();
    check("add.f64 %d0, %d1, %d2;", &[(&[d(0.1), d(0.2)], d(0.1 + 0.2))]);
    check("sub.f64 %d0, %d1, %d2;", &[(&[d(0.1), d(0.2)], d(0.1 - 0.2))]);
    check("mul.f64 %d0, %d1, %d2;", &[(&[d(0.1), d(0.2)], d(0.1 * 0.2))]);
    check(
        "fma.rn.f64 %d0, %d1, %d2, %d3;",
        &[(&[d(0.1), d(10.0), d(-1.0)], d(0.1f64.mul_add(10.0, -1.0)))],
    );
    check("div.rn.f64 %d0, %d1, %d2;", &[(&[d(1.0), d(3.0)], d(1.0 / 3.0))]);
    check("sqrt.rn.f64 %d0, %d1;", &[(&[d(2.0)], d(2f64.sqrt()))]);
    check("rcp.rn.f64 %d0, %d1;", &[(&[d(3.0)], d(1.0 / 3.0))]);
    check("min.f64 %d0, %d1, %d2;", &[(&[d(f64::NAN), d(2.0)], d(2.0))]);
    check("max.f64 %d0, %d1, %d2;", &[(&[d(-1.0), d(2.0)], d(2.0))]);
    check("neg.f64 %d0, %d1;", &[(&[d(2.0)], d(-2.0))]);
    check("abs.f64 %d0, %d1;", &[(&[d(-2.0)], d(2.0))]);
    check("copysign.f64 %d0, %d1, %d2;", &[(&[d(-1.0), d(2.0)], d(-2.0))]);
    check("rsqrt.approx.f64 %d0, %d1;", &[(&[d(4.0)], d(0.5))]);
}

#[test]
fn f16_rounds_once_from_the_exact_value() {
    let h = |v: u64| f16::from_bits(v as u16);
    let bits = |v: f64| {
        if v.is_nan() { 0x7fff } else { u64::from(f16::from_f64(v).to_bits()) }
    };
    // Sums and products of two halves are exact in f64, so converting rounds once.
    agree("add.f16 %h0, %h1, %h2;", |[a, b, ..]| bits(h(a).to_f64() + h(b).to_f64()));
    agree("sub.rn.f16 %h0, %h1, %h2;", |[a, b, ..]| bits(h(a).to_f64() - h(b).to_f64()));
    agree("mul.f16 %h0, %h1, %h2;", |[a, b, ..]| bits(h(a).to_f64() * h(b).to_f64()));
    agree("add.f16x2 %r0, %r1, %r2;", |[a, b, ..]| {
        let one = |s: u32| bits(h(a >> s).to_f64() + h(b >> s).to_f64());
        one(0) | one(16) << 16
    });
    // 2048 + 1 is a tie that falls to even; the tiny product tips it.
    let tip = [f16::from_f64(2f64.powi(-10)), f16::from_f64(2f64.powi(-10))];
    check(
        "fma.rn.f16 %h0, %h1, %h2, %h3;",
        &[(
            &[
                tip[0].to_bits().into(),
                tip[1].to_bits().into(),
                f16::from_f64(2048.0).to_bits().into(),
            ],
            f16::from_f64(2048.0).to_bits().into(),
        )],
    );
    check(
        "fma.rn.f16x2 %r0, %r1, %r2, %r3;",
        &[(&[0x3c00_4000, 0x4200_4200, 0x3c00_bc00], 0x4400_4500)],
    );
    check(
        "fma.rn.relu.f16x2 %r0, %r1, %r2, %r3;",
        &[(&[0xbc00_4000, 0x4200_4200, 0x3c00_bc00], 0x4500)],
    );
    check("add.ftz.f16 %h0, %h1, %h2;", &[(&[1, 0], 0)]);
    check("add.sat.f16 %h0, %h1, %h2;", &[(&[0x3c00, 0x3c00], 0x3c00)]);
    check("neg.f16x2 %r0, %r1;", &[(&[0x3c00_bc00], 0xbc00_3c00)]);
    check("abs.f16 %h0, %h1;", &[(&[0xbc00], 0x3c00)]);
    check("ex2.approx.f16x2 %r0, %r1;", &[(&[0x3c00_4000], 0x4000_4400)]);
    check("tanh.approx.f16 %h0, %h1;", &[(&[0], 0)]);
    check("mul.f16 %h0, %h1, %h2;", &[(&[0x7bff, 0x4000], 0x7c00)]);
}

#[test]
fn bf16_rounds_once_from_the_exact_value() {
    let b = |v: f32| u64::from(bf16::from_f32(v).to_bits());
    check("mul.bf16 %h0, %h1, %h2;", &[(&[b(3.0), b(-1.5)], b(-4.5))]);
    check(
        "add.bf16 %h0, %h1, %h2;",
        &[(&[b(256.0), b(1.0)], b(256.0)), (&[b(256.0), b(3.0)], b(260.0))],
    );
    check(
        "sub.bf16x2 %r0, %r1, %r2;",
        &[(&[b(5.0) << 16 | b(1.0), b(2.0) << 16 | b(4.0)], b(3.0) << 16 | b(-3.0))],
    );
    check(
        "fma.rn.bf16x2 %r0, %r1, %r2, %r3;",
        &[(&[0x4000_4040, 0x4040_4040, 0x3f80_bf80], 0x40e0_4100)],
    );
    check(
        "fma.rn.bf16 %h0, %h1, %h2, %h3;",
        &[
            // 256 + 1 is a tie to even; 2^-100 more tips it upwards.
            (&[b(2f32.powi(-50)), b(2f32.powi(-50)), b(256.0)], b(256.0)),
            (&[b(1.0078125), b(1.0078125), b(256.0)], b(258.0)),
        ],
    );
    check("neg.bf16x2 %r0, %r1;", &[(&[0x3f80_bf80], 0xbf80_3f80)]);
    check("max.bf16 %h0, %h1, %h2;", &[(&[b(1.0), b(2.0)], b(2.0))]);
}

#[test]
fn classes_of_numbers() {
    let rows = |want: [u64; 5]| -> Vec<(Vec<u64>, u64)> {
        let values = [f(1.0), 1, f(f32::INFINITY), NAN, 0];
        values.into_iter().map(|v| vec![v]).zip(want).collect()
    };
    for (class, want) in [
        ("finite", [1, 1, 0, 0, 1]),
        ("infinite", [0, 0, 1, 0, 0]),
        ("number", [1, 1, 1, 0, 1]),
        ("notanumber", [0, 0, 0, 1, 0]),
        ("normal", [1, 0, 0, 0, 0]),
        ("subnormal", [0, 1, 0, 0, 0]),
    ] {
        for (value, want) in rows(want) {
            check(&format!("testp.{class}.f32 %p0, %r1;"), &[(&value, want)]);
        }
    }
}
