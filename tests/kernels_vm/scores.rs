//! Scores at rest: pooled after a prompt, added to while decoding, and what they make pages cost.

use headwise::{
    base::Positions,
    device::kernels::KernelFile,
    evict::{Cost, HeadSlots, Policy, Score, dither, schedule},
    format::{PageFormat, SlotFormat},
};

use super::{
    harness::{Random, arch, integers, kernel, nvrtc, spec, words},
    paged::Paged,
};
use crate::ptxvm::{Arg, DevicePtr, Machine};

fn codes(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

fn shuffled(random: &mut Random, slots: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..slots as u32).collect();
    for i in (1..slots).rev() {
        order.swap(i, random.below(i + 1));
    }
    order
}

#[test]
fn pooled_scores_are_the_hosts_sixteen_bits() {
    let Some(nvrtc) = nvrtc() else { return };
    let group = 4;
    let spec = spec(PageFormat::both(SlotFormat::F16), 64, group, 16);
    let pool = kernel(nvrtc, KernelFile::ScorePool, &spec, arch("sm_90"));
    let lengths = [1, 3, 200, 0, 41];
    let slots: usize = lengths.iter().sum();
    let mut random = Random(8);
    // Over the whole range of a score: subnormal ones, ordinary ones, too large ones, infinity.
    let mut sums: Vec<f32> =
        (0..slots * group).map(|_| (random.float() * 55.0).exp2() * random.float().abs()).collect();
    sums[9 * group] = f32::INFINITY;
    let order: Vec<u32> = lengths.iter().flat_map(|&slots| shuffled(&mut random, slots)).collect();
    let paged = Paged::new(&lengths, spec.layout.slots, 10);
    let firsts: Vec<usize> =
        lengths.iter().scan(0, |end, &slots| Some(std::mem::replace(end, *end + slots))).collect();
    for ordered in [false, true] {
        let mut vm = Machine::new(9);
        let heads =
            (0..lengths.len()).flat_map(|i| [paged.starts[i], lengths[i] as u32, firsts[i] as u32]);
        let heads = vm.alloc_read_only("heads", &words(heads));
        let ids = vm.alloc_read_only("page ids", &words(paged.ids.iter().copied()));
        let raw = vm.alloc_read_only("sums", &words(sums.iter().map(|v| v.to_bits())));
        let list = vm.alloc_read_only("order", &words(order.iter().copied()));
        let out = vm.alloc_uninit("scores", paged.bytes(2));
        let list = if ordered { list } else { DevicePtr(0) };
        let mut args: Vec<Arg> = [heads, ids, raw, list, out].map(Arg::ptr).to_vec();
        args.push(Arg::u32(paged.stride as u32));
        pool.run(&mut vm, [1, 5, 1], &args).unwrap();
        let got = codes(vm.read_partial(out).unwrap());
        for (table, (&slots, &first)) in lengths.iter().zip(&firsts).enumerate() {
            let slot_at = |rank: usize| if ordered { order[first + rank] as usize } else { rank };
            for rank in 0..slots {
                let near = rank.saturating_sub(3)..(rank + 4).min(slots);
                let pooled = (0..group).map(|g| {
                    let value = |r| sums[(first + slot_at(r)) * group + g];
                    near.clone().map(value).fold(0.0, f32::max)
                });
                let want = Score::try_from(pooled.fold(0.0, |sum, v| sum + v)).unwrap();
                assert_eq!(got[paged.at(table, slot_at(rank))], want.to_bits(), "rank {rank}");
            }
        }
    }
}

/// The kernel's sums of squared probabilities are added as the host adds them, bit for bit where the
/// sums are the same: with one query head and a log-sum-exp of zero, 2^(2 · logit) is exact for whole
/// logits.
#[test]
fn decode_steps_add_squared_probabilities_as_the_host_does() {
    let Some(nvrtc) = nvrtc() else { return };
    for group in [1, 3, 4] {
        let spec = spec(PageFormat::both(SlotFormat::F16), 64, group, 16);
        let step = kernel(nvrtc, KernelFile::ScoreStep, &spec, arch("sm_90"));
        let mut random = Random(14);
        let lengths = [600, 0, 35];
        let paged = Paged::new(&lengths, spec.layout.slots, 15);
        let before: Vec<Vec<u16>> = lengths
            .iter()
            .map(|&slots| (0..slots).map(|_| random.below(65_536) as u16).collect())
            .collect();
        let slots = 635;
        let logits: Vec<f32> = match group {
            1 => (0..slots).map(|_| random.below(45) as f32 - 36.0).collect(),
            _ => random.floats(slots * group, 5.0),
        };
        let lse = if group == 1 { vec![0.0; 3] } else { random.floats(3 * group, 1.0) };
        let (tokens, head_of) = ([70_001u32, 900], [5u32, 0, 3]);
        let (sequence_of, first_of) = ([0u32, 0, 1], [0u32, 600, 600]);
        let mut vm = Machine::new(16);
        let heads = (0..3).flat_map(|i| {
            let row = (i * group) as u32;
            [paged.starts[i], lengths[i] as u32, first_of[i], row, head_of[i], sequence_of[i]]
        });
        let heads = vm.alloc_read_only("heads", &words(heads));
        let ids = vm.alloc_read_only("page ids", &words(paged.ids.iter().copied()));
        let seen = vm.alloc_read_only("tokens", &words(tokens));
        let raw = vm.alloc_read_only("logits", &words(logits.iter().map(|v| v.to_bits())));
        let log_sums = vm.alloc_read_only("lse", &words(lse.iter().map(|v| v.to_bits())));
        let scores = paged.store(before.iter().map(Vec::as_slice)).upload(&mut vm, "scores");
        let mut args: Vec<Arg> = [heads, ids, seen, raw, log_sums, scores].map(Arg::ptr).to_vec();
        let weight = group as f32;
        args.extend([Arg::u32(paged.stride as u32), Arg::f32(weight)]);
        step.run(&mut vm, [2, 3, 1], &args).unwrap();
        let got = codes(vm.read_partial(scores).unwrap());
        for (table, &slots) in lengths.iter().enumerate() {
            for slot in 0..slots {
                let p2 = |g: usize| {
                    let logit = logits[(first_of[table] as usize + slot) * group + g];
                    let norm = f64::from(lse[table * group + g]) * std::f64::consts::LOG2_E;
                    (2.0 * (f64::from(logit) - norm)).exp2()
                };
                let sum: f64 = (0..group).map(p2).sum();
                let seed = u64::from(head_of[table]) << 32 | slot as u64;
                let dither = dither(seed, tokens[sequence_of[table] as usize].into());
                let old = Score::from_bits(before[table][slot]);
                let want = old.accumulate(weight * sum as f32, dither).to_bits();
                let got = got[paged.at(table, slot)];
                let off = if group == 1 { 0 } else { 1 };
                assert!(got.abs_diff(want) <= off, "slot {slot}: {old:?} + {sum}: {got} {want}");
            }
        }
    }
}

/// The costs are those by which the host's schedule takes pages: for each number of pages, the host
/// frees just those that the device's costs say are the cheapest.
#[test]
fn pages_cost_what_the_hosts_schedule_takes_them_for() {
    let Some(nvrtc) = nvrtc() else { return };
    let spec = spec(PageFormat::both(SlotFormat::F16), 64, 1, 16);
    let price = kernel(nvrtc, KernelFile::Price, &spec, arch("sm_90"));
    let page_slots = spec.layout.slots;
    let mut random = Random(21);
    let (len, most) = (900usize, 24);
    let policy = Policy { sinks: 3, window: 20, cost: Cost::MaxVictim, ..Policy::default() };
    for explicit in [false, true] {
        let lengths = [900, 16, 1, 0, 333, 700];
        let lengths: Vec<usize> =
            lengths.iter().map(|&n| if explicit { n } else { n.min(len) }).collect();
        let scores: Vec<Vec<u16>> = (0..lengths.len())
            .map(|i| {
                let distinct = [65_535, 9, 40_000, 1, 300, 2][i];
                let code = |_| (random.below(distinct) as u16).wrapping_mul(101) & 0xfffe;
                (0..lengths[i]).map(code).collect()
            })
            .collect();
        let positions: Vec<Vec<u32>> = lengths
            .iter()
            .map(|&slots| {
                let mut all = shuffled(&mut random, len);
                all.truncate(slots);
                all
            })
            .collect();
        let paged = Paged::new(&lengths, page_slots, 22);
        let (begin, end) = (policy.sinks as u32, (len - policy.window) as u32);
        let mut vm = Machine::new(23);
        let heads = (0..lengths.len())
            .flat_map(|i| [paged.starts[i], lengths[i] as u32, begin, end, u32::MAX]);
        let heads = vm.alloc_read_only("heads", &words(heads));
        let ids = vm.alloc_read_only("page ids", &words(paged.ids.iter().copied()));
        let stored = paged.store(scores.iter().map(Vec::as_slice)).upload(&mut vm, "scores");
        let places = match explicit {
            true => paged.store(positions.iter().map(Vec::as_slice)).upload(&mut vm, "positions"),
            false => DevicePtr(0),
        };
        let costs = vm.alloc_uninit("costs", 2 * most * lengths.len());
        let counts = vm.alloc_uninit("counts", 4 * lengths.len());
        let mut args: Vec<Arg> = [heads, ids, stored, places, costs, counts].map(Arg::ptr).to_vec();
        args.extend([Arg::u32(most as u32), Arg::u32(paged.stride as u32)]);
        price.run(&mut vm, [lengths.len() as u32, 1, 1], &args).unwrap();
        let counts = integers(vm.read(counts).unwrap());
        let costs = codes(vm.read_partial(costs).unwrap());

        let scores: Vec<Vec<Score>> = scores
            .iter()
            .map(|codes| codes.iter().map(|&code| Score::from_bits(code)).collect())
            .collect();
        let heads: Vec<HeadSlots<'_>> = (scores.iter().zip(&positions))
            .map(|(scores, positions)| HeadSlots {
                scores,
                positions: if explicit {
                    Positions::Explicit(positions)
                } else {
                    Positions::Identity
                },
                slots_per_page: page_slots,
            })
            .collect();
        let all = |head: usize| &costs[head * most..head * most + counts[head] as usize];
        let possible: usize = counts.iter().map(|&n| n as usize).sum();
        for n in [1, 2, 7, possible / 2] {
            let mut priced: Vec<(u16, usize, usize)> = (0..heads.len())
                .flat_map(|head| all(head).iter().enumerate().map(move |(j, &c)| (c, j, head)))
                .collect();
            priced.sort_unstable();
            let mut want = vec![0u32; heads.len()];
            priced[..n].iter().for_each(|&(_, _, head)| want[head] += 1);
            if want.iter().any(|&pages| pages as usize == most) {
                continue;
            }
            let got = schedule(&heads, len, &policy, n).unwrap();
            assert_eq!(got.pages(), want, "{n} pages, explicit {explicit}");
        }
    }
}
