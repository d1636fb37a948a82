//! Instructions that each lane computes from its own registers.

use crate::ptxvm::{
    inst::{Alu, Compare, Dst, Logic, Src},
    memory::clocks::lanes,
    types::mask,
    warp::Warp,
};

#[inline]
fn for_active(active: u32, mut f: impl FnMut(usize)) {
    if active == u32::MAX {
        (0..32).for_each(f);
    } else {
        lanes(active).for_each(&mut f);
    }
}

pub fn compute(w: &mut Warp, active: u32, dst: Dst, alu: &Alu) {
    match alu {
        Alu::One(f, a) => {
            let a = w.read(*a);
            let cells = w.reg_mut(dst.reg);
            for_active(active, |l| cells[l] = f(a[l]) & dst.mask);
        }
        Alu::Two(f, [a, b]) => {
            let (a, b) = (w.read(*a), w.read(*b));
            let cells = w.reg_mut(dst.reg);
            for_active(active, |l| cells[l] = f(a[l], b[l]) & dst.mask);
        }
        Alu::Three(f, [a, b, c]) => {
            let (a, b, c) = (w.read(*a), w.read(*b), w.read(*c));
            let cells = w.reg_mut(dst.reg);
            for_active(active, |l| cells[l] = f(a[l], b[l], c[l]) & dst.mask);
        }
        Alu::Four(f, [a, b, c, d]) => {
            let (a, b, c, d) = (w.read(*a), w.read(*b), w.read(*c), w.read(*d));
            let cells = w.reg_mut(dst.reg);
            for_active(active, |l| cells[l] = f(a[l], b[l], c[l], d[l]) & dst.mask);
        }
    }
}

/// The lanes in which the comparison holds.
pub fn compare(w: &Warp, active: u32, a: Src, b: Src, cmp: &Compare) -> u32 {
    let (a, b) = (w.read(a), w.read(b));
    let mut holds = 0;
    for_active(active, |l| holds |= u32::from(cmp(a[l], b[l])) << l);
    holds
}

pub fn combine(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

pub fn pack(w: &mut Warp, active: u32, dst: Dst, parts: &[Src], bits: u32) {
    let mut out = [0; 32];
    for (i, &p) in parts.iter().enumerate() {
        let p = w.read(p);
        for (o, v) in out.iter_mut().zip(p) {
            *o |= (v & mask(bits)) << (i as u32 * bits);
        }
    }
    let cells = w.reg_mut(dst.reg);
    for_active(active, |l| cells[l] = out[l] & dst.mask);
}

pub fn unpack(w: &mut Warp, active: u32, dst: &[Option<Dst>], a: Src, bits: u32) {
    let a = w.read(a);
    for (i, d) in dst.iter().enumerate() {
        let Some(d) = d else { continue };
        let cells = w.reg_mut(d.reg);
        for_active(active, |l| cells[l] = (a[l] >> (i as u32 * bits)) & mask(bits) & d.mask);
    }
}
