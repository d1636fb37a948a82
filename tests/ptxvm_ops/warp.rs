//! Shuffles, votes, divergence and reconvergence, member masks.

use super::harness::{fault, launch};
use crate::ptxvm::FaultKind;

/// Lane results of `code`, which leaves them in `%r3`.
fn lanes(code: &str) -> Vec<u32> {
    let store = "mad.wide.u32 %d2, %r1, 4, %d1; st.global.u32 [%d2], %r3;";
    launch(&format!("{code} {store}"), 32)[..32].to_vec()
}

fn each(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

#[test]
fn shuffle_modes() {
    let pick = "selp.u32 %r4, 100, 0, %p1; add.u32 %r3, %r3, %r4;";
    let of = |op: &str| lanes(&format!("{op} {pick}"));
    assert_eq!(of("shfl.sync.bfly.b32 %r3|%p1, %r1, 5, 31, -1;"), each(|l| (l ^ 5) + 100));
    assert_eq!(
        of("shfl.sync.up.b32 %r3|%p1, %r1, 3, 0, -1;"),
        each(|l| if l >= 3 { l - 3 + 100 } else { l })
    );
    assert_eq!(
        of("shfl.sync.down.b32 %r3|%p1, %r1, 3, 31, -1;"),
        each(|l| if l + 3 < 32 { l + 3 + 100 } else { l })
    );
    assert_eq!(of("shfl.sync.idx.b32 %r3|%p1, %r1, 7, 31, -1;"), each(|_| 107));
    // Segments of eight: mask 0x18 in the upper bits of c, clamp 7.
    assert_eq!(of("shfl.sync.idx.b32 %r3|%p1, %r1, 2, 0x181f, -1;"), each(|l| (l & 24) + 102));
    assert_eq!(
        of("shfl.sync.down.b32 %r3|%p1, %r1, 1, 0x181f, -1;"),
        each(|l| if l % 8 == 7 { l } else { l + 101 })
    );
}

#[test]
fn shuffles_check_their_members() {
    let kind = fault("shfl.sync.bfly.b32 %r3, %r1, 16, 31, 0xffff;", 16);
    assert!(matches!(kind, FaultKind::WarpSync(_)), "{kind}");
    let kind = fault("shfl.sync.bfly.b32 %r3, %r1, 1, 31, 0xffff;", 32);
    assert!(matches!(kind, FaultKind::WarpSync(_)), "{kind}");
    // Half of the warp never comes.
    let kind = fault(
        "setp.lt.u32 %p1, %r1, 16; @%p1 shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1; bar.sync 0;",
        32,
    );
    assert!(matches!(kind, FaultKind::BarrierDivergence(_) | FaultKind::Deadlock(_)), "{kind}");
    launch("setp.lt.u32 %p1, %r1, 16; @%p1 shfl.sync.bfly.b32 %r3, %r1, 1, 31, 0xffff;", 32);
}

#[test]
fn lanes_that_exited_are_not_waited_for() {
    let out = launch(
        "setp.ge.u32 %p1, %r1, 24; @%p1 ret; vote.sync.ballot.b32 %r3, 1, -1;
        mad.wide.u32 %d2, %r1, 4, %d1; st.global.u32 [%d2], %r3;",
        32,
    );
    assert_eq!(out[..24], [0xff_ffff; 24]);
    // Lanes that wait already go on when the last one missing exits.
    let out = launch(
        "setp.ge.u32 %p1, %r1, 24; @%p1 bra LATE; bra GO; LATE: nanosleep.u32 10; ret;
        GO: bar.warp.sync -1; mad.wide.u32 %d2, %r1, 4, %d1; st.global.u32 [%d2], 7;",
        32,
    );
    assert_eq!(out[..25], [[7; 24].as_slice(), &[24]].concat());
}

#[test]
fn votes_and_matches() {
    let even = "and.b32 %r4, %r1, 1; setp.eq.u32 %p1, %r4, 0;";
    assert_eq!(lanes(&format!("{even} vote.sync.ballot.b32 %r3, %p1, -1;")), each(|_| 0x5555_5555));
    assert_eq!(
        lanes(&format!("{even} vote.sync.ballot.b32 %r3, !%p1, -1;")),
        each(|_| 0xaaaa_aaaa)
    );
    let pred = |op: &str| lanes(&format!("{even} {op} selp.u32 %r3, 1, 0, %p2;"))[0];
    assert_eq!(pred("vote.sync.any.pred %p2, %p1, -1;"), 1);
    assert_eq!(pred("vote.sync.all.pred %p2, %p1, -1;"), 0);
    assert_eq!(pred("vote.sync.uni.pred %p2, %p1, -1;"), 0);
    let groups = "shr.u32 %r4, %r1, 3;";
    let any = lanes(&format!("{groups} match.any.sync.b32 %r3, %r4, -1;"));
    assert_eq!(any, each(|l| 0xff << (l / 8 * 8)));
    let all = |value: &str| {
        lanes(&format!(
            "{groups} match.all.sync.b32 %r3|%p1, {value}, -1; selp.u32 %r5, 1, 0, %p1; xor.b32 %r3, %r3, %r5;"
        ))[0]
    };
    assert_eq!(all("%r4"), 0);
    assert_eq!(all("%r2"), 0xffff_fffe);
}

#[test]
fn reductions_election_and_activity() {
    assert_eq!(lanes("redux.sync.add.s32 %r3, %r1, -1;"), each(|_| 496));
    assert_eq!(lanes("sub.s32 %r4, 3, %r1; redux.sync.min.s32 %r3, %r4, -1;")[9], -28i32 as u32);
    assert_eq!(lanes("redux.sync.max.u32 %r3, %r1, -1;")[0], 31);
    assert_eq!(lanes("redux.sync.or.b32 %r3, %r1, -1;")[0], 31);
    assert_eq!(lanes("redux.sync.and.b32 %r3, %r1, -1;")[0], 0);
    assert_eq!(lanes("redux.sync.xor.b32 %r3, %r1, -1;")[0], 0);
    let elected = lanes("elect.sync %r4|%p1, -1; selp.u32 %r3, 1, 0, %p1; add.u32 %r3, %r3, %r4;");
    assert_eq!(elected, each(|l| u32::from(l == 0)));
    assert_eq!(
        lanes("mov.u32 %r3, 0; setp.lt.u32 %p1, %r1, 8; @%p1 activemask.b32 %r3;"),
        each(|l| if l < 8 { 255 } else { 0 })
    );
}

#[test]
fn special_registers() {
    assert_eq!(lanes("mov.u32 %r3, %laneid;"), each(|l| l));
    assert_eq!(lanes("mov.u32 %r3, %lanemask_lt;"), each(|l| (1 << l) - 1));
    assert_eq!(lanes("mov.u32 %r3, %lanemask_le;"), each(|l| u32::MAX >> (31 - l)));
    assert_eq!(
        lanes("mov.u32 %r3, %lanemask_gt; not.b32 %r3, %r3;"),
        each(|l| u32::MAX >> (31 - l))
    );
    assert_eq!(lanes("mov.u32 %r3, %lanemask_ge; not.b32 %r3, %r3;"), each(|l| (1 << l) - 1));
    assert_eq!(lanes("mov.u32 %r3, %lanemask_eq;"), each(|l| 1 << l));
    assert_eq!(
        lanes("mov.u32 %r3, %ntid.x; mov.u32 %r4, %nctaid.y; add.u32 %r3, %r3, %r4;"),
        each(|_| 33)
    );
    let out = launch(
        "mov.u32 %r3, %warpid; mov.u32 %r5, %nwarpid; mad.lo.u32 %r3, %r5, 10, %r3; mad.wide.u32 %d2, %r1, 4, %d1; st.global.u32 [%d2], %r3;",
        64,
    );
    assert_eq!((out[0], out[63]), (20, 21));
    let clocks = lanes(
        "mov.u32 %r4, %clock; mov.u32 %r5, %clock; setp.gt.u32 %p1, %r5, %r4; selp.u32 %r3, 1, 0, %p1;",
    );
    assert_eq!(clocks, each(|_| 1));
}

#[test]
fn loops_of_different_length_reconverge() {
    let out = lanes(
        "mov.u32 %r3, 0; mov.u32 %r4, 0;
        LOOP: setp.ge.u32 %p1, %r4, %r1; @%p1 bra DONE; add.u32 %r3, %r3, %r4;
        add.u32 %r4, %r4, 1; bra.uni LOOP; DONE: activemask.b32 %r5;
        setp.ne.u32 %p2, %r5, -1; @%p2 mov.u32 %r3, 9999;",
    );
    assert_eq!(out, each(|l| l * l.saturating_sub(1) / 2));
}

#[test]
fn indexed_branches_and_scoped_labels() {
    let out = lanes(
        "and.b32 %r4, %r1, 3; T: .branchtargets A, B, C, A; brx.idx %r4, T;
        A: mov.u32 %r3, 1; bra END; B: mov.u32 %r3, 2; bra END; C: mov.u32 %r3, 3; END:
        { .reg .pred %q; setp.eq.u32 %q, %r1, 0; @%q bra SKIP; add.u32 %r3, %r3, 10; SKIP: }
        { .reg .pred %q; setp.eq.u32 %q, %r1, 1; @%q bra SKIP; add.u32 %r3, %r3, 20; SKIP: }",
    );
    assert_eq!(out[..4], [21, 12, 33, 31]);
    let kind = fault("T: .branchtargets A; brx.idx %r1, T; A:", 2);
    assert!(matches!(kind, FaultKind::Undefined(_)), "{kind}");
}

#[test]
fn a_lane_that_spins_lets_the_lane_it_waits_for_run() {
    // Lane 0 waits at a lower program counter than lane 1, which sets the flag.
    let out = lanes(
        "mov.u32 %r3, 0; setp.eq.u32 %p1, %r1, 0; @!%p1 bra SET; SPIN: atom.global.add.u32 %r4, [%d1+400], 0;
        setp.eq.u32 %p2, %r4, 100; @%p2 bra SPIN; mov.u32 %r3, 5; bra END;
        SET: setp.eq.u32 %p3, %r1, 1; @%p3 red.global.add.u32 [%d1+400], 1; END:",
    );
    assert_eq!(out[..2], [5, 0]);
}

#[test]
fn endless_loops_and_traps_end() {
    assert!(matches!(fault("L: bra L;", 32), FaultKind::Budget(_)));
    assert!(matches!(fault("setp.eq.u32 %p1, %r1, 3; @%p1 trap;", 32), FaultKind::Trap));
}
