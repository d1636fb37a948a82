//! `cp.async`: groups, zero fill, and what happens before the wait.

use super::harness::{fault, faults, launch};
use crate::ptxvm::FaultKind;

/// Each thread copies 16 bytes to shared memory, `wait`, and stores its (or a partner's) back.
fn copy(size: &str, wait: &str) -> String {
    format!(
        "mad.wide.u32 %d2, %r1, 16, %d1; mad.lo.u32 %r3, %r1, 16, %r2;
        cp.async.cg.shared.global.L2::128B [%r3], [%d2], 16{size}; cp.async.commit_group; {wait}
        ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r3]; add.u32 %r4, %r4, 1000;
        st.global.v4.u32 [%d2], {{%r4, %r5, %r6, %r7}};"
    )
}

#[test]
fn data_lands_at_the_wait() {
    for wait in ["cp.async.wait_group 0;", "cp.async.wait_all;"] {
        let out = launch(&copy("", wait), 64);
        (0..256).for_each(|i| assert_eq!(out[i], i as u32 + if i % 4 == 0 { 1000 } else { 0 }));
    }
}

#[test]
fn short_sources_are_filled_with_zeros() {
    let out = launch(&copy(", 8", "cp.async.wait_all;"), 2);
    assert_eq!(out[4..8], [1004, 5, 0, 0]);
    let out = launch(&format!("mov.u32 %r9, 0; {}", copy(", %r9", "cp.async.wait_all;")), 2);
    assert_eq!(out[4..8], [1000, 0, 0, 0]);
    let skip = format!("setp.eq.u32 %p1, %r1, 1; {}", copy(", %p1", "cp.async.wait_all;"));
    assert_eq!(launch(&skip, 2)[..8], [1000, 1, 2, 3, 1000, 0, 0, 0]);
    let kind = fault(&copy(", 17", "cp.async.wait_all;"), 1);
    assert!(matches!(kind, FaultKind::AsyncCopy(_)), "{kind}");
    // A source size of zero reads nothing, so its address may be anything.
    launch("mov.u64 %d2, 64; cp.async.ca.shared.global [%r2], [%d2], 8, 0; cp.async.wait_all;", 1);
}

#[test]
fn a_read_before_the_wait_is_a_fault() {
    for wait in ["", "cp.async.wait_group 1;"] {
        let kind = fault(&copy("", wait), 32);
        assert!(matches!(kind, FaultKind::AsyncInFlight { .. }), "{kind}");
    }
    let kind = fault(&copy("", "st.shared.u32 [%r3], 1;"), 32);
    assert!(matches!(kind, FaultKind::AsyncInFlight { .. }), "{kind}");
    // A wait for groups does not wait for copies that no commit put into one.
    let kind = fault(
        "cp.async.ca.shared.global [%r2], [%d1], 4; cp.async.wait_group 0; ld.shared.u32 %r3, [%r2];",
        1,
    );
    assert!(matches!(kind, FaultKind::AsyncInFlight { .. }), "{kind}");
}

#[test]
fn groups_land_oldest_first() {
    let two = |keep: u32, from: u32| {
        format!(
            "cp.async.ca.shared.global [%r2], [%d1], 4; cp.async.commit_group;
            cp.async.ca.shared.global [%r2+8], [%d1+8], 8; cp.async.commit_group;
            cp.async.wait_group {keep}; ld.shared.u32 %r3, [%r2+{from}]; st.global.u32 [%d1+64], %r3;"
        )
    };
    assert_eq!(launch(&two(1, 0), 1)[16], 0);
    assert_eq!(launch(&two(0, 12), 1)[16], 3);
    let kind = fault(&two(1, 8), 1);
    assert!(matches!(kind, FaultKind::AsyncInFlight { .. }), "{kind}");
}

#[test]
fn other_threads_need_a_barrier_after_the_wait() {
    let partner = |sync: &str| {
        format!(
            "mad.wide.u32 %d2, %r1, 4, %d1; mad.lo.u32 %r3, %r1, 4, %r2;
            cp.async.ca.shared.global [%r3], [%d2], 4; cp.async.wait_all; {sync}
            xor.b32 %r4, %r1, 32; mad.lo.u32 %r4, %r4, 4, %r2; ld.shared.u32 %r5, [%r4];
            st.global.u32 [%d2], %r5;"
        )
    };
    assert_eq!(launch(&partner("bar.sync 0;"), 64)[0], 32);
    let kind = fault(
        &format!(
            "mad.lo.u32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], 0; bar.sync 0; {}",
            partner("")
        ),
        64,
    );
    assert!(matches!(kind, FaultKind::Race { .. } | FaultKind::AsyncInFlight { .. }), "{kind}");
}

#[test]
fn a_copy_over_data_still_being_read_is_a_race() {
    let body = |sync: &str| {
        format!(
            "mad.lo.u32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], %r1; bar.sync 0;
            xor.b32 %r4, %r1, 32; mad.lo.u32 %r4, %r4, 4, %r2; ld.shared.u32 %r5, [%r4]; {sync}
            mad.wide.u32 %d2, %r1, 4, %d1; cp.async.ca.shared.global [%r3], [%d2], 4;
            cp.async.wait_all;"
        )
    };
    launch(&body("bar.sync 0;"), 64);
    let early = |k: &FaultKind| {
        matches!(k, FaultKind::Race { space: "shared", .. } | FaultKind::AsyncInFlight { .. })
    };
    let kinds = faults(&body(""), 64);
    assert!(kinds.iter().all(early), "{kinds:?}");
}

#[test]
fn copies_are_checked_like_any_access() {
    let kind = fault("cp.async.cg.shared.global [%r2+4], [%d1], 16;", 1);
    assert!(matches!(kind, FaultKind::Misaligned { space: "shared", .. }), "{kind}");
    let kind = fault("cp.async.cg.shared.global [%r2], [%d1+4096], 16;", 1);
    assert!(matches!(kind, FaultKind::OutOfBounds { space: "global", .. }), "{kind}");
    let kind = fault("cp.async.cg.shared.global [%r2+4096], [%d1], 16;", 1);
    assert!(matches!(kind, FaultKind::OutOfBounds { space: "shared", .. }), "{kind}");
}
