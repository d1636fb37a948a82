//! Integer arithmetic, shifts, bit fields, logic.

use super::harness::{agree, check};

fn s(v: u64) -> i32 {
    v as u32 as i32
}

fn w(v: i32) -> u64 {
    u64::from(v as u32)
}

#[test]
fn add_sub_mul_keep_low_bits() {
    agree("add.s32 %r0, %r1, %r2;", |[a, b, ..]| a.wrapping_add(b) & 0xffff_ffff);
    agree("sub.u64 %d0, %d1, %d2;", |[a, b, ..]| a.wrapping_sub(b));
    agree("add.u16 %h0, %h1, %h2;", |[a, b, ..]| a.wrapping_add(b) & 0xffff);
    agree("mul.lo.s32 %r0, %r1, %r2;", |[a, b, ..]| a.wrapping_mul(b) & 0xffff_ffff);
    agree("mul.lo.u64 %d0, %d1, %d2;", |[a, b, ..]| a.wrapping_mul(b));
    agree("mad.lo.s32 %r0, %r1, %r2, %r3;", |[a, b, c, _]| {
        a.wrapping_mul(b).wrapping_add(c) & 0xffff_ffff
    });
    check("add.s32 %r0, %r1, -1;", &[(&[0], 0xffff_ffff)]);
}

#[test]
fn saturating_forms_clamp() {
    agree("add.sat.s32 %r0, %r1, %r2;", |[a, b, ..]| w(s(a).saturating_add(s(b))));
    agree("sub.sat.s32 %r0, %r1, %r2;", |[a, b, ..]| w(s(a).saturating_sub(s(b))));
}

#[test]
fn high_and_wide_products() {
    agree("mul.hi.s32 %r0, %r1, %r2;", |[a, b, ..]| {
        ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u64 & 0xffff_ffff
    });
    agree("mul.hi.u32 %r0, %r1, %r2;", |[a, b, ..]| (a as u32 as u64 * (b as u32 as u64)) >> 32);
    agree("mul.hi.u64 %d0, %d1, %d2;", |[a, b, ..]| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    agree("mul.hi.s64 %d0, %d1, %d2;", |[a, b, ..]| {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    });
    agree("mul.wide.s32 %d0, %r1, %r2;", |[a, b, ..]| (i64::from(s(a)) * i64::from(s(b))) as u64);
    agree("mul.wide.u32 %d0, %r1, %r2;", |[a, b, ..]| a as u32 as u64 * (b as u32 as u64));
    agree("mul.wide.s16 %r0, %h1, %h2;", |[a, b, ..]| {
        w(i32::from(a as u16 as i16) * i32::from(b as u16 as i16))
    });
    agree("mad.wide.u32 %d0, %r1, %r2, %d3;", |[a, b, c, _]| {
        (a as u32 as u64 * (b as u32 as u64)).wrapping_add(c)
    });
    agree("mad.hi.u32 %r0, %r1, %r2, %r3;", |[a, b, c, _]| {
        ((a as u32 as u64 * (b as u32 as u64)) >> 32).wrapping_add(c) & 0xffff_ffff
    });
    check("mul24.lo.s32 %r0, %r1, %r2;", &[(&[0xff_ffff, 2], 0xffff_fffe)]);
    check("mul24.hi.u32 %r0, %r1, %r2;", &[(&[0x80_0000, 0x80_0000], 0x4000_0000)]);
    check("mad24.lo.u32 %r0, %r1, %r2, %r3;", &[(&[0xff00_0003, 5, 7], 22)]);
}

#[test]
fn division() {
    agree("div.s32 %r0, %r1, %r2;", |[a, b, ..]| {
        if s(b) == 0 { 0xffff_ffff } else { w(s(a).wrapping_div(s(b))) }
    });
    agree("rem.u32 %r0, %r1, %r2;", |[a, b, ..]| {
        u64::from((a as u32).checked_rem(b as u32).unwrap_or(a as u32))
    });
    agree("div.u64 %d0, %d1, %d2;", |[a, b, ..]| a.checked_div(b).unwrap_or(u64::MAX));
    check("rem.s32 %r0, %r1, %r2;", &[(&[w(-7), 3], w(-1))]);
}

#[test]
fn min_max_abs_neg_sad() {
    agree("min.s32 %r0, %r1, %r2;", |[a, b, ..]| w(s(a).min(s(b))));
    agree("max.u32 %r0, %r1, %r2;", |[a, b, ..]| u64::from((a as u32).max(b as u32)));
    agree("max.s64 %d0, %d1, %d2;", |[a, b, ..]| (a as i64).max(b as i64) as u64);
    agree("abs.s32 %r0, %r1;", |[a, ..]| w(s(a).wrapping_abs()));
    agree("neg.s32 %r0, %r1;", |[a, ..]| w(s(a).wrapping_neg()));
    agree("sad.u32 %r0, %r1, %r2, %r3;", |[a, b, c, _]| {
        u64::from((c as u32).wrapping_add((a as u32).abs_diff(b as u32)))
    });
    agree("sad.s32 %r0, %r1, %r2, %r3;", |[a, b, c, _]| {
        u64::from((c as u32).wrapping_add(s(a).abs_diff(s(b))))
    });
}

#[test]
fn shifts_clamp_their_amount() {
    agree("shl.b32 %r0, %r1, %r2;", |[a, n, ..]| {
        u64::from((a as u32).checked_shl(n as u32).unwrap_or(0))
    });
    agree("shr.u32 %r0, %r1, %r2;", |[a, n, ..]| {
        u64::from((a as u32).checked_shr(n as u32).unwrap_or(0))
    });
    agree("shr.s32 %r0, %r1, %r2;", |[a, n, ..]| w(s(a) >> (n as u32).min(31)));
    agree("shr.s64 %d0, %d1, %r2;", |[a, n, ..]| (a as i64 >> (n as u32).min(63)) as u64);
    agree("shl.b64 %d0, %d1, %r2;", |[a, n, ..]| a.checked_shl(n as u32).unwrap_or(0));
    agree("shr.u16 %h0, %h1, %r2;", |[a, n, ..]| {
        u64::from((a as u16).checked_shr(n as u32).unwrap_or(0))
    });
    agree("shf.l.wrap.b32 %r0, %r1, %r1, %r2;", |[a, n, ..]| {
        u64::from((a as u32).rotate_left(n as u32 & 31))
    });
    agree("shf.r.wrap.b32 %r0, %r1, %r1, %r2;", |[a, n, ..]| {
        u64::from((a as u32).rotate_right(n as u32 & 31))
    });
    check(
        "shf.r.clamp.b32 %r0, %r1, %r2, %r3;",
        &[(&[1, 0xabcd, 40], 0xabcd), (&[16, 1, 4], 0x1000_0001)],
    );
    check("shf.l.clamp.b32 %r0, %r1, %r2, %r3;", &[(&[0x8000_0000, 1, 1], 3), (&[7, 9, 32], 7)]);
}

#[test]
fn bit_counts() {
    agree("popc.b32 %r0, %r1;", |[a, ..]| u64::from((a as u32).count_ones()));
    agree("popc.b64 %r0, %d1;", |[a, ..]| u64::from(a.count_ones()));
    agree("clz.b32 %r0, %r1;", |[a, ..]| u64::from((a as u32).leading_zeros()));
    agree("clz.b64 %r0, %d1;", |[a, ..]| u64::from(a.leading_zeros()));
    agree("brev.b32 %r0, %r1;", |[a, ..]| u64::from((a as u32).reverse_bits()));
    agree("cnot.b32 %r0, %r1;", |[a, ..]| u64::from(a as u32 == 0));
    check("bfind.u32 %r0, %r1;", &[(&[0], 0xffff_ffff), (&[1], 0), (&[0x8000_0001], 31)]);
    check("bfind.s32 %r0, %r1;", &[(&[0xffff_ffff], 0xffff_ffff), (&[0xffff_fffe], 0)]);
    check("bfind.shiftamt.u32 %r0, %r1;", &[(&[1], 31), (&[0x4000_0000], 1)]);
}

#[test]
fn bit_fields() {
    check(
        "bfe.u32 %r0, %r1, %r2, %r3;",
        &[
            (&[0xabcd_1234, 8, 8], 0x12),
            (&[0xffff_ffff, 28, 8], 0xf),
            (&[0xffff_ffff, 0, 0], 0),
            (&[0xffff_ffff, 40, 4], 0),
        ],
    );
    check(
        "bfe.s32 %r0, %r1, %r2, %r3;",
        &[
            (&[0x0000_0080, 4, 4], 0xffff_fff8),
            (&[0x8000_0000, 28, 8], 0xffff_fff8),
            (&[0x8000_0000, 40, 4], 0xffff_ffff),
            (&[0xffff_ffff, 3, 0], 0),
        ],
    );
    check("bfe.u64 %d0, %d1, %r2, %r3;", &[(&[0x1234_5678_9abc_def0, 32, 16], 0x5678)]);
    check(
        "bfi.b32 %r0, %r1, %r2, %r3, %r4;",
        &[
            (&[0xff, 0, 4, 4], 0xf0),
            (&[0, 0xffff_ffff, 28, 8], 0x0fff_ffff),
            (&[0xf, 7, 32, 4], 7),
            (&[0xf, 7, 3, 0], 7),
        ],
    );
    check("bfi.b64 %d0, %d1, %d2, 32, 32;", &[(&[0xaabb, 0x1_2233_4455], 0x0000_aabb_2233_4455)]);
}

#[test]
fn prmt_modes() {
    let (a, b) = (0x3322_1100, 0x7766_5544);
    check(
        "prmt.b32 %r0, %r1, %r2, %r3;",
        &[
            (&[a, b, 0x3210], a),
            (&[a, b, 0x7654], b),
            (&[a, b, 0x0246], 0x0022_4466),
            // Bit 3 of a selector spreads the byte's sign.
            (&[0x80_00, 0, 0x98_10], 0xff00_8000),
        ],
    );
    check("prmt.b32.f4e %r0, %r1, %r2, %r3;", &[(&[a, b, 1], 0x4433_2211)]);
    check("prmt.b32.b4e %r0, %r1, %r2, %r3;", &[(&[a, b, 0], 0x5566_7700)]);
    check("prmt.b32.rc8 %r0, %r1, %r2, %r3;", &[(&[a, b, 2], 0x2222_2222)]);
    check("prmt.b32.ecl %r0, %r1, %r2, %r3;", &[(&[a, b, 2], 0x3322_2222)]);
    check("prmt.b32.ecr %r0, %r1, %r2, %r3;", &[(&[a, b, 1], 0x1111_1100)]);
    check("prmt.b32.rc16 %r0, %r1, %r2, %r3;", &[(&[a, b, 1], 0x3322_3322)]);
}

#[test]
fn logic() {
    agree("and.b32 %r0, %r1, %r2;", |[a, b, ..]| a & b & 0xffff_ffff);
    agree("or.b64 %d0, %d1, %d2;", |[a, b, ..]| a | b);
    agree("xor.b16 %h0, %h1, %h2;", |[a, b, ..]| (a ^ b) & 0xffff);
    agree("not.b32 %r0, %r1;", |[a, ..]| !a & 0xffff_ffff);
    let low = |v: u64| v & 0xffff_ffff;
    agree("lop3.b32 %r0, %r1, %r2, %r3, 0xea;", move |[a, b, c, _]| low((a & b) | c));
    agree("lop3.b32 %r0, %r1, %r2, %r3, 0x96;", move |[a, b, c, _]| low(a ^ b ^ c));
    agree("lop3.b32 %r0, %r1, %r2, %r3, 0x1a;", move |[a, b, c, _]| low((a & b | c) ^ a));
}

#[test]
fn dot_products_of_bytes() {
    check("dp4a.s32.s32 %r0, %r1, %r2, %r3;", &[(&[0x01ff_02fe, 0x0203_0405, 10], 7)]);
    check("dp4a.u32.u32 %r0, %r1, %r2, %r3;", &[(&[0x0101_01ff, 0x0101_0102, 1], 3 + 510 + 1)]);
    check("dp4a.u32.s32 %r0, %r1, %r2, %r3;", &[(&[0x0000_00ff, 0x0000_00ff, 0], 0xffff_ff01)]);
    check("dp2a.lo.u32.u32 %r0, %r1, %r2, %r3;", &[(&[0x0003_ffff, 0x0908_0702, 1], 131_092)]);
    check("dp2a.hi.u32.u32 %r0, %r1, %r2, %r3;", &[(&[0x0003_0002, 0x0908_0702, 1], 44)]);
    check("dp2a.lo.s32.s32 %r0, %r1, %r2, %r3;", &[(&[0x0003_ffff, 0x0000_fe02, 1], 0xffff_fff9)]);
}
