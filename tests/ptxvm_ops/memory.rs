//! Loads, stores, atomics, state spaces, and the checks on every access.

use super::harness::{fault, launch};
use crate::ptxvm::{Arg, Error, FaultKind, Hazard, Machine, Module};

const OWN: &str = "mad.wide.u32 %d2, %r1, 4, %d1;";

#[test]
fn widths_extend_as_their_type_says() {
    let out = launch(
        &format!(
            "{OWN} setp.ne.u32 %p1, %r1, 0; @%p1 ret;
            mov.u32 %r3, 0x80f08182; st.global.b32 [%d1], %r3;
            ld.global.s8 %r4, [%d1]; st.global.u32 [%d1+4], %r4;
            ld.global.u8 %r4, [%d1+1]; st.global.u32 [%d1+8], %r4;
            ld.global.s16 %r4, [%d1+2]; st.global.u32 [%d1+12], %r4;
            ld.global.u16 %h1, [%d1+2]; st.global.u16 [%d1+16], %h1;
            st.global.u8 [%d1+18], %r3;
            ld.global.nc.L1::no_allocate.L2::128B.v2.u16 {{%h2, %h3}}, [%d1]; mov.b32 %r5, {{%h3, %h2}};
            st.global.cg.u32 [%d1+20], %r5;
            ld.volatile.global.u64 %d3, [%d1]; st.relaxed.gpu.global.u64 [%d1+24], %d3;"
        ),
        1,
    );
    assert_eq!(out[1..6], [0xffff_ff82, 0x81, 0xffff_80f0, 0x0082_80f0, 0x8182_80f0]);
    assert_eq!(out[6..8], [0x80f0_8182, 0xffff_ff82]);
}

#[test]
fn vectors_in_every_width() {
    let out = launch(
        "mad.wide.u32 %d2, %r1, 32, %d1;
        ld.global.v4.u32 {%r3, %r4, %r5, _}, [%d2]; ld.global.v2.u64 {%d3, %d4}, [%d2+16];
        st.global.v4.u32 [%d2], {%r5, %r4, %r3, 7}; st.global.v2.b64 [%d2+16], {%d4, %d3};",
        4,
    );
    assert_eq!(out[8..16], [10, 9, 8, 7, 14, 15, 12, 13]);
}

#[test]
fn shared_local_const_and_generic_addresses() {
    let out = launch(
        &format!(
            "{OWN} mad.lo.u32 %r3, %r1, 4, %r2; mul.lo.u32 %r4, %r1, 3; st.shared.u32 [%r3], %r4;
            cvt.u64.u32 %d3, %r3; cvta.shared.u64 %d4, %d3; ld.u32 %r5, [%d4];
            isspacep.shared %p1, %d4; isspacep.global %p2, %d4; isspacep.global %p3, %d1;
            selp.u32 %r6, 100, 0, %p1; selp.u32 %r7, 1000, 0, %p2; selp.u32 %r8, 10000, 0, %p3;
            add.u32 %r5, %r5, %r6; add.u32 %r5, %r5, %r7; add.u32 %r5, %r5, %r8;
            cvta.to.shared.u64 %d5, %d4; sub.u64 %d5, %d5, %d3; cvt.u32.u64 %r9, %d5;
            add.u32 %r5, %r5, %r9; st.u32 [%d2], %r5;"
        ),
        32,
    );
    (0..32).for_each(|i| assert_eq!(out[i], i as u32 * 3 + 10_100));
}

#[test]
fn module_variables_local_depots_and_byte_parameters() {
    let module = Module::parse(
        ".version 9.0\n.target sm_90\n.address_size 64
        .const .align 4 .b8 tab[12] = {1, 0, 0, 0, 2, 0, 0, 0, 3};
        .global .align 8 .u32 grid_wide[2] = {40, 0x32};
        .global .align 4 .f32 scratch[4];
        .visible .entry k(.param .u64 .ptr .global .align 4 out, .param .align 4 .b8 s[8]) {
        .local .align 8 .b8 depot[16]; .reg .b64 %SP, %SPL; .reg .b32 %r<9>; .reg .b64 %d<9>;
        mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL; mov.u32 %r1, %tid.x;
        st.local.u32 [%SPL+8], %r1; ld.u32 %r2, [%SP+8];
        ld.const.u32 %r3, [tab+8]; mov.u64 %d1, tab; ld.const.u32 %r4, [%d1+4];
        ld.global.u32 %r5, [grid_wide+4]; mov.u64 %d4, grid_wide; ld.global.u32 %r6, [%d4];
        st.global.u32 [scratch], %r6; bar.warp.sync -1; ld.global.u32 %r6, [scratch];
        ld.param.u32 %r7, [s+4];
        add.u32 %r2, %r2, %r3; mad.lo.u32 %r2, %r4, 10, %r2; mad.lo.u32 %r2, %r5, 100, %r2;
        mad.lo.u32 %r2, %r6, 10000, %r2; add.u32 %r2, %r2, %r7;
        ld.param.u64 %d2, [out]; mad.wide.u32 %d2, %r1, 4, %d2; st.global.u32 [%d2], %r2; ret; }",
    )
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(module.kernels().collect::<Vec<_>>(), ["k"]);
    let mut gpu = Machine::new(3);
    let out = gpu.alloc_uninit("out", 64);
    let args = [Arg::ptr(out), Arg::bytes(&[0, 0, 0, 0, 64, 66, 15, 0])];
    gpu.launch(&module, "k", [1; 3], [16, 1, 1], 0, &args).unwrap_or_else(|e| panic!("{e}"));
    let got = gpu.read(out).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(got[60..], (15u32 + 3 + 20 + 5000 + 400_000 + 1_000_000).to_le_bytes());
}

#[test]
fn atomics_return_the_old_value_and_add_up() {
    let one = |op: &str, start: u32, threads: u32| {
        launch(
            &format!(
                "setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%d1], {start}; bar.sync 0; {op}"
            ),
            threads,
        )[0]
    };
    assert_eq!(one("atom.global.add.u32 %r3, [%d1], %r1;", 5, 64), 5 + 63 * 32);
    assert_eq!(one("red.global.add.u32 [%d1], 2;", 5, 64), 133);
    assert_eq!(one("red.relaxed.gpu.global.max.s32 [%d1], %r1;", 5, 64), 63);
    assert_eq!(
        one("sub.s32 %r3, 0, %r1; atom.global.min.s32 %r4, [%d1], %r3;", 5, 64),
        -63i32 as u32
    );
    assert_eq!(one("shl.b32 %r3, 1, %r1; red.global.or.b32 [%d1], %r3;", 0, 32), u32::MAX);
    assert_eq!(
        one("shl.b32 %r3, 1, %r1; not.b32 %r3, %r3; red.global.and.b32 [%d1], %r3;", 0xffff, 8),
        0xff00
    );
    assert_eq!(one("red.global.xor.b32 [%d1], %r1;", 0, 4), 0);
    assert_eq!(one("setp.eq.u32 %p1, %r1, 3; @%p1 atom.global.exch.b32 %r3, [%d1], 9;", 0, 32), 9);
    assert_eq!(one("atom.global.cas.b32 %r3, [%d1], %r1, 77;", 6, 4), 6);
    assert_eq!(one("atom.global.cas.b32 %r3, [%d1], %r1, 77;", 3, 4), 77);
    assert_eq!(one("atom.global.inc.u32 %r3, [%d1], 3;", 0, 6), 2);
    assert_eq!(one("atom.global.dec.u32 %r3, [%d1], 3;", 1, 3), 2);
    assert_eq!(one("red.global.add.f32 [%d1], 0f3F800000;", 0, 64), 64f32.to_bits());
    assert_eq!(one("red.global.add.noftz.f16x2 [%d1], 0x3C004000;", 0, 4), 0x4400_4800);
    let out = launch(
        "mul.wide.u32 %d2, %r1, 0; atom.global.add.u64 %d3, [%d1+8], 5; mad.wide.u32 %d4, %r1, 8, %d1; st.global.u64 [%d4+64], %d3;",
        1,
    );
    assert_eq!(out[2..4], [7, 3]);
    assert_eq!(out[16..18], [2, 3]);
}

#[test]
fn shared_atomics_need_no_order_among_themselves() {
    let out = launch(
        &format!(
            "{OWN} setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [%r2], 0; bar.sync 0;
            atom.shared.add.u32 %r3, [%r2], %r1; bar.sync 0; ld.shared.u32 %r4, [%r2];
            st.global.u32 [%d2], %r4;"
        ),
        96,
    );
    assert_eq!(out[..96], [95 * 48; 96]);
}

#[test]
fn out_of_bounds_is_a_fault_with_its_place() {
    let kind = fault("mad.wide.u32 %d2, %r1, 4, %d1; st.global.u32 [%d2+4093], %r1;", 1);
    assert!(matches!(kind, FaultKind::Misaligned { space: "global", align: 4, .. }), "{kind}");
    let kind = fault("mad.wide.u32 %d2, %r1, 4, %d1; ld.global.u32 %r3, [%d2+4092];", 32);
    assert!(matches!(kind, FaultKind::OutOfBounds { space: "global", len: 4, .. }), "{kind}");
    let text = super::harness::launch_seeded("ld.global.u32 %r3, [%d1+4096];", 1, 0)
        .unwrap_err()
        .to_string();
    for part in
        ["k: 4 bytes at global address", "4096 of p", "lane 0", "ptx line", "ld.global.u32 %r3"]
    {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    assert!(matches!(
        fault("ld.shared.u32 %r3, [0];", 1),
        FaultKind::OutOfBounds { space: "shared", .. }
    ));
    assert!(matches!(fault("ld.shared.u32 %r3, [dyn];", 1), FaultKind::OutOfBounds { .. }));
    assert!(matches!(
        fault("mov.u64 %d2, 0; ld.u32 %r3, [%d2];", 1),
        FaultKind::OutOfBounds { .. }
    ));
    let kind = fault("ld.global.v4.u32 {%r3,%r4,%r5,%r6}, [%d1+4088];", 1);
    assert!(matches!(kind, FaultKind::Misaligned { align: 16, .. }), "{kind}");
}

#[test]
fn uninitialised_bytes_are_not_read() {
    let kind = fault("ld.shared.u32 %r3, [%r2];", 1);
    assert!(matches!(kind, FaultKind::Uninitialised { space: "shared", .. }), "{kind}");
    let kind = fault("st.shared.u16 [%r2], %h1; ld.shared.u32 %r3, [%r2];", 1);
    assert!(matches!(kind, FaultKind::Uninitialised { space: "shared", .. }), "{kind}");
    let module = super::harness::module("ld.global.u8 %r3, [%d1+3];");
    let mut gpu = Machine::new(0);
    let p = gpu.alloc_uninit("out", 4);
    let run = |gpu: &mut Machine| gpu.launch(&module, "k", [1; 3], [1; 3], 0, &[Arg::ptr(p)]);
    let kind = run(&mut gpu).unwrap_err().fault().cloned();
    assert!(matches!(kind, Some(FaultKind::Uninitialised { space: "global", .. })), "{kind:?}");
    assert!(gpu.read(p).is_err() && gpu.read_partial(p).is_ok());
    gpu.write(p, 3, &[1]).unwrap_or_else(|e| panic!("{e}"));
    assert!(run(&mut gpu).is_ok());
    assert!(gpu.write(p, 3, &[1, 2]).is_err());
    assert!(gpu.write(p.offset(1), 0, &[1]).is_err());
}

#[test]
fn read_only_buffers_stay_as_they_are() {
    let module = super::harness::module("st.global.u8 [%d1], %r1;");
    let mut gpu = Machine::new(0);
    let p = gpu.alloc_read_only("weights", &[0; 4]);
    let error = gpu.launch(&module, "k", [1; 3], [1; 3], 0, &[Arg::ptr(p)]).unwrap_err();
    assert!(matches!(error.fault(), Some(FaultKind::ReadOnly { .. })), "{error}");
}

#[test]
fn stores_of_different_values_to_one_place_race() {
    let race = |kind: &FaultKind, h| matches!(kind, FaultKind::Race { space: "global", hazard, .. } if *hazard == h);
    let kind = fault("st.global.u32 [%d1], %r1;", 2);
    assert!(race(&kind, Hazard::WriteAfterWrite), "{kind}");
    // Equal values are no race, nor are stores that a barrier orders.
    launch("st.global.u32 [%d1], 5;", 64);
    launch(
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%d1], 1; bar.sync 0; setp.eq.u32 %p1, %r1, 40; @%p1 st.global.u32 [%d1], 2;",
        64,
    );
    let kind = fault(
        "mad.wide.u32 %d2, %r1, 4, %d1; st.global.u32 [%d2], 9; xor.b32 %r3, %r1, 32; mad.wide.u32 %d2, %r3, 4, %d1; ld.global.u32 %r4, [%d2];",
        64,
    );
    assert!(race(&kind, Hazard::ReadAfterWrite), "{kind}");
    let module = super::harness::module("mov.u32 %r3, %ctaid.x; st.global.u32 [%d1], %r3;");
    let mut gpu = Machine::new(0);
    let p = gpu.alloc_uninit("out", 4);
    let error = gpu.launch(&module, "k", [2, 1, 1], [1; 3], 0, &[Arg::ptr(p)]).unwrap_err();
    assert!(error.fault().is_some_and(|k| race(k, Hazard::WriteAfterWrite)), "{error}");
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let module = super::harness::module("");
    let mut gpu = Machine::new(0);
    let p = gpu.alloc_init("p", &[0; 4]);
    let args = [Arg::ptr(p)];
    let mut refused = |name: &str, grid, block, shared, args: &[Arg]| {
        let e = gpu.launch(&module, name, grid, block, shared, args).unwrap_err();
        assert!(matches!(e, Error::Launch(_)), "{e}");
    };
    refused("no", [1; 3], [1; 3], 0, &args);
    refused("k", [1; 3], [1; 3], 0, &[]);
    refused("k", [1; 3], [1; 3], 0, &[Arg::f32(1.0)]);
    refused("k", [0, 1, 1], [1; 3], 0, &args);
    refused("k", [1; 3], [1025, 1, 1], 0, &args);
    refused("k", [1; 3], [1; 3], 240 << 10, &args);
}
