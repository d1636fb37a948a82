//! `cvt` between integers and floats of every width, and its packed forms.

use half::{bf16, f16};

use super::harness::{agree, check, eval};

fn f(v: f32) -> u64 {
    v.to_bits().into()
}

#[test]
fn integers_extend_cut_and_saturate() {
    agree("cvt.s64.s32 %d0, %r1;", |[a, ..]| i64::from(a as i32) as u64);
    agree("cvt.u64.u32 %d0, %r1;", |[a, ..]| u64::from(a as u32));
    agree("cvt.u32.u64 %r0, %d1;", |[a, ..]| a & 0xffff_ffff);
    agree("cvt.s32.s8 %r0, %r1;", |[a, ..]| u64::from(i32::from(a as i8) as u32));
    agree("cvt.u32.u8 %r0, %r1;", |[a, ..]| a & 255);
    agree("cvt.s16.s8 %h0, %h1;", |[a, ..]| u64::from(i16::from(a as i8) as u16));
    agree("cvt.sat.s8.s32 %r0, %r1;", |[a, ..]| u64::from((a as i32).clamp(-128, 127) as u32));
    agree("cvt.sat.u8.s32 %r0, %r1;", |[a, ..]| (a as i32).clamp(0, 255) as u64);
    agree("cvt.u32.s16 %r0, %h1;", |[a, ..]| u64::from(i32::from(a as i16) as u32));
}

#[test]
fn floats_to_integers_round_and_clamp() {
    let halves = |mode: &str, want: [i32; 4]| {
        for (v, want) in [2.5f32, -2.5, 3.5, -0.75].into_iter().zip(want) {
            let code = format!("cvt.{mode}.s32.f32 %r0, %r1;");
            check(&code, &[(&[f(v)], u64::from(want as u32))]);
        }
    };
    halves("rni", [2, -2, 4, -1]);
    halves("rzi", [2, -2, 3, 0]);
    halves("rmi", [2, -3, 3, -1]);
    halves("rpi", [3, -2, 4, 0]);
    check(
        "cvt.rzi.s32.f32 %r0, %r1;",
        &[
            (&[f(1e20)], 0x7fff_ffff),
            (&[f(-1e20)], 0x8000_0000),
            (&[f(f32::INFINITY)], 0x7fff_ffff),
            (&[f(f32::NAN)], 0),
        ],
    );
    check("cvt.rzi.u32.f32 %r0, %r1;", &[(&[f(-5.0)], 0), (&[f(1e10)], 0xffff_ffff)]);
    check("cvt.rni.s8.f32 %r0, %r1;", &[(&[f(300.0)], 127), (&[f(-2.0)], 0xffff_fffe)]);
    check("cvt.rni.s64.f64 %d0, %d1;", &[(&[(-1.5f64).to_bits()], (-2i64) as u64)]);
    check("cvt.rni.s32.f16 %r0, %h1;", &[(&[0x4300], 4)]);
    check("cvt.rmi.f32.f32 %r0, %r1;", &[(&[f(-1.25)], f(-2.0))]);
    check("cvt.rni.ftz.s32.f32 %r0, %r1;", &[(&[1], 0)]);
}

#[test]
fn integers_to_floats_round_once() {
    agree("cvt.rn.f32.s32 %r0, %r1;", |[a, ..]| f(a as i32 as f32));
    agree("cvt.rn.f32.u64 %r0, %d1;", |[a, ..]| f(a as f32));
    agree("cvt.rn.f64.s64 %d0, %d1;", |[a, ..]| (a as i64 as f64).to_bits());
    agree("cvt.rn.f16.s16 %h0, %h1;", |[a, ..]| {
        f16::from_f64(f64::from(a as i16)).to_bits().into()
    });
    check("cvt.rn.bf16.s32 %h0, %r1;", &[(&[257], bf16::from_f32(256.0).to_bits().into())]);
    check("cvt.rz.f32.u32 %r0, %r1;", &[(&[0xffff_ffff], f(4_294_967_040.0))]);
    check(
        "cvt.rp.f32.u64 %r0, %d1;",
        &[(&[(1 << 60) + 1], f((1u64 << 60) as f32).wrapping_add(1))],
    );
}

#[test]
fn between_float_widths() {
    agree("cvt.f32.f16 %r0, %h1;", |[a, ..]| {
        let v = f16::from_bits(a as u16).to_f32();
        if v.is_nan() { 0x7fff_ffff } else { f(v) }
    });
    agree("cvt.rn.f16.f32 %h0, %r1;", |[a, ..]| {
        let v = f32::from_bits(a as u32);
        if v.is_nan() { 0x7fff } else { f16::from_f32(v).to_bits().into() }
    });
    agree("cvt.rn.bf16.f32 %h0, %r1;", |[a, ..]| {
        let v = f32::from_bits(a as u32);
        if v.is_nan() { 0x7fff } else { bf16::from_f32(v).to_bits().into() }
    });
    agree("cvt.rn.f32.f64 %r0, %d1;", |[a, ..]| {
        let v = f64::from_bits(a) as f32;
        if v.is_nan() { 0x7fff_ffff } else { f(v) }
    });
    check("cvt.f32.bf16 %r0, %h1;", &[(&[0x3fc0], f(1.5))]);
    check("cvt.f64.f32 %d0, %r1;", &[(&[f(0.1)], f64::from(0.1f32).to_bits())]);
    check("cvt.rz.f16.f32 %h0, %r1;", &[(&[f(1e6)], 0x7bff), (&[f(1.0009)], 0x3c00)]);
    check("cvt.rn.relu.f16.f32 %h0, %r1;", &[(&[f(-1.0)], 0)]);
    check("cvt.rn.satfinite.f16.f32 %h0, %r1;", &[(&[f(1e6)], 0x7bff)]);
    check("cvt.sat.f32.f32 %r0, %r1;", &[(&[f(1.5)], f(1.0)), (&[f(f32::NAN)], 0)]);
    check("cvt.ftz.f32.f32 %r0, %r1;", &[(&[1], 0)]);
    check(
        "cvt.rna.tf32.f32 %r0, %r1;",
        &[
            (&[f(1.0 + 2f32.powi(-11))], f(1.0 + 2f32.powi(-10))),
            (&[f(1.0 + 2f32.powi(-12))], f(1.0)),
        ],
    );
}

#[test]
fn packed_pairs_put_the_first_operand_high() {
    check("cvt.rn.f16x2.f32 %r0, %r1, %r2;", &[(&[f(1.0), f(2.0)], 0x3c00_4000)]);
    check("cvt.rn.bf16x2.f32 %r0, %r1, %r2;", &[(&[f(1.0), f(2.0)], 0x3f80_4000)]);
    check("cvt.rn.relu.bf16x2.f32 %r0, %r1, %r2;", &[(&[f(-1.0), f(2.0)], 0x4000)]);
    check("cvt.rz.f16x2.f32 %r0, %r1, %r2;", &[(&[f(1e6), f(-1e6)], 0x7bff_fbff)]);
    check(
        "cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2;",
        &[
            (&[f(1.0), f(-448.0)], 0x38fe),
            (&[f(1e9), f(f32::NAN)], 0x7e7f),
            (&[f(0.001_953_125), f(0.0009)], 0x0100),
            (&[f(17.0), f(19.0)], 0x585a),
        ],
    );
    check("cvt.rn.satfinite.e5m2x2.f32 %h0, %r1, %r2;", &[(&[f(1.0), f(1e9)], 0x3c7b)]);
    check("cvt.rn.satfinite.e4m3x2.f16x2 %h0, %r1;", &[(&[0x3c00_4000], 0x3840)]);
    check("cvt.rn.f16x2.e5m2x2 %r0, %h1;", &[(&[0x3c7c], 0x3c00_7c00)]);
    check("cvt.rn.relu.f16x2.e4m3x2 %r0, %h1;", &[(&[0xb838], 0x3c00)]);
}

/// e4m3 by its definition (Micikevicius et al. 2022): bias 7, no infinities.
fn e4m3(v: u8) -> f64 {
    let (exp, frac) = (i32::from(v >> 3 & 15), f64::from(v & 7));
    let size = match (exp, v & 7) {
        (15, 7) => f64::NAN,
        (0, _) => frac / 8.0 * 2f64.powi(-6),
        _ => (1.0 + frac / 8.0) * 2f64.powi(exp - 7),
    };
    if v & 0x80 != 0 { -size } else { size }
}

#[test]
fn every_e4m3_value_goes_both_ways() {
    let rows: Vec<[u64; 4]> = (0..256).map(|v| [v << 8 | v, 0, 0, 0]).collect();
    for (v, got) in eval("cvt.rn.f16x2.e4m3x2 %r0, %h1;", &rows).into_iter().enumerate() {
        let (got, want) = (f16::from_bits(got as u16).to_f64(), e4m3(v as u8));
        assert!(got == want || (got.is_nan() && want.is_nan()), "{v:#x}: {got} {want}");
    }
    let finite: Vec<u8> = (0..=255).filter(|v| v & 0x7f != 0x7f).collect();
    let rows: Vec<[u64; 4]> =
        finite.iter().map(|&v| [f(e4m3(v) as f32), f(e4m3(v) as f32), 0, 0]).collect();
    let back = eval("cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2;", &rows);
    for (&v, got) in finite.iter().zip(back) {
        assert_eq!(got, u64::from(v) << 8 | u64::from(v));
    }
}

#[test]
fn e4m3_rounds_to_the_nearest_value() {
    let values: Vec<f64> = (0..0x7f).map(e4m3).collect();
    let rows: Vec<[u64; 4]> = (0..2000u32).map(|i| [0, f(i as f32 * 0.229), 0, 0]).collect();
    let got = eval("cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2;", &rows);
    for (row, got) in rows.iter().zip(got) {
        let v = f64::from(f32::from_bits(row[1] as u32));
        let best = values.iter().map(|x| (x - v).abs()).fold(f64::INFINITY, f64::min);
        assert_eq!((e4m3(got as u8) - v).abs(), best, "{v}");
    }
}

#[test]
fn pack_integers_with_saturation() {
    let minus = |v: i32| u64::from(v as u32);
    check(
        "cvt.pack.sat.s8.s32.b32 %r0, %r1, %r2, %r3;",
        &[(&[300, minus(-300), 0xabcd], 0xabcd_7f80), (&[1, minus(-1), 0], 0x01ff)],
    );
    check(
        "cvt.pack.sat.u8.s32.b32 %r0, %r1, %r2, %r3;",
        &[(&[300, minus(-1), 0x1_0002], 0x0002_ff00)],
    );
    check("cvt.pack.sat.s16.s32 %r0, %r1, %r2;", &[(&[40_000, minus(-2)], 0x7fff_fffe)]);
}
