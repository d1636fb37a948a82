//! Mbarriers, bulk copies and the arrivals of asynchronous copies.

use super::harness::{fault, faults, launch};
use crate::ptxvm::{FaultKind, Hazard};

/// Thread 0 initialises the mbarrier at `sm` for `count` arrivals; all synchronise.
fn init(count: u32) -> String {
    format!(
        "setp.eq.u32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [%r2], {count};
        fence.mbarrier_init.release.cluster; fence.proxy.async; bar.sync 0;"
    )
}

fn wait(parity: u32) -> String {
    format!(
        "{{ WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], {parity}; @%p2 bra DONE; bra WAIT; DONE: }}"
    )
}

/// What reading a bulk copy too early may be told.
fn early(k: &FaultKind) -> bool {
    matches!(
        k,
        FaultKind::AsyncInFlight { .. }
            | FaultKind::Uninitialised { .. }
            | FaultKind::Race { hazard: Hazard::ReadAfterWrite, .. }
    )
}

const OWN: &str = "mad.wide.u32 %d2, %r1, 4, %d1; mad.lo.u32 %r3, %r1, 4, %r2;";

#[test]
fn arrivals_complete_phases_and_order_memory() {
    let body = |arrive: &str| {
        format!(
            "{OWN} {} {arrive} {} xor.b32 %r4, %r1, 32; mad.lo.u32 %r4, %r4, 4, %r2;
            ld.shared.u32 %r5, [%r4+128]; st.global.u32 [%d2], %r5;",
            init(64),
            wait(0)
        )
    };
    let out = launch(
        &body("st.shared.u32 [%r3+128], %r1; mbarrier.arrive.shared::cta.b64 %d5, [%r2];"),
        64,
    );
    (0..64).for_each(|i| assert_eq!(out[i], i as u32 ^ 32));
    let kind =
        fault(&body("mbarrier.arrive.shared.b64 _, [%r2]; st.shared.u32 [%r3+128], %r1;"), 64);
    assert!(matches!(kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. }), "{kind}");
}

#[test]
fn states_parities_and_counts() {
    let out = launch(
        &format!(
            "{} mbarrier.arrive.shared.b64 %d5, [%r2]; mbarrier.pending_count.b64 %r4, %d5;
            mbarrier.test_wait.shared.b64 %p2, [%r2], %d5; selp.u32 %r5, 1, 0, %p2;
            mbarrier.arrive.release.cta.shared::cta.b64 _, [%r2], 2;
            mbarrier.test_wait.shared.b64 %p3, [%r2], %d5; selp.u32 %r6, 1, 0, %p3;
            mbarrier.test_wait.parity.shared.b64 %p4, [%r2], 1; selp.u32 %r7, 1, 0, %p4;
            mbarrier.arrive_drop.shared.b64 _, [%r2]; mbarrier.arrive.shared.b64 _, [%r2], 2;
            mbarrier.test_wait.parity.shared.b64 %p5, [%r2], 1; selp.u32 %r8, 1, 0, %p5;
            mbarrier.arrive.shared.b64 %d6, [%r2]; mbarrier.pending_count.b64 %r9, %d6;
            st.global.v4.u32 [%d1], {{%r4, %r5, %r6, %r7}}; st.global.v2.u32 [%d1+16], {{%r8, %r9}};",
            init(3)
        ),
        1,
    );
    assert_eq!(out[..6], [3, 0, 1, 0, 1, 2]);
}

#[test]
fn transaction_bytes_hold_a_phase_open() {
    let out = launch(
        &format!(
            "{} mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r2], 16;
            mbarrier.arrive.shared.b64 _, [%r2];
            mbarrier.test_wait.parity.shared.b64 %p2, [%r2], 0; selp.u32 %r4, 1, 0, %p2;
            mbarrier.complete_tx.shared::cta.relaxed.cta.b64 [%r2], 16;
            mbarrier.test_wait.parity.shared.b64 %p2, [%r2], 0; selp.u32 %r5, 1, 0, %p2;
            st.global.v2.u32 [%d1], {{%r4, %r5}};",
            init(1).replace(".cluster", "")
        ),
        1,
    );
    assert_eq!(out[..2], [0, 1]);
}

/// Thread 0 copies 256 bytes behind the mbarrier; every thread reads four of them.
fn bulk(announce: &str, wait: &str) -> String {
    format!(
        "{OWN} {} @!%p1 bra GO; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {announce};
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+128], [%d1], 256, [%r2];
        GO: {wait} ld.shared.u32 %r4, [%r3+128]; add.u32 %r4, %r4, 500; st.global.u32 [%d2], %r4;",
        init(1)
    )
}

#[test]
fn bulk_copies_land_before_the_wait_returns() {
    let out = launch(&bulk("256", &wait(0)), 64);
    (0..64).for_each(|i| assert_eq!(out[i], i as u32 + 500));
    let kind = fault(&bulk("256", ""), 1);
    assert!(matches!(kind, FaultKind::AsyncInFlight { .. }), "{kind}");
    // Waiting on the other parity returns at once, or never where the phase ended before.
    let kinds = faults(&bulk("256", &wait(1)), 64);
    let wrong = |k: &FaultKind| early(k) || matches!(k, FaultKind::Deadlock(_));
    assert!(kinds.iter().all(wrong) && kinds.iter().any(early), "{kinds:?}");
    let kind = fault(&bulk("512", &wait(0)), 64);
    assert!(matches!(kind, FaultKind::Deadlock(_)), "{kind}");
}

#[test]
fn only_threads_that_observed_the_phase_may_read_a_bulk_copy() {
    let first_warp = |sync: &str| {
        bulk("256", &format!("setp.ge.u32 %p3, %r1, 32; @%p3 bra OVER; {} OVER: {sync}", wait(0)))
    };
    launch(&first_warp("bar.sync 0;"), 64);
    let kinds = faults(&first_warp(""), 64);
    assert!(kinds.iter().all(early), "{kinds:?}");
}

/// Stores, and the barrier itself, are before a bulk copy by a fence between the proxies and by no other
/// order.
#[test]
fn stores_before_bulk_copies_need_a_proxy_fence() {
    let after = |fence: &str| {
        let store = format!("st.shared.u32 [%r3+128], %r1; {fence} bar.sync 0; @!%p1 bra GO;");
        bulk("256", &wait(0)).replace("@!%p1 bra GO;", &store)
    };
    launch(&after("fence.proxy.async;"), 64);
    launch(&after("fence.proxy.async.shared::cta;"), 64);
    for other in ["", "fence.acq_rel.cta;"] {
        let kind = fault(&after(other), 64);
        assert!(matches!(kind, FaultKind::Proxy { .. }), "{kind}");
    }
    let kind = fault(&bulk("256", &wait(0)).replace("fence.proxy.async;", ""), 64);
    assert!(matches!(kind, FaultKind::Proxy { .. }), "{kind}");
}

#[test]
fn bulk_copies_are_checked() {
    let with = |copy: &str| format!("{} {copy}", init(1));
    let kind = fault(
        &with(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+128], [%d1], 24, [%r2];",
        ),
        1,
    );
    assert!(matches!(kind, FaultKind::AsyncCopy(_)), "{kind}");
    let kind = fault(
        &with(
            "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r2+136], [%d1], 16, [%r2];",
        ),
        1,
    );
    assert!(matches!(kind, FaultKind::Misaligned { .. }), "{kind}");
    // The block must not end while the engine still writes to its memory.
    let kind = fault(
        &with(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+128], [%d1], 16, [%r2];",
        ),
        1,
    );
    assert!(matches!(kind, FaultKind::AsyncCopy(_)), "{kind}");
}

#[test]
fn asynchronous_copies_arrive_by_themselves() {
    for (form, count) in [(".noinc", 64), ("", 1)] {
        let extra = if form.is_empty() { "@%p1 mbarrier.arrive.shared.b64 _, [%r2];" } else { "" };
        let body = format!(
            "{OWN} {} cp.async.ca.shared.global [%r3+128], [%d2], 4;
            cp.async.mbarrier.arrive{form}.shared::cta.b64 [%r2]; bar.sync 0; {extra} {}
            xor.b32 %r4, %r1, 32; mad.lo.u32 %r4, %r4, 4, %r2; ld.shared.u32 %r5, [%r4+128];
            st.global.u32 [%d2], %r5;",
            init(count),
            wait(0)
        );
        let out = launch(&body, 64);
        (0..64).for_each(|i| assert_eq!(out[i], i as u32 ^ 32, "{form}"));
    }
}

#[test]
fn misuse_of_mbarriers() {
    let is_mbarrier = |kind: &FaultKind| matches!(kind, FaultKind::Mbarrier { .. });
    let kind = fault("mbarrier.arrive.shared.b64 _, [%r2];", 1);
    assert!(is_mbarrier(&kind), "{kind}");
    let kind = fault(&format!("{} ld.shared.u32 %r3, [%r2];", init(1)), 1);
    assert!(is_mbarrier(&kind), "{kind}");
    let kind = fault(&format!("{} mbarrier.arrive.shared.b64 _, [%r2], 2;", init(1)), 1);
    assert!(is_mbarrier(&kind), "{kind}");
    let kind = fault("mbarrier.init.shared.b64 [%r2], 0;", 1);
    assert!(is_mbarrier(&kind), "{kind}");
    launch(&format!("{} mbarrier.inval.shared.b64 [%r2]; st.shared.u32 [%r2], 1;", init(1)), 1);
    // Initialisation itself must be ordered before its use by others.
    let unordered = init(2).replace("bar.sync 0;", "");
    let kind = fault(&format!("{unordered} mbarrier.arrive.shared.b64 _, [%r2];"), 2);
    assert!(matches!(kind, FaultKind::Race { .. }), "{kind}");
    let kind = fault(&format!("{} {}", init(1), wait(0)), 32);
    assert!(matches!(kind, FaultKind::Deadlock(_)), "{kind}");
}
