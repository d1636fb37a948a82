//! Scores from attention, and the selection of what dies.

use headwise::{
    cuda::kernels::KernelFile,
    evict::Score,
    format::{PageFormat, SlotFormat},
};

use super::{
    harness::{Random, arch, floats, integers, kernel, nvrtc, spec, words},
    prefill::Chunk,
    world::{Free, World, error},
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
        let (mut heads, mut scores, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for case in &cases {
            let first = scores.len() as u32;
            let Case { evictable, dying, .. } = case;
            heads.extend([first, case.scores.len() as u32, evictable.start, evictable.end]);
            heads.extend([*dying as u32, first]);
            scores.extend(&case.scores);
            positions.extend(case.positions.iter().flatten());
        }
        let mut vm = Machine::new(2);
        let scores: Vec<u8> = scores.iter().flat_map(|s: &u16| s.to_le_bytes()).collect();
        let moves = vm.alloc_uninit("moves", 4 * scores.len());
        let counts = vm.alloc_uninit("counts", 4 * cases.len());
        let heads = vm.alloc_read_only("heads", &words(heads));
        let scores = vm.alloc_read_only("scores", &scores);
        let positions = if shuffled {
            vm.alloc_read_only("positions", &words(positions))
        } else {
            DevicePtr(0)
        };
        let args = [heads, scores, positions, moves, counts].map(Arg::ptr);
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

#[test]
fn pooled_scores_are_the_hosts_sixteen_bits() {
    let Some(nvrtc) = nvrtc() else { return };
    let group = 4;
    let spec = spec(PageFormat::both(SlotFormat::F16), 64, group, 16);
    let score = kernel(nvrtc, KernelFile::Score, &spec, arch("sm_90"));
    let lengths = [1, 3, 200, 0, 41];
    let slots: usize = lengths.iter().sum();
    let mut random = Random(8);
    // Over the whole range of a score: subnormal ones, ordinary ones, too large ones, infinity.
    let mut sums: Vec<f32> =
        (0..slots * group).map(|_| (random.float() * 55.0).exp2() * random.float().abs()).collect();
    sums[9 * group] = f32::INFINITY;
    let mut order = Vec::new();
    for &slots in &lengths {
        let mut of_head: Vec<u32> = (0..slots as u32).collect();
        for i in (1..slots).rev() {
            of_head.swap(i, random.below(i + 1));
        }
        order.extend(of_head);
    }
    for ordered in [false, true] {
        let mut vm = Machine::new(9);
        let mut first = 0;
        let heads: Vec<u32> = lengths
            .iter()
            .flat_map(|&slots| {
                first += slots as u32;
                [first - slots as u32, slots as u32, 0]
            })
            .collect();
        let heads = vm.alloc_read_only("heads", &words(heads));
        let raw = vm.alloc_read_only("sums", &words(sums.iter().map(|v| v.to_bits())));
        let list = vm.alloc_read_only("order", &words(order.iter().copied()));
        let out = vm.alloc_uninit("scores", 2 * slots);
        let list = if ordered { list } else { DevicePtr(0) };
        let args = [heads, raw, list, out].map(Arg::ptr);
        score.run_entry("headwise_score_pool", &mut vm, [1, 5, 1], &args).unwrap();
        let got = vm.read(out).unwrap();
        let mut first = 0;
        for &slots in &lengths {
            let slot_at = |rank: usize| if ordered { order[first + rank] as usize } else { rank };
            for rank in 0..slots {
                let near = rank.saturating_sub(3)..(rank + 4).min(slots);
                let pooled = (0..group).map(|g| {
                    let value = |r| sums[(first + slot_at(r)) * group + g];
                    near.clone().map(value).fold(0.0, f32::max)
                });
                let want = Score::try_from(pooled.fold(0.0, |sum, v| sum + v)).unwrap();
                let at = 2 * (first + slot_at(rank));
                let got = u16::from_le_bytes([got[at], got[at + 1]]);
                assert_eq!(got, want.to_bits(), "rank {rank}");
            }
            first += slots;
        }
    }
}

#[test]
fn decode_increments_are_squared_probabilities() {
    let Some(nvrtc) = nvrtc() else { return };
    let group = 3;
    let spec = spec(PageFormat::both(SlotFormat::F16), 64, group, 16);
    let score = kernel(nvrtc, KernelFile::Score, &spec, arch("sm_90"));
    let mut random = Random(14);
    let lengths = [40, 0, 3];
    let slots = 43;
    let logits = random.floats(slots * group, 5.0);
    let lse = random.floats(lengths.len() * group, 1.0);
    let mut vm = Machine::new(15);
    let heads = vm.alloc_read_only("heads", &words([0, 40, 0, 40, 0, 3, 40, 3, 6]));
    let raw = vm.alloc_read_only("logits", &words(logits.iter().map(|v| v.to_bits())));
    let log_sums = vm.alloc_read_only("lse", &words(lse.iter().map(|v| v.to_bits())));
    let out = vm.alloc_uninit("increments", 4 * slots);
    let args = [heads, raw, log_sums, out].map(Arg::ptr);
    score.run_entry("headwise_score_step", &mut vm, [1, 3, 1], &args).unwrap();
    let got = floats(vm.read(out).unwrap());
    for slot in 0..slots {
        let row = if slot < 40 { 0 } else { 6 };
        let p = |g: usize| {
            let log = f64::from(logits[slot * group + g]);
            (2.0 * (log - f64::from(lse[row + g]) * std::f64::consts::LOG2_E)).exp2()
        };
        let want: f64 = (0..group).map(p).sum();
        assert!(error(&got[slot..=slot], &[want]) < 1e-5, "slot {slot}");
    }
}
