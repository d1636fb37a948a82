//! Scores from attention, and the selection of what dies.

use headwise::{
    device::kernels::KernelFile,
    format::{PageFormat, SlotFormat},
};

use super::{
    harness::{Random, arch, floats, integers, kernel, nvrtc, spec, words},
    paged::Paged,
    prefill::Chunk,
    world::{Free, World},
};
use crate::ptxvm::{Arg, DevicePtr, Machine};

/// One head of a selection.
struct Case {
    scores: Vec<u16>,
    positions: Option<Vec<u32>>,
    evictable: std::ops::Range<u32>,
    dying: usize,
}

impl Case {
    /// Victims and moves by sorting.
    fn moves(&self) -> Vec<(u32, u32)> {
        let position = |slot: usize| self.positions.as_ref().map_or(slot as u32, |p| p[slot]);
        let mut order: Vec<usize> =
            (0..self.scores.len()).filter(|&s| self.evictable.contains(&position(s))).collect();
        order.sort_by_key(|&slot| (self.scores[slot], position(slot)));
        let victims = &order[..self.dying];
        let after = self.scores.len() - self.dying;
        let holes = (0..after).filter(|slot| victims.contains(slot));
        let survivors = (after..self.scores.len()).filter(|slot| !victims.contains(slot));
        survivors.zip(holes).map(|(from, to)| (from as u32, to as u32)).collect()
    }
}

#[test]
fn select_agrees_with_a_sort() {
    let Some(nvrtc) = nvrtc() else { return };
    let spec = spec(PageFormat::both(SlotFormat::F16), 64, 1, 16);
    let select = kernel(nvrtc, KernelFile::Select, &spec, arch("sm_90"));
    let mut random = Random(1);
    for shuffled in [false, true] {
        let mut cases: Vec<Case> = Vec::new();
        for (slots, distinct, dying) in
            [(700, 65_536, 300), (700, 3, 301), (300, 1, 77), (20, 9, 0), (1, 1, 1), (513, 2, 500)]
        {
            let scores =
                (0..slots).map(|_| (random.below(distinct) as u16).wrapping_mul(7)).collect();
            let mut positions: Vec<u32> = (0..slots as u32).map(|p| p * 3).collect();
            for i in (1..slots).rev() {
                positions.swap(i, random.below(i + 1));
            }
            let last = if shuffled { slots as u32 * 3 } else { slots as u32 };
            let edge = if slots > 600 { 5 } else { 0 };
            cases.push(Case {
                scores,
                positions: shuffled.then_some(positions),
                evictable: edge..last - edge,
                dying,
            });
        }
        let lengths: Vec<usize> = cases.iter().map(|case| case.scores.len()).collect();
        let paged = Paged::new(&lengths, spec.layout.slots, 3);
        let (mut heads, mut slots) = (Vec::new(), 0);
        for (index, case) in cases.iter().enumerate() {
            let Case { evictable, dying, .. } = case;
            heads.extend([paged.starts[index], case.scores.len() as u32]);
            heads.extend([evictable.start, evictable.end, *dying as u32, slots as u32]);
            slots += case.scores.len();
        }
        let mut vm = Machine::new(2);
        let scores = paged.store(cases.iter().map(|case| &case.scores[..]));
        let positions = cases.iter().filter_map(|case| case.positions.as_deref());
        let positions = shuffled.then(|| paged.store(positions));
        let moves = vm.alloc_uninit("moves", 8 * slots);
        let counts = vm.alloc_uninit("counts", 4 * cases.len());
        let heads = vm.alloc_read_only("heads", &words(heads));
        let ids = vm.alloc_read_only("page ids", &words(paged.ids.iter().copied()));
        let scores = scores.upload(&mut vm, "scores");
        let positions = positions.map_or(DevicePtr(0), |p| p.upload(&mut vm, "positions"));
        let mut args: Vec<Arg> =
            [heads, ids, scores, positions, moves, counts].map(Arg::ptr).to_vec();
        args.push(Arg::u32(paged.stride as u32));
        select.run(&mut vm, [cases.len() as u32, 1, 1], &args).unwrap();
        let counts = integers(vm.read(counts).unwrap());
        let moves = integers(vm.read_partial(moves).unwrap());
        let mut first = 0;
        for (index, case) in cases.iter().enumerate() {
            let got = moves[2 * first..2 * (first + counts[index] as usize)].chunks(2);
            let got: Vec<(u32, u32)> = got.map(|m| (m[0], m[1])).collect();
            assert_eq!(got, case.moves(), "case {index}, shuffled {shuffled}");
            first += case.scores.len();
        }
    }
}

#[test]
fn window_scores_replay_attention() {
    let Some(nvrtc) = nvrtc() else { return };
    for (format, group, tokens) in [(SlotFormat::F16, 3, 20), (SlotFormat::I8, 4, 8)] {
        let spec = spec(PageFormat::both(format), 64, group, 16);
        let score = kernel(nvrtc, KernelFile::Score, &spec, arch("sm_90"));
        let world = World::new(&spec, &[50, 23], 31);
        let chunk = Chunk::new(&world, tokens);
        let mut vm = Machine::new(12);
        let pages = world.upload(&mut vm, Free::Forbidden);
        let (ids, starts) = world.tables(&mut vm);
        let mut lse = vec![0f32; chunk.queries.len()];
        let mut sums = Vec::new();
        let mut items = Vec::new();
        for (index, head) in world.heads.iter().enumerate() {
            let mut per_slot = vec![vec![0f64; group]; head.slots];
            for token in 0..tokens {
                for g in 0..group {
                    let row = chunk.row(&world, token, index, g);
                    let visible = head.slots - tokens + token + 1;
                    let (_, log_sum) = world.attend(index, &chunk.queries[row], visible);
                    lse[row] = log_sum as f32;
                    let scores = world.scores(index, &chunk.queries[row], visible);
                    for (of_slot, s) in per_slot.iter_mut().zip(&scores) {
                        of_slot[g] += (2.0 * (s - log_sum)).exp();
                    }
                }
            }
            // Two ranges, cut at a page.
            let (cut, first) = (16, sums.len() as u32);
            let query = chunk.row(&world, 0, index, 0) as u32;
            let (slots, before) = (head.slots as u32, (head.slots - tokens) as u32);
            let window = tokens as u32;
            items.extend([query, starts[index], cut, 0, before, window, first, 0]);
            items.extend([
                query,
                starts[index] + 1,
                slots - cut,
                cut,
                before,
                window,
                first + cut,
                0,
            ]);
            sums.extend(per_slot);
        }
        let slots = sums.len();
        let out = vm.alloc_uninit("sums", 4 * slots * group);
        let args = [
            Arg::ptr(pages),
            Arg::ptr(ids),
            Arg::ptr(vm.alloc_read_only("items", &words(items))),
            Arg::ptr(vm.alloc_read_only(
                "queries",
                &words(chunk.queries.concat().into_iter().map(f32::to_bits)),
            )),
            Arg::ptr(vm.alloc_read_only("lse", &words(lse.into_iter().map(f32::to_bits)))),
            Arg::ptr(out),
            Arg::u32((world.heads.len() * group) as u32),
            Arg::f32(world.scale()),
        ];
        score.run(&mut vm, [4, group as u32, 1], &args).unwrap();
        let got = floats(vm.read(out).unwrap());
        for (slot, want) in sums.iter().enumerate() {
            for (g, want) in want.iter().enumerate() {
                let got = f64::from(got[slot * group + g]);
                assert!((got - want).abs() <= 5e-4 * want + 1e-12, "slot {slot}: {got:e} {want:e}");
            }
        }
    }
}
