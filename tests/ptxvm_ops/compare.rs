//! Comparison, selection, moves, predicates.

use super::harness::{agree, check};

fn f(v: f32) -> u64 {
    v.to_bits().into()
}

#[test]
fn integer_comparisons() {
    agree("setp.lt.s32 %p0, %r1, %r2;", |[a, b, ..]| u64::from((a as i32) < b as i32));
    agree("setp.ge.u32 %p0, %r1, %r2;", |[a, b, ..]| u64::from(a as u32 >= b as u32));
    agree("setp.hi.u64 %p0, %d1, %d2;", |[a, b, ..]| u64::from(a > b));
    agree("setp.lo.u32 %p0, %r1, %r2;", |[a, b, ..]| u64::from((a as u32) < b as u32));
    agree("setp.ls.u32 %p0, %r1, %r2;", |[a, b, ..]| u64::from(a as u32 <= b as u32));
    agree("setp.hs.u32 %p0, %r1, %r2;", |[a, b, ..]| u64::from(a as u32 >= b as u32));
    agree("setp.eq.b16 %p0, %h1, %h2;", |[a, b, ..]| u64::from(a as u16 == b as u16));
    agree("setp.gt.s64 %p0, %d1, %d2;", |[a, b, ..]| u64::from(a as i64 > b as i64));
    agree("setp.le.s16 %p0, %h1, %h2;", |[a, b, ..]| u64::from(a as i16 <= b as i16));
}

#[test]
fn float_comparisons_and_nan() {
    let nan = f(f32::NAN);
    let cases = |code: &str, less: u64, equal: u64, greater: u64, unordered: u64| {
        check(
            code,
            &[
                (&[f(1.0), f(2.0)], less),
                (&[f(-0.0), f(0.0)], equal),
                (&[f(2.0), f(1.0)], greater),
                (&[nan, f(1.0)], unordered),
                (&[f(1.0), nan], unordered),
            ],
        );
    };
    cases("setp.lt.f32 %p0, %r1, %r2;", 1, 0, 0, 0);
    cases("setp.ltu.f32 %p0, %r1, %r2;", 1, 0, 0, 1);
    cases("setp.leu.f32 %p0, %r1, %r2;", 1, 1, 0, 1);
    cases("setp.gtu.f32 %p0, %r1, %r2;", 0, 0, 1, 1);
    cases("setp.geu.f32 %p0, %r1, %r2;", 0, 1, 1, 1);
    cases("setp.eq.f32 %p0, %r1, %r2;", 0, 1, 0, 0);
    cases("setp.equ.f32 %p0, %r1, %r2;", 0, 1, 0, 1);
    cases("setp.ne.f32 %p0, %r1, %r2;", 1, 0, 1, 0);
    cases("setp.neu.f32 %p0, %r1, %r2;", 1, 0, 1, 1);
    cases("setp.num.f32 %p0, %r1, %r2;", 1, 1, 1, 0);
    cases("setp.nan.f32 %p0, %r1, %r2;", 0, 0, 0, 1);
    check("setp.gt.ftz.f32 %p0, %r1, %r2;", &[(&[1, 0], 0)]);
    check("setp.gt.f16 %p0, %h1, %h2;", &[(&[0x3c00, 0xbc00], 1)]);
    check("setp.lt.bf16 %p0, %h1, %h2;", &[(&[0x3f80, 0x4000], 1)]);
}

#[test]
fn setp_pairs_and_combinations() {
    let cases: &[(&[u64], u64)] = &[(&[1, 2, 1], 1), (&[1, 2, 0], 0), (&[3, 2, 1], 0)];
    check("setp.ne.s32 %p1, %r3, 0; setp.lt.and.s32 %p0|%p2, %r1, %r2, %p1;", cases);
    // The second predicate combines the opposite comparison.
    check(
        "setp.ne.s32 %p1, %r3, 0; setp.lt.and.s32 %p2|%p0, %r1, %r2, %p1;",
        &[(&[1, 2, 1], 0), (&[3, 2, 1], 1), (&[3, 2, 0], 0)],
    );
    check(
        "setp.ne.s32 %p1, %r3, 0; setp.lt.or.s32 %p0, %r1, %r2, !%p1;",
        &[(&[3, 2, 1], 0), (&[3, 2, 0], 1)],
    );
    check("setp.ne.s32 %p1, %r3, 0; setp.lt.xor.s32 %p0, %r1, %r2, %p1;", &[(&[1, 2, 1], 0)]);
}

#[test]
fn set_selp_slct() {
    check("set.lt.u32.s32 %r0, %r1, %r2;", &[(&[1, 2], 0xffff_ffff), (&[2, 1], 0)]);
    check("set.gt.f32.f32 %r0, %r1, %r2;", &[(&[f(2.0), f(1.0)], f(1.0)), (&[0, f(1.0)], 0)]);
    check(
        "setp.ne.u32 %p1, %r3, 0; selp.b32 %r0, %r1, %r2, %p1;",
        &[(&[5, 6, 1], 5), (&[5, 6, 0], 6)],
    );
    check("setp.ne.u32 %p1, %r3, 0; selp.u64 %d0, %d1, %d2, !%p1;", &[(&[5, 6, 1], 6)]);
    check("slct.b32.s32 %r0, %r1, %r2, %r3;", &[(&[5, 6, 0], 5), (&[5, 6, 0xffff_ffff], 6)]);
    check(
        "slct.b32.f32 %r0, %r1, %r2, %r3;",
        &[(&[5, 6, f(-0.0)], 5), (&[5, 6, f(-1.0)], 6), (&[5, 6, f(f32::NAN)], 6)],
    );
}

#[test]
fn predicate_logic_and_guards() {
    let set = "setp.ne.u32 %p1, %r1, 0; setp.ne.u32 %p2, %r2, 0;";
    let table = |op: &str, want: [u64; 4]| {
        let rows: [&[u64]; 4] = [&[0, 0], &[0, 1], &[1, 0], &[1, 1]];
        let cases: Vec<_> = rows.into_iter().zip(want).collect();
        check(&format!("{set} {op}"), &cases);
    };
    table("and.pred %p0, %p1, %p2;", [0, 0, 0, 1]);
    table("or.pred %p0, %p1, %p2;", [0, 1, 1, 1]);
    table("xor.pred %p0, %p1, %p2;", [0, 1, 1, 0]);
    table("not.pred %p0, %p1;", [1, 1, 0, 0]);
    table("mov.pred %p0, %p2;", [0, 1, 0, 1]);
    table("mov.u32 %r0, 7; @%p1 mov.u32 %r0, 8; @!%p2 add.s32 %r0, %r0, 10;", [17, 7, 18, 8]);
}

#[test]
fn moves_pack_and_unpack() {
    check("mov.b32 %r0, {%h1, %h2};", &[(&[0x1234, 0x5678], 0x5678_1234)]);
    check("mov.b64 %d0, {%r1, %r2};", &[(&[0x1234, 0x5678], 0x5678_0000_1234)]);
    check("mov.b32 {%h0, _}, %r1;", &[(&[0xaaaa_bbbb], 0xbbbb)]);
    check("mov.b64 {_, %r0}, %d1;", &[(&[0xaaaa_bbbb_cccc_dddd], 0xaaaa_bbbb)]);
    check("mov.f32 %r0, 0f3F800000;", &[(&[], 0x3f80_0000)]);
    check("mov.f64 %d0, 0d3FF0000000000000;", &[(&[], 0x3ff0_0000_0000_0000)]);
    check("mov.u32 %r0, -1;", &[(&[], 0xffff_ffff)]);
    check("mov.u32 %r0, 0x7fU;", &[(&[], 127)]);
    check("mov.u64 %d0, %d1;", &[(&[u64::MAX], u64::MAX)]);
}
