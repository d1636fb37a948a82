//! Planted faults: every change below breaks a kernel, and one of the checks must say so.

use headwise::{
    cuda::nvrtc::Nvrtc,
    device::kernels::{KernelFile, Specialisation},
    format::{PageFormat, SlotFormat},
};

use super::{
    decode::{Split, TOLERANCE, WHOLE, decode, decode_error, ragged},
    harness::{Edit, arch, bulk_decode, kernel, mutant, nvrtc, spec},
    prefill::{Chunk, prefill, prefill_error, tolerance},
    world::{Free, World},
};
use crate::ptxvm::{Error, FaultKind, Hazard};

/// Which check noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caught {
    /// Shared memory read without an order after the write.
    EarlyRead,
    /// Shared memory written without an order after a read.
    EarlyWrite,
    /// Two writes to shared memory without an order.
    Race,
    /// An asynchronous copy that nobody waited for.
    InFlight,
    /// A read of bytes that belong to no slot in use.
    Uninitialised,
    OutOfBounds,
    Misaligned,
    /// A barrier that is arrived at wrongly, or that nothing completes.
    Barrier,
    /// Bulk copies that are not fenced off from ordinary writes.
    Proxy,
    /// The result differs from f64.
    Wrong,
}

struct Fault {
    what: &'static str,
    file: KernelFile,
    format: SlotFormat,
    edit: Edit,
    caught: Caught,
}

const fn fault(
    what: &'static str,
    file: KernelFile,
    format: SlotFormat,
    from: &'static str,
    to: &'static str,
    caught: Caught,
) -> Fault {
    Fault { what, file, format, edit: Edit { from, to }, caught }
}

use Caught::{EarlyRead, EarlyWrite, InFlight, Proxy, Uninitialised, Wrong};
use KernelFile::{Decode, Merge, Prefill};
use SlotFormat::{Bf16, F16, F32, I8};

const FAULTS: &[Fault] = &[
    fault(
        "decode: no wait for copies",
        Decode,
        F16,
        "copy_async_wait<STAGES - 2>();",
        "",
        InFlight,
    ),
    fault(
        "decode: wait for one copy too few",
        Decode,
        F16,
        "copy_async_wait<STAGES - 2>();",
        "copy_async_wait<STAGES - 1>();",
        InFlight,
    ),
    fault(
        "decode: no warp barrier after the wait",
        Decode,
        F16,
        "            __syncwarp();\n            issue();",
        "            issue();",
        EarlyRead,
    ),
    fault(
        "decode: no barrier after staging queries",
        Decode,
        F16,
        "        __syncthreads();\n        const Attend::Queries q",
        "        const Attend::Queries q",
        EarlyRead,
    ),
    fault(
        "decode: no barrier before accumulators reuse the ring",
        Decode,
        F16,
        "        __syncthreads();\n        Attend::publish(",
        "        Attend::publish(",
        InFlight,
    ),
    fault(
        "decode: no barrier between items",
        Decode,
        F16,
        "        // The next item overwrites the queries and the ring.\n        __syncthreads();",
        "",
        EarlyWrite,
    ),
    fault(
        "decode: no mask on a partial tile",
        Decode,
        F16,
        "if (t.valid < TILE) {",
        "if (false) {",
        Wrong,
    ),
    fault(
        "decode: free slots are read",
        Decode,
        F16,
        "t.valid, lane);\n        Values::template copy_tile<WARP>(values, page, t.first, t.valid, lane);\n#endif",
        "TILE, lane);\n        Values::template copy_tile<WARP>(values, page, t.first, t.valid, lane);\n#endif",
        Uninitialised,
    ),
    fault(
        "decode: scales of free slots are read",
        Decode,
        I8,
        "end > at ? min(end - at, 16u) : 0",
        "16",
        Uninitialised,
    ),
    fault(
        "decode: wrong row stride",
        Decode,
        F16,
        "copy_async_16<AT / CHUNKS * ROW, PAYLOAD_AT + 16 * AT>",
        "copy_async_16<AT / CHUNKS * ROW, PAYLOAD_AT + 16 * (AT - AT / CHUNKS)>",
        Wrong,
    ),
    fault(
        "decode: wrong page stride",
        Decode,
        F16,
        "__device__ __forceinline__ const u8* page_at(const u8* pages, u32 id) {\n    \
         return pages + static_cast<u64>(id) * PAGE_BYTES;",
        "__device__ __forceinline__ const u8* page_at(const u8* pages, u32 id) {\n    \
         return pages + static_cast<u64>(id) * (PAGE_BYTES - 128);",
        Uninitialised,
    ),
    fault(
        "decode: tiles are not advanced",
        Decode,
        F16,
        "++issued;",
        "issued = issued < 2 ? issued + 1 : 2;",
        Wrong,
    ),
    fault(
        "decode: fragment rows of K swapped",
        Decode,
        F16,
        "(lane % 8 + 8 * (lane / 16)) * ROW + 16 * (lane / 8 % 2)",
        "(lane % 8 + 8 * (lane / 8 % 2)) * ROW + 16 * (lane / 16)",
        Wrong,
    ),
    fault(
        "decode: V read without transposing",
        Decode,
        Bf16,
        "load_matrix_4_trans<32 * STEP_AT>(b[0]",
        "load_matrix_4<32 * STEP_AT>(b[0]",
        Wrong,
    ),
    fault(
        "decode: K columns of bytes in the order of halves",
        Decode,
        I8,
        "return 4 * (k % 8 / 2) + 2 * (k % 2) + k / 8;",
        "return k;",
        Wrong,
    ),
    fault(
        "decode: sign bits of one byte lost",
        Decode,
        I8,
        "and_or<0x00800080u, 0x43004300u>(bytes)",
        "and_or<0x00800000u, 0x43004300u>(bytes)",
        Wrong,
    ),
    fault(
        "decode: scale of the neighbouring slot",
        Decode,
        I8,
        "s[0][1] = bf16_of_pair<AT % 2>(loaded[0][1][AT / 2]);",
        "s[0][1] = bf16_of_pair<AT % 2>(loaded[0][0][AT / 2]);",
        Wrong,
    ),
    fault(
        "decode: one group's V scale for all",
        Decode,
        I8,
        "Values::template tile_scales<G>(tile, lane, loaded, s);",
        "Values::template tile_scales<0>(tile, lane, loaded, s);",
        Wrong,
    ),
    fault(
        "decode: the wrong half of f32 words",
        Decode,
        F32,
        "__byte_perm(low, high, 0x7632)",
        "__byte_perm(low, high, 0x5410)",
        Wrong,
    ),
    fault(
        "decode: maximum over half of the columns",
        Decode,
        F16,
        "return fmaxf(v, exchange<2>(v));",
        "return v;",
        Wrong,
    ),
    fault("decode: the sum is not rescaled", Decode, F16, "state.sum[h] *= factor;", "", Wrong),
    fault(
        "decode: the rounding of queries is dropped",
        Decode,
        Bf16,
        "fine = M::rest(low, high, coarse);",
        "fine = 0;",
        Wrong,
    ),
    fault(
        "merge: equal weights",
        Merge,
        F16,
        "const float mine = exp2_fast(lse_of(first + lane) - top);",
        "const float mine = 1.0f;",
        Wrong,
    ),
    fault(
        "prefill: one token sees the next",
        Prefill,
        F16,
        "item.before + (base + r) / GROUP + 1",
        "item.before + (base + r) / GROUP + 2",
        Wrong,
    ),
    fault(
        "prefill: no barrier between tiles",
        Prefill,
        F16,
        "        __syncthreads();\n        issue(span + STAGES - 1);",
        "        issue(span + STAGES - 1);",
        InFlight,
    ),
    fault(
        "prefill: no wait for copies",
        Prefill,
        I8,
        "copy_async_wait<STAGES - 2>();",
        "",
        InFlight,
    ),
];

/// Faults of decode with the copy engine's loads.
const BULK_FAULTS: &[Fault] = &[
    fault(
        "bulk decode: no wait for the barrier",
        Decode,
        F16,
        "barrier_wait(barrier_of(stage), parity);",
        "",
        InFlight,
    ),
    fault(
        "bulk decode: waits for the phase before",
        Decode,
        F16,
        "barrier_wait(barrier_of(stage), parity);",
        "barrier_wait(barrier_of(stage), parity ^ 1);",
        EarlyRead,
    ),
    fault(
        "bulk decode: scales are not announced",
        Decode,
        I8,
        "return PAYLOAD_STRIDE + (lane == 0 ? TILE * SCALE_STRIDE : 0);",
        "return PAYLOAD_STRIDE;",
        EarlyRead,
    ),
    fault(
        "bulk decode: no fence between writes and bulk copies",
        Decode,
        F16,
        "asm volatile(\"fence.proxy.async.shared::cta;\" ::: \"memory\");",
        "",
        Proxy,
    ),
    fault(
        "bulk decode: a row too few",
        Decode,
        F16,
        "copy_bulk(tile + lane * ROW, payload(page, first + lane)",
        "copy_bulk(tile + lane * ROW, payload(page, first + lane / 2 * 2)",
        Wrong,
    ),
];

/// What the checks say about a mutant: nothing, if it passes them all.
fn verdict(nvrtc: Nvrtc, fault: &Fault, bulk: bool) -> Option<Caught> {
    let format = PageFormat::both(fault.format);
    let spec: Specialisation = spec(format, 128, 4, 16);
    let arch = arch("sm_90");
    let edits = [fault.edit];
    // Reading where nothing may be read faults first; where NaN is read, results show it.
    let outcomes = [Free::Forbidden, Free::Nan].map(|free| -> Result<bool, Error> {
        if fault.file == Prefill {
            let kernel = mutant(nvrtc, Prefill, &spec, arch, &edits);
            let world = World::new(&spec, &[70, 161], 5);
            let chunk = Chunk::new(&world, 20);
            let got = prefill(&kernel, &world, &chunk, free, 3)?;
            return Ok(prefill_error(&world, &chunk, &got) <= tolerance(format));
        }
        let compiled = |file| match fault.file == file {
            true if bulk => bulk_decode(nvrtc, &spec, arch, &edits),
            true => mutant(nvrtc, file, &spec, arch, &edits),
            false => kernel(nvrtc, file, &spec, arch),
        };
        let mut lengths = ragged(16);
        lengths.push(330);
        let split = if fault.file == Merge { Split { lists: 3, min_slots: 16 } } else { WHOLE };
        let world = World::new(&spec, &lengths, 5);
        let got = decode(&compiled(Decode), &compiled(Merge), &world, false, split, free, 3)?;
        Ok(decode_error(&world, &got) <= TOLERANCE)
    });
    outcomes.into_iter().find_map(|outcome| match outcome {
        Ok(true) => None,
        Ok(false) => Some(Caught::Wrong),
        Err(error) => Some(match error.fault() {
            Some(FaultKind::Race { hazard: Hazard::ReadAfterWrite, .. }) => Caught::EarlyRead,
            Some(FaultKind::Race { hazard: Hazard::WriteAfterRead, .. }) => Caught::EarlyWrite,
            Some(FaultKind::Race { .. }) => Caught::Race,
            Some(FaultKind::AsyncInFlight { .. } | FaultKind::AsyncCopy(_)) => Caught::InFlight,
            Some(FaultKind::Uninitialised { .. }) => Caught::Uninitialised,
            Some(FaultKind::OutOfBounds { .. }) => Caught::OutOfBounds,
            Some(FaultKind::Misaligned { .. }) => Caught::Misaligned,
            Some(FaultKind::Mbarrier { .. } | FaultKind::Deadlock(_)) => Caught::Barrier,
            Some(FaultKind::Proxy { .. }) => Proxy,
            other => panic!("{}: {other:?}", fault.what),
        }),
    })
}

#[test]
fn every_planted_fault_is_caught() {
    let Some(nvrtc) = nvrtc() else { return };
    let mut missed = Vec::new();
    let plain = FAULTS.iter().map(|fault| (fault, false));
    for (fault, bulk) in plain.chain(BULK_FAULTS.iter().map(|fault| (fault, true))) {
        let verdict = verdict(nvrtc, fault, bulk);
        let caught = verdict.map_or("MISSED".to_owned(), |caught| format!("{caught:?}"));
        println!("{:<58}{:<6}{caught}", fault.what, fault.format.to_string());
        if verdict != Some(fault.caught) {
            missed.push(format!("{}: {caught}, not {:?}", fault.what, fault.caught));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
