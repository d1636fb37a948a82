//! Small kernels around one or two instructions.

use crate::ptxvm::{Arg, DevicePtr, Error, FaultKind, Machine, Module, Stats};

/// Declarations that every test kernel begins with.
const REGISTERS: &str = ".reg .b64 %d<20>; .reg .b32 %r<40>; .reg .b16 %h<20>; .reg .f32 %f<20>;
    .reg .pred %p<10>; .reg .b64 %in; .reg .b64 %out;";

/// Runs `code` once per row, one row per lane. The row's values are in `%d1..4` (64 bits),
/// `%r1..4` (32) and `%h1..4` (16); the result is whichever of `%d0`, `%r0`, `%h0`, `%p0` the code
/// names.
pub fn eval(code: &str, rows: &[[u64; 4]]) -> Vec<u64> {
    let result = if code.contains("%r0") {
        "cvt.u64.u32 %d0, %r0;"
    } else if code.contains("%h0") {
        "cvt.u64.u16 %d0, %h0;"
    } else if code.contains("%p0") {
        "selp.u64 %d0, 1, 0, %p0;"
    } else {
        ""
    };
    let narrow: String =
        (1..5).map(|i| format!("cvt.u32.u64 %r{i}, %d{i}; cvt.u16.u64 %h{i}, %d{i};\n")).collect();
    let ptx = format!(
        ".version 9.0\n.target sm_90\n.address_size 64\n
        .visible .entry k(.param .u64 in, .param .u64 out, .param .u32 n) {{
        {REGISTERS}
        mov.u32 %r30, %tid.x; mov.u32 %r31, %ctaid.x; mad.lo.s32 %r30, %r31, 128, %r30;
        ld.param.u32 %r32, [n]; setp.ge.u32 %p9, %r30, %r32; @%p9 bra END;
        ld.param.u64 %in, [in]; ld.param.u64 %out, [out];
        mad.wide.u32 %in, %r30, 32, %in; mad.wide.u32 %out, %r30, 8, %out;
        ld.global.v2.u64 {{%d1, %d2}}, [%in]; ld.global.v2.u64 {{%d3, %d4}}, [%in+16];
        {narrow}
        {code}
        {result}
        st.global.u64 [%out], %d0;
        END: ret;
        }}"
    );
    let module = Module::parse(&ptx).unwrap_or_else(|e| panic!("{code}: {e}"));
    let mut gpu = Machine::new(rows.len() as u64);
    let bytes: Vec<u8> = rows.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    let input = gpu.alloc_read_only("in", &bytes);
    let output = gpu.alloc_uninit("out", rows.len() * 8);
    let args = [Arg::ptr(input), Arg::ptr(output), Arg::u32(rows.len() as u32)];
    let grid = [(rows.len() as u32).div_ceil(128), 1, 1];
    gpu.launch(&module, "k", grid, [128, 1, 1], 0, &args).unwrap_or_else(|e| panic!("{e}"));
    let words = gpu.read(output).unwrap_or_else(|e| panic!("{e}")).chunks(8);
    words.map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default())).collect()
}

/// Requires `code` to give the stated result for each row of operands.
pub fn check(code: &str, cases: &[(&[u64], u64)]) {
    let rows: Vec<[u64; 4]> = cases
        .iter()
        .map(|(c, _)| std::array::from_fn(|i| c.get(i).copied().unwrap_or(0)))
        .collect();
    for ((inputs, want), got) in cases.iter().zip(eval(code, &rows)) {
        assert_eq!(got, *want, "{code} of {inputs:x?}: got {got:#x}, want {want:#x}");
    }
}

/// Requires `code` to do what `f` does on many pseudo-random rows, corner values among them.
pub fn agree(code: &str, f: impl Fn([u64; 4]) -> u64) {
    let corners = [0, 1, u64::MAX, 1 << 63, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 31, 32, 33, 64];
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut draw = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let v = state ^ (state >> 29);
        if v.is_multiple_of(3) { corners[(v >> 8) as usize % corners.len()] } else { v }
    };
    let rows: Vec<[u64; 4]> = (0..500).map(|_| std::array::from_fn(|_| draw())).collect();
    for (row, got) in rows.iter().zip(eval(code, &rows)) {
        let want = f(*row);
        assert_eq!(got, want, "{code} of {row:x?}: got {got:#x}, want {want:#x}");
    }
}

/// A kernel `k(p)` whose body sees the buffer `p` in `%d1` and its thread index in `%r1`, with
/// 256 bytes of static shared memory `sm` at `%r2`, and dynamic shared memory `dyn`.
pub fn module(body: &str) -> Module {
    let ptx = format!(
        ".version 9.0\n.target sm_90\n.address_size 64\n.extern .shared .align 128 .b8 dyn[];
        .visible .entry k(.param .u64 p) {{
        {REGISTERS}
        .shared .align 128 .b8 sm[4096];
        ld.param.u64 %d1, [p]; mov.u32 %r1, %tid.x; mov.u32 %r2, sm;
        {body}
        ret; }}"
    );
    Module::parse(&ptx).unwrap_or_else(|e| panic!("{body}: {e}"))
}

/// The buffer of words 0, 1, 2, … that `launch` passes.
pub const WORDS: u32 = 1024;

/// Runs `body` in one block of `threads` over a buffer of `WORDS` counting words; gives the buffer.
pub fn launch_seeded(body: &str, threads: u32, seed: u64) -> Result<(Vec<u32>, Stats), Error> {
    let mut gpu = Machine::new(seed);
    gpu.set_budget(100_000);
    let bytes: Vec<u8> = (0..WORDS).flat_map(u32::to_le_bytes).collect();
    let p: DevicePtr = gpu.alloc_init("p", &bytes);
    let stats = gpu.launch(&module(body), "k", [1; 3], [threads, 1, 1], 0, &[Arg::ptr(p)])?;
    let words = gpu.read(p)?.chunks(4);
    let words = words.map(|c| u32::from_le_bytes(c.try_into().unwrap_or_default())).collect();
    Ok((words, stats))
}

/// The buffer after a run that must not fault, under several schedules which must agree.
pub fn launch(body: &str, threads: u32) -> Vec<u32> {
    let run = |seed| launch_seeded(body, threads, seed).unwrap_or_else(|e| panic!("{body}: {e}")).0;
    let first = run(0);
    (1..6).for_each(|seed| assert_eq!(run(seed), first, "{body}: seed {seed} differs"));
    first
}

/// The faults of a run that must fault, under several schedules.
pub fn faults(body: &str, threads: u32) -> Vec<FaultKind> {
    let run = |seed| match launch_seeded(body, threads, seed) {
        Ok(_) => panic!("no fault with seed {seed}: {body}"),
        Err(e) => e.fault().cloned().unwrap_or_else(|| panic!("{body}: {e}")),
    };
    (0..6).map(run).collect()
}

/// The fault of a run that must fault in the same way under every schedule.
pub fn fault(body: &str, threads: u32) -> FaultKind {
    let mut kinds = faults(body, threads);
    let first = kinds.remove(0);
    let same = |k: &FaultKind| std::mem::discriminant(k) == std::mem::discriminant(&first);
    kinds.iter().for_each(|k| assert!(same(k), "{first} and {k}"));
    first
}
