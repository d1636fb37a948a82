//! Happens-before between the threads of one block, by vector clocks (Lamport 1978; the per-byte
//! epochs of FastTrack, Flanagan and Freund, PLDI 2009).
//!
//! A thread's accesses carry its warp's clock. A thread knows an access when its own vector holds
//! that clock or a later one for the accessing thread. Knowledge of other warps lives in shared
//! vectors that barriers replace; knowledge inside a warp is a floor that a synchronisation of the
//! whole warp raises, and a matrix only where a part of a warp synchronised by itself. Running in
//! lock step gives no order: PTX promises none.

use std::rc::Rc;

use super::Who;

/// A vector clock over all threads of the block, then the asynchronous copy engine.
pub type Vector = Rc<[u32]>;

struct WarpClock {
    now: u32,
    /// Every lane knows its fellow lanes' accesses up to here.
    floor: u32,
    born: u32,
    /// What lane i knows of lane j, beyond the floor.
    pairs: Option<Box<[[u32; 32]; 32]>>,
    known: [Vector; 32],
}

pub struct Clocks {
    warps: Vec<WarpClock>,
    engine: u32,
}

impl Clocks {
    /// Clocks for warps whose existing lanes are `born`.
    pub fn new(born: &[u32]) -> Clocks {
        let zero: Vector = vec![0; born.len() * 32 + 1].into();
        let warp = |&born: &u32| WarpClock {
            now: 1,
            floor: 0,
            born,
            pairs: None,
            known: std::array::from_fn(|_| zero.clone()),
        };
        Clocks { warps: born.iter().map(warp).collect(), engine: 0 }
    }

    /// The clock an access of this warp carries now.
    #[inline]
    pub fn now(&self, warp: usize) -> u32 {
        self.warps[warp].now
    }

    /// The thread index that stands for the asynchronous copy engine.
    pub fn engine_index(&self) -> u32 {
        self.warps.len() as u32 * 32
    }

    /// A new clock value of the copy engine.
    pub fn engine_tick(&mut self) -> u32 {
        self.engine += 1;
        self.engine
    }

    /// Whether `who` knows of what thread `other` did at `clock`.
    #[inline]
    pub fn ordered(&self, who: Who, other: u32, clock: u32) -> bool {
        if other == who.index() {
            return true;
        }
        let w = &self.warps[who.warp];
        if other as usize / 32 == who.warp && other != self.engine_index() {
            let lane = other as usize % 32;
            let pair = w.pairs.as_ref().map_or(0, |p| p[who.lane][lane]);
            if clock <= w.floor.max(pair) {
                return true;
            }
        }
        clock <= w.known[who.lane][other as usize]
    }

    /// Lanes `members` of a warp synchronise.
    pub fn sync_warp(&mut self, warp: usize, members: u32) {
        let w = &mut self.warps[warp];
        let first = members.trailing_zeros() as usize;
        let same = lanes(members).all(|l| Rc::ptr_eq(&w.known[l], &w.known[first]));
        if !same {
            let mut all = w.known[first].to_vec();
            for l in lanes(members) {
                join(&mut all, &w.known[l]);
            }
            let all: Vector = all.into();
            lanes(members).for_each(|l| w.known[l] = all.clone());
        }
        if members & w.born == w.born {
            w.floor = w.now;
            w.pairs = None;
        } else {
            let floor = w.floor;
            let pairs = w.pairs.get_or_insert_with(|| Box::new([[floor; 32]; 32]));
            let mut all = [floor; 32];
            for l in lanes(members) {
                for (a, p) in all.iter_mut().zip(&pairs[l]) {
                    *a = (*a).max(*p);
                }
            }
            for l in lanes(members) {
                all[l] = w.now;
            }
            lanes(members).for_each(|l| pairs[l] = all);
        }
        w.now += 1;
    }

    /// The given lanes of the given warps meet at a barrier where others have left `before`.
    pub fn sync_block(&mut self, parties: &[(usize, u32)], before: &[u32]) {
        let mut all = vec![0; self.warps.len() * 32 + 1];
        join(&mut all, before);
        for &(warp, members) in parties {
            let w = &self.warps[warp];
            let mut last: Option<&Vector> = None;
            for l in lanes(members) {
                if last.is_none_or(|v| !Rc::ptr_eq(v, &w.known[l])) {
                    join(&mut all, &w.known[l]);
                    last = Some(&w.known[l]);
                }
                if let Some(pairs) = &w.pairs {
                    join(&mut all[warp * 32..], &pairs[l]);
                }
                all[warp * 32 + l] = w.now;
            }
            for x in &mut all[warp * 32..warp * 32 + 32] {
                *x = (*x).max(w.floor);
            }
        }
        let all: Vector = all.into();
        for &(warp, members) in parties {
            let w = &mut self.warps[warp];
            lanes(members).for_each(|l| w.known[l] = all.clone());
            w.now += 1;
        }
    }

    /// What `who` knows now, itself included; later accesses of `who` are beyond it.
    pub fn release(&mut self, who: Who) -> Vec<u32> {
        let w = &mut self.warps[who.warp];
        let mut all = w.known[who.lane].to_vec();
        let own = &mut all[who.warp * 32..who.warp * 32 + 32];
        for (l, x) in own.iter_mut().enumerate() {
            let pair = w.pairs.as_ref().map_or(0, |p| p[who.lane][l]);
            *x = (*x).max(w.floor).max(pair);
        }
        own[who.lane] = w.now;
        w.now += 1;
        all
    }

    /// Lanes `members` learn `vector`.
    pub fn acquire(&mut self, warp: usize, members: u32, vector: &[u32]) {
        let w = &mut self.warps[warp];
        let mut last: Option<(Vector, Vector)> = None;
        for l in lanes(members) {
            let new = match &last {
                Some((from, to)) if Rc::ptr_eq(from, &w.known[l]) => to.clone(),
                _ => {
                    let mut v = w.known[l].to_vec();
                    join(&mut v, vector);
                    v.into()
                }
            };
            let old = std::mem::replace(&mut w.known[l], new.clone());
            last = Some((old, new));
        }
    }
}

/// Elementwise maximum.
pub fn join(into: &mut [u32], from: &[u32]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}

/// The set bits of a lane mask.
#[inline]
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(lane)
    })
}
