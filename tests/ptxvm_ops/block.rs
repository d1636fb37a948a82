//! Block barriers and the race detector of shared memory.

use super::harness::{fault, launch};
use crate::ptxvm::{FaultKind, Hazard};

/// Every thread stores its index and loads its partner's, `sync` between the two.
fn exchange(sync: &str, partner: &str) -> String {
    format!(
        "mad.lo.u32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], %r1; {sync}
        xor.b32 %r4, %r1, {partner}; mad.lo.u32 %r3, %r4, 4, %r2; ld.shared.u32 %r5, [%r3];
        mad.wide.u32 %d2, %r1, 4, %d1; st.global.u32 [%d2], %r5;"
    )
}

fn is_race(kind: &FaultKind, want: Hazard) -> bool {
    matches!(kind, FaultKind::Race { space: "shared", hazard, .. } if *hazard == want)
}

#[test]
fn barriers_order_a_block() {
    for barrier in ["bar.sync 0;", "barrier.sync 3;", "barrier.cta.sync.aligned 1, 128;"] {
        let out = launch(&exchange(barrier, "96"), 128);
        (0..128).for_each(|i| assert_eq!(out[i], i as u32 ^ 96, "{barrier}"));
    }
}

#[test]
fn a_missing_barrier_is_a_race_or_an_uninitialised_read() {
    let first = "mad.lo.u32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], 0; bar.sync 0;";
    let kind = fault(&format!("{first} {}", exchange("", "32")), 64);
    assert!(
        is_race(&kind, Hazard::ReadAfterWrite) || is_race(&kind, Hazard::WriteAfterRead),
        "{kind}"
    );
    // Without a barrier after the loads the next round's stores overtake them.
    let twice = format!("{} {}", exchange("bar.sync 0;", "32"), exchange("bar.sync 0;", "32"));
    let kind = fault(&twice, 64);
    assert!(matches!(kind, FaultKind::Race { space: "shared", .. }), "{kind}");
    let safe =
        format!("{} bar.sync 0; {}", exchange("bar.sync 0;", "32"), exchange("bar.sync 0;", "32"));
    launch(&safe, 64);
}

#[test]
fn lock_step_orders_nothing() {
    let kind = fault(&exchange("", "1"), 32);
    assert!(is_race(&kind, Hazard::ReadAfterWrite), "{kind}");
    for sync in [
        "bar.warp.sync -1;",
        "shfl.sync.idx.b32 %r6, %r1, 0, 31, -1;",
        "vote.sync.any.pred %p1, 1, -1;",
    ] {
        launch(&exchange(sync, "1"), 32);
    }
    // A warp's own synchronisation does not reach another warp.
    let init = "mad.lo.u32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], 0; bar.sync 0;";
    let kind = fault(&format!("{init} {}", exchange("bar.warp.sync -1;", "32")), 64);
    assert!(
        is_race(&kind, Hazard::ReadAfterWrite) || is_race(&kind, Hazard::WriteAfterRead),
        "{kind}"
    );
}

#[test]
fn part_of_a_warp_synchronises_by_itself() {
    let pairs = "and.b32 %r6, %r1, 30; mov.u32 %r7, 3; shl.b32 %r7, %r7, %r6; bar.warp.sync %r7;";
    launch(&exchange(pairs, "1"), 32);
    let kind = fault(&exchange(pairs, "2"), 32);
    assert!(is_race(&kind, Hazard::ReadAfterWrite), "{kind}");
    // Two steps of pairs reach every lane of four: what a partner knew travels on.
    let quads = format!(
        "{pairs} and.b32 %r6, %r1, 29; mov.u32 %r7, 5; shl.b32 %r7, %r7, %r6; bar.warp.sync %r7;"
    );
    launch(&exchange(&quads, "3"), 32);
    launch(&exchange(&format!("{pairs} bar.sync 0;"), "31"), 32);
}

#[test]
fn two_writers_race() {
    let kind = fault("st.shared.u32 [%r2], %r1;", 2);
    assert!(is_race(&kind, Hazard::WriteAfterWrite), "{kind}");
    // Neighbouring bytes are different places.
    launch("add.u32 %r3, %r2, %r1; st.shared.u8 [%r3], %r1;", 64);
    let kind = fault("atom.shared.add.u32 %r3, [%r2], 1;", 1);
    assert!(matches!(kind, FaultKind::Uninitialised { .. }), "{kind}");
    let kind = fault(
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [%r2], 0; atom.shared.add.u32 %r3, [%r2], 1;",
        32,
    );
    assert!(is_race(&kind, Hazard::WriteAfterWrite), "{kind}");
}

#[test]
fn a_reader_before_a_synchronised_reader_is_not_forgotten() {
    // Lane 3 reads, the warp synchronises, lane 4 reads and overwrites: in order.
    let body = |sync: &str| {
        format!(
            "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [%r2], 7; bar.warp.sync -1;
            setp.eq.u32 %p2, %r1, 3; @%p2 ld.shared.u32 %r3, [%r2]; {sync}
            setp.eq.u32 %p3, %r1, 4; @%p3 ld.shared.u32 %r3, [%r2]; @%p3 st.shared.u32 [%r2], 8;"
        )
    };
    launch(&body("bar.warp.sync -1;"), 32);
    let kind = fault(&body(""), 32);
    assert!(is_race(&kind, Hazard::WriteAfterRead), "{kind}");
}

#[test]
fn named_barriers_order_producers_and_consumers() {
    // Warp 0 arrives without waiting, warp 1 waits for it.
    let body = |arrive: &str| {
        format!(
            "mad.lo.u32 %r3, %r1, 4, %r2; setp.lt.u32 %p1, %r1, 32; @%p1 bra PRODUCE;
            bar.sync 1, 64; ld.shared.u32 %r4, [%r3+-128]; mad.wide.u32 %d2, %r1, 4, %d1;
            st.global.u32 [%d2], %r4; bra END;
            PRODUCE: mul.lo.u32 %r4, %r1, 3; {arrive} END:"
        )
    };
    let out = launch(&body("st.shared.u32 [%r3], %r4; bar.arrive 1, 64;"), 64);
    (32..64).for_each(|i| assert_eq!(out[i], (i as u32 - 32) * 3));
    let kind = fault(&body("bar.arrive 1, 64; st.shared.u32 [%r3], %r4;"), 64);
    assert!(matches!(kind, FaultKind::Uninitialised { .. } | FaultKind::Race { .. }), "{kind}");
}

#[test]
fn barriers_reduce() {
    let out = launch(
        "setp.lt.u32 %p1, %r1, 40; barrier.cta.red.popc.aligned.u32 %r3, 0, %p1;
        bar.red.and.pred %p2, 0, %p1; bar.red.or.pred %p3, 0, !%p1;
        selp.u32 %r4, 100, 0, %p2; selp.u32 %r5, 1000, 0, %p3; add.u32 %r3, %r3, %r4;
        add.u32 %r3, %r3, %r5; mad.wide.u32 %d2, %r1, 4, %d1; st.global.u32 [%d2], %r3;",
        64,
    );
    assert_eq!(out[..64], [1040; 64]);
}

#[test]
fn divergent_barriers_are_faults() {
    let kind = fault("setp.lt.u32 %p1, %r1, 16; @%p1 bar.sync 0; bar.sync 0;", 32);
    assert!(matches!(kind, FaultKind::BarrierDivergence(_)), "{kind}");
    let kind =
        fault("setp.lt.u32 %p1, %r1, 16; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B:", 64);
    assert!(matches!(kind, FaultKind::BarrierDivergence(_)), "{kind}");
    // Without .aligned the lanes may come from different places.
    launch(
        "setp.lt.u32 %p1, %r1, 16; @%p1 bra A; barrier.sync 0; bra B; A: barrier.sync 0; B:",
        64,
    );
    // Whole warps may leave before the others' barrier.
    launch("setp.ge.u32 %p1, %r1, 32; @%p1 ret; bar.sync 0;", 64);
    let kind = fault("bar.sync 0, 48;", 64);
    assert!(matches!(kind, FaultKind::Undefined(_)), "{kind}");
    let kind = fault("bar.sync 16;", 32);
    assert!(matches!(kind, FaultKind::Undefined(_)), "{kind}");
}

#[test]
fn deadlocks_end() {
    let kind = fault("setp.lt.u32 %p1, %r1, 32; @%p1 bra A; bar.sync 1, 64; A: bar.sync 0;", 64);
    assert!(matches!(kind, FaultKind::Deadlock(_)), "{kind}");
    let kind = fault("setp.lt.u32 %p1, %r1, 16; @%p1 bar.warp.sync -1; @!%p1 barrier.sync 0;", 32);
    assert!(matches!(kind, FaultKind::BarrierDivergence(_) | FaultKind::Deadlock(_)), "{kind}");
}
