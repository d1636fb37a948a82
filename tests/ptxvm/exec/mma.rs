//! `mma.sync.aligned.m16n8kK`: fragments to matrices, the product, and back.

use crate::ptxvm::{
    float::{E4M3, Round, bf16_of, bits_f16, bits_f32, f8_of, f16_of, f32_of},
    inst::{Mma, MmaKind, Src},
    warp::Warp,
};

/// Element `i` of a register, as a number.
fn element(kind: MmaKind, signed: bool, reg: u64, i: usize) -> f64 {
    match kind {
        MmaKind::F16 => f16_of(reg >> (16 * i)),
        MmaKind::Bf16 => bf16_of(reg >> (16 * i)),
        // The tensor core reads the upper 19 bits only.
        MmaKind::Tf32 => f64::from(f32_of(reg & 0xffff_e000)),
        MmaKind::E4m3 => f8_of(reg >> (8 * i), E4M3),
        MmaKind::Int8 { .. } => {
            let v = (reg >> (8 * i)) as u8;
            if signed { f64::from(v as i8) } else { f64::from(v) }
        }
    }
}

/// Elements in one 32-bit register.
fn per_register(kind: MmaKind) -> usize {
    match kind {
        MmaKind::F16 | MmaKind::Bf16 => 2,
        MmaKind::Tf32 => 1,
        MmaKind::E4m3 | MmaKind::Int8 { .. } => 4,
    }
}

/// D = A·B + C. Products and sums are formed in f64, where they are exact or nearly so, and
/// rounded once; hardware keeps fewer bits but promises no order.
pub fn multiply(w: &mut Warp, m: &Mma) {
    let per = per_register(m.kind);
    let (a_signed, b_signed) = match m.kind {
        MmaKind::Int8 { a, b } => (a, b),
        _ => (true, true),
    };
    let mut a = [[0.0; 32]; 16];
    let mut b = [[0.0; 8]; 32];
    // Register r of A holds rows lane/4 (+8 for odd r) and, from r = 2 on, the second half of K;
    // register r of B holds the r-th half of K, column lane/4 (ISA §9.7.14.5.8 to .10).
    for (r, &src) in m.a.iter().enumerate() {
        let regs = w.read(src);
        for (lane, reg) in regs.into_iter().enumerate() {
            for i in 0..per {
                let col = (lane % 4) * per + i + (r / 2) * 4 * per;
                a[lane / 4 + 8 * (r % 2)][col] = element(m.kind, a_signed, reg, i);
            }
        }
    }
    for (r, &src) in m.b.iter().enumerate() {
        let regs = w.read(src);
        for (lane, reg) in regs.into_iter().enumerate() {
            for i in 0..per {
                let row = (lane % 4) * per + i + r * 4 * per;
                b[row][lane / 4] = element(m.kind, b_signed, reg, i);
            }
        }
    }
    let c: Vec<[u64; 32]> = m.c.iter().map(|&s: &Src| w.read(s)).collect();
    for (r, d) in m.d.iter().enumerate() {
        let cells = w.reg_mut(d.reg);
        for lane in 0..32 {
            let dot =
                |row: usize, col: usize| -> f64 { (0..m.k).map(|k| a[row][k] * b[k][col]).sum() };
            let col = 2 * (lane % 4);
            cells[lane] = if m.half {
                let row = lane / 4 + 8 * r;
                let lo = dot(row, col) + f16_of(c[r][lane]);
                let hi = dot(row, col + 1) + f16_of(c[r][lane] >> 16);
                bits_f16(lo, Round::Nearest) | bits_f16(hi, Round::Nearest) << 16
            } else {
                let sum = dot(lane / 4 + 8 * (r / 2), col + r % 2);
                match m.kind {
                    MmaKind::Int8 { .. } => int_sum(sum, c[r][lane], m.satfinite),
                    _ => bits_f32((sum + f64::from(f32_of(c[r][lane]))) as f32),
                }
            };
        }
    }
}

fn int_sum(dot: f64, c: u64, saturate: bool) -> u64 {
    let sum = dot as i64 + i64::from(c as u32 as i32);
    let sum = if saturate { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
    u64::from(sum as u32)
}
