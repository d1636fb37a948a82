//! Counters of instructions, sectors and banks.

use super::harness::launch_seeded;
use crate::ptxvm::Stats;

fn stats(body: &str, threads: u32) -> Stats {
    launch_seeded(body, threads, 1).unwrap_or_else(|e| panic!("{body}: {e}")).1
}

#[test]
fn lanes_and_warps_per_opcode() {
    let s = stats("setp.lt.u32 %p1, %r1, 10; @%p1 add.u32 %r3, %r1, 1; add.s32 %r3, %r1, 1;", 64);
    let add = s.opcode("add");
    assert_eq!((add.warps, add.lanes, add.predicated_off), (4, 74, 54));
    let one = s.opcode("add.u32");
    assert_eq!((one.warps, one.lanes, one.predicated_off), (2, 10, 54));
    assert_eq!(s.opcode("ad").warps, 0);
    // ld.param, two movs, setp, two adds, ret: seven instructions by two warps.
    assert_eq!(s.warp_instructions(), 14);
    assert_eq!(s.lane_instructions(), 64 * 6 + 10);
}

#[test]
fn sectors_of_global_requests() {
    let s = stats("mad.wide.u32 %d2, %r1, 4, %d1; ld.global.u32 %r3, [%d2];", 32);
    assert_eq!((s.global_read_bytes, s.sectors, s.ideal_sectors), (128, 4, 4));
    let s = stats("mad.wide.u32 %d2, %r1, 64, %d1; ld.global.u32 %r3, [%d2];", 32);
    assert_eq!((s.global_read_bytes, s.sectors, s.ideal_sectors), (128, 32, 4));
    let s = stats("ld.global.u32 %r3, [%d1];", 32);
    assert_eq!((s.global_read_bytes, s.sectors, s.ideal_sectors), (128, 1, 1));
    // Sixteen bytes a lane, shifted by half a sector: one sector more than needed.
    let s =
        stats("mad.wide.u32 %d2, %r1, 16, %d1; ld.global.v4.u32 {%r3,%r4,%r5,%r6}, [%d2+16];", 32);
    assert_eq!((s.sectors, s.ideal_sectors), (17, 16));
    let s = stats("mad.wide.u32 %d2, %r1, 2, %d1; st.global.u16 [%d2], 1;", 32);
    assert_eq!((s.global_written_bytes, s.global_read_bytes, s.sectors), (64, 0, 2));
    // Addresses in falling order cost no more.
    let s =
        stats("sub.u32 %r3, 31, %r1; mad.wide.u32 %d2, %r3, 4, %d1; ld.global.u32 %r4, [%d2];", 32);
    assert_eq!((s.sectors, s.ideal_sectors), (4, 4));
}

#[test]
fn bank_conflicts_of_shared_requests() {
    let store = |stride: u32| {
        stats(&format!("mad.lo.u32 %r3, %r1, {stride}, %r2; st.shared.u32 [%r3], %r1;"), 32)
    };
    for (stride, ways) in [(4, 1), (8, 2), (16, 4), (128, 32), (12, 1)] {
        let s = store(stride);
        assert_eq!(
            (s.shared_requests, s.shared_ways, s.ideal_shared_ways),
            (1, ways, 1),
            "{stride}"
        );
    }
    let wide =
        stats("mad.lo.u32 %r3, %r1, 16, %r2; st.shared.v4.u32 [%r3], {%r1,%r1,%r1,%r1};", 32);
    assert_eq!((wide.shared_ways, wide.ideal_shared_ways), (4, 4));
    // Rows 128 bytes apart: each of ldmatrix's eight rows falls on the same four banks.
    let s = stats(
        "and.b32 %r3, %r1, 7; mad.lo.u32 %r3, %r3, 128, %r2; setp.lt.u32 %p1, %r1, 8;
        @%p1 st.shared.v4.u32 [%r3], {0,0,0,0}; bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r3];",
        32,
    );
    assert_eq!((s.shared_requests, s.shared_ways), (2, 16));
    assert_eq!(s.opcode("ldmatrix").lanes, 32);
}

#[test]
fn atomics_and_asynchronous_copies_count() {
    let s = stats("red.global.add.u32 [%d1], 1;", 32);
    assert_eq!((s.atomics, s.global_written_bytes, s.sectors), (32, 128, 1));
    let s = stats(
        "mad.wide.u32 %d2, %r1, 16, %d1; mad.lo.u32 %r3, %r1, 16, %r2; cp.async.cg.shared.global [%r3], [%d2], 16; cp.async.wait_all;",
        32,
    );
    assert_eq!((s.global_read_bytes, s.sectors, s.shared_requests), (512, 16, 1));
}
