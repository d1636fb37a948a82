//! `ldmatrix`, `stmatrix` and `mma.sync`, against plain matrices.

use half::{bf16, f16};

use super::harness::{fault, launch, module};
use crate::ptxvm::{Arg, FaultKind, Machine};

#[test]
fn ldmatrix_spreads_rows_and_transposes() {
    // Shared memory holds 16-bit elements 0, 1, 2, …: four matrices of 64.
    let body = |op: &str| {
        format!(
            "mad.lo.u32 %r3, %r1, 16, %r2; mul.lo.u32 %r4, %r1, 8; mov.u32 %r5, 0;
            FILL: add.u32 %r6, %r4, %r5; mad.lo.u32 %r7, %r5, 2, %r3; st.shared.u16 [%r7], %r6;
            add.u32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, 8; @%p1 bra FILL; bar.warp.sync -1;
            {op} mad.wide.u32 %d2, %r1, 16, %d1;
            st.global.v4.u32 [%d2], {{%r10, %r11, %r12, %r13}};"
        )
    };
    let x4 = "ldmatrix.sync.aligned.m8n8.x4$.shared.b16 {%r10, %r11, %r12, %r13}, [%r3];";
    let pair = |lo: u32, hi: u32| hi << 16 | lo;
    let plain = launch(&body(&x4.replace('$', "")), 32);
    let trans = launch(&body(&x4.replace('$', ".trans")), 32);
    for lane in 0..32u32 {
        for m in 0..4 {
            let at = (lane * 4 + m) as usize;
            let (row, col) = (lane / 4, 2 * (lane % 4));
            let element = |r: u32, c: u32| m * 64 + r * 8 + c;
            assert_eq!(plain[at], pair(element(row, col), element(row, col + 1)));
            assert_eq!(trans[at], pair(element(col, row), element(col + 1, row)));
        }
    }
    let kind = fault(
        &body("add.u32 %r3, %r3, 2; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r10}, [%r3];"),
        32,
    );
    assert!(matches!(kind, FaultKind::Misaligned { align: 16, .. }), "{kind}");
    let kind = fault(&body(&x4.replace('$', "")).replace("bar.warp.sync -1;", ""), 32);
    assert!(matches!(kind, FaultKind::Race { .. }), "{kind}");
    let kind =
        fault(&format!("setp.ge.u32 %p1, %r1, 16; @%p1 ret; {}", body(&x4.replace('$', ""))), 32);
    assert!(matches!(kind, FaultKind::WarpSync(_)), "{kind}");
}

#[test]
fn stmatrix_undoes_ldmatrix() {
    for trans in ["", ".trans"] {
        let body = format!(
            "mad.lo.u32 %r3, %r1, 16, %r2; mad.wide.u32 %d2, %r1, 16, %d1;
            ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%d2];
            st.shared.v4.u32 [%r3], {{%r10, %r11, %r12, %r13}}; bar.warp.sync -1;
            ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r3];
            stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r3+1024], {{%r20, %r21, %r22, %r23}};
            bar.warp.sync -1; ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r3+1024];
            add.u32 %r10, %r10, 1; st.global.v4.u32 [%d2], {{%r10, %r11, %r12, %r13}};"
        );
        let out = launch(&body, 32);
        (0..128).for_each(|i| assert_eq!(out[i], i as u32 + u32::from(i % 4 == 0), "{trans}"));
    }
}

/// Runs one `mma` on fragments gathered from matrices: A is 16×k, B k×8, C 16×8.
struct Product {
    op: &'static str,
    k: usize,
    /// Bits of an element, and its encoding.
    bits: usize,
    encode: fn(i32) -> u64,
    int: bool,
}

impl Product {
    fn check(&self) {
        let k = self.k;
        let a = |r: usize, c: usize| ((r * 7 + c * 5) % 11) as i32 - 5;
        let b = |r: usize, c: usize| ((r * 3 + c * 13) % 9) as i32 - 4;
        let c = |r: usize, c: usize| (r * 8 + c) as i32 - 60;
        let number = |v: i32| if self.int { v as u32 } else { (v as f32).to_bits() };
        let per = 32 / self.bits;
        let (mut words, regs_a) = (Vec::new(), k / per / 2);
        for lane in 0..32 {
            let (group, thread) = (lane / 4, lane % 4);
            let mut put = |value: &dyn Fn(usize) -> i32| {
                let word =
                    (0..per).fold(0u64, |w, i| w | (self.encode)(value(i)) << (i * self.bits));
                words.push(word as u32);
            };
            // The ISA's fragment tables: row groupID or groupID + 8, K in two halves.
            for r in 0..regs_a {
                let (row, col) = (group + 8 * (r % 2), thread * per + r / 2 * 4 * per);
                put(&|i| a(row, col + i));
            }
            for r in 0..regs_a / 2 {
                put(&|i| b(thread * per + i + r * 4 * per, group));
            }
            for i in 0..4 {
                words.push(number(c(group + 8 * (i / 2), thread * 2 + i % 2)));
            }
        }
        let per_lane = words.len() / 32;
        let reg = |n: usize| format!("%r{}", 10 + n);
        let list = |from: usize, n: usize| (from..from + n).map(reg).collect::<Vec<_>>().join(", ");
        let loads: String = (0..per_lane)
            .map(|i| format!("ld.global.u32 {}, [%d2+{}];\n", reg(i), i * 4))
            .collect();
        let (regs_b, at_c) = (regs_a / 2, regs_a + regs_a / 2);
        let body = format!(
            "mul.lo.u32 %r3, %r1, {}; cvt.u64.u32 %d2, %r3; add.u64 %d2, %d2, %d1; {loads}
            {} {{{acc}}}, {{{}}}, {{{}}}, {{{acc}}};
            mad.wide.u32 %d3, %r1, 16, %d1; st.global.v4.u32 [%d3+{}], {{{acc}}};",
            per_lane * 4,
            self.op,
            list(0, regs_a),
            list(regs_a, regs_b),
            words.len() * 4,
            acc = list(at_c, 4),
        );
        let mut gpu = Machine::new(0);
        words.resize(words.len() + 128, 0);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let p = gpu.alloc_init("p", &bytes);
        gpu.launch(&module(&body), "k", [1; 3], [32, 1, 1], 0, &[Arg::ptr(p)])
            .unwrap_or_else(|e| panic!("{e}"));
        let out = &gpu.read(p).unwrap_or_else(|e| panic!("{e}"))[bytes.len() - 512..];
        for lane in 0..32 {
            for i in 0..4 {
                let (row, col) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                let want = c(row, col) + (0..k).map(|x| a(row, x) * b(x, col)).sum::<i32>();
                let at = (lane * 4 + i) * 4;
                assert_eq!(
                    out[at..at + 4],
                    number(want).to_le_bytes(),
                    "{} ({row}, {col})",
                    self.op
                );
            }
        }
    }
}

#[test]
fn mma_multiplies_every_element_type() {
    let half: fn(i32) -> u64 = |v| u64::from(f16::from_f32(v as f32).to_bits());
    let brain: fn(i32) -> u64 = |v| u64::from(bf16::from_f32(v as f32).to_bits());
    let single: fn(i32) -> u64 = |v| u64::from((v as f32).to_bits());
    let byte: fn(i32) -> u64 = |v| u64::from(v as u8);
    let check = |op, k, bits, encode, int| Product { op, k, bits, encode, int }.check();
    check("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16, 16, half, false);
    check("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 16, 16, brain, false);
    check("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", 8, 16, half, false);
    check("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 8, 32, single, false);
    check("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 32, 8, byte, true);
    check("mma.sync.aligned.m16n8k16.row.col.satfinite.s32.s8.s8.s32", 16, 8, byte, true);
}

#[test]
fn mma_multiplies_e4m3() {
    const SIZES: [u64; 6] = [0, 0x38, 0x40, 0x44, 0x48, 0x4a];
    let encode = |v: i32| SIZES[v.unsigned_abs() as usize] | if v < 0 { 0x80 } else { 0 };
    let op = "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32";
    Product { op, k: 32, bits: 8, encode, int: false }.check();
}

#[test]
fn mma_accumulates_in_halves() {
    // A is all ones, B all twos, C holds 1 and 0.5: 16 * 2 more than that.
    let out = launch(
        "mov.u32 %r3, 0x3c003c00; mov.u32 %r4, 0x40004000; mov.u32 %r5, 0x38003c00;
        mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r6, %r7}, {%r3, %r3, %r3, %r3},
        {%r4, %r4}, {%r5, %r5}; mad.wide.u32 %d2, %r1, 8, %d1;
        st.global.v2.u32 [%d2], {%r6, %r7};",
        32,
    );
    assert_eq!(out[..64], [0x5010_5020; 64]);
}

#[test]
fn mma_needs_the_whole_warp() {
    let op = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r3,%r4,%r5,%r6}, {%r7,%r8}, {%f1,%f2,%f3,%f4};";
    let kind = fault(&format!("setp.eq.u32 %p1, %r1, 5; @%p1 ret; {op}"), 32);
    assert!(matches!(kind, FaultKind::WarpSync(_)), "{kind}");
    let kind = fault(op, 16);
    assert!(matches!(kind, FaultKind::WarpSync(_)), "{kind}");
}
