//! Kernels that move slots and pages, byte for byte against the host's formats.

use headwise::{
    device::kernels::KernelFile,
    format::{PageFormat, SlotFormat},
};

use super::{
    harness::{FORMATS, Random, arch, floats, integers, kernel, nvrtc, spec, words},
    paged::Paged,
    world::{Free, World, saturate_and_encode, slot_ranges},
};
use crate::ptxvm::{Arg, DevicePtr, Machine};

/// Rows with zeros, with values around the ends of the formats, beyond them, and that are no numbers.
fn rows(random: &mut Random, count: usize, head_dim: usize) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> =
        (0..count).map(|i| random.floats(head_dim, 10f32.powi(i as i32 % 5 - 3))).collect();
    rows[0].fill(0.0);
    rows[1][3] = f32::NAN;
    rows[2][head_dim - 1] = f32::INFINITY;
    rows[3][0] = 1e7;
    rows[3][head_dim / 2] = -1e7;
    for (i, value) in [65_519.0, -65_520.0, 3.4e38, 1e-40, -0.0, 1e-30].into_iter().enumerate() {
        rows[6][5 * (i % 3)] = value;
        rows[7][7 * (i % 2)] = value;
    }
    rows[8].iter_mut().for_each(|value| *value *= 1e-33);
    rows
}

#[test]
fn append_stores_what_the_host_stores() {
    let Some(nvrtc) = nvrtc() else { return };
    for format in FORMATS {
        for head_dim in [64, 80, 128, 256] {
            let spec = spec(format, head_dim, 1, 5);
            let append = kernel(nvrtc, KernelFile::Append, &spec, arch("sm_90"));
            let layout = spec.layout;
            let mut random = Random(3);
            let count = 9;
            let (keys, values) =
                (rows(&mut random, count, head_dim), rows(&mut random, count, head_dim));
            // Slots in no order; row 5 goes nowhere.
            let at = |row: usize| (row * 4 + 1) % (2 * layout.slots.max(9));
            let slots = (0..count).map(|row| if row == 5 { u64::MAX } else { at(row) as u64 });
            let slots: Vec<u8> = slots.flat_map(u64::to_le_bytes).collect();
            let pages = 2 * layout.slots.max(9).div_ceil(layout.slots);
            // A row of padding between rows: strides are not widths.
            let pad = vec![0.0f32; 4];
            let packed = |rows: &[Vec<f32>]| {
                let values = rows.iter().flat_map(|row| row.iter().chain(&pad));
                words(values.map(|v| v.to_bits()))
            };
            let mut vm = Machine::new(8);
            let arena = vm.alloc_init("pages", &vec![0xa5; pages * layout.page_bytes]);
            // Pages of the pool have more data than this format's slots.
            let stride = layout.slots + 2;
            let scores = vm.alloc_init("scores", &vec![0xa5; 2 * pages * stride]);
            let places = vm.alloc_init("positions", &vec![0xa5; 4 * pages * stride]);
            let saturated = vm.alloc_init("saturated", &[0; 8]);
            let args = [
                Arg::ptr(arena),
                Arg::ptr(vm.alloc_read_only("slots", &slots)),
                Arg::ptr(vm.alloc_read_only("keys", &packed(&keys))),
                Arg::ptr(vm.alloc_read_only("values", &packed(&values))),
                Arg::ptr(vm.alloc_read_only("row positions", &words((0..9).map(|row| 70 + row)))),
                Arg::ptr(scores),
                Arg::ptr(places),
                Arg::u32(stride as u32),
                Arg::u32(head_dim as u32 + 4),
                Arg::u32(head_dim as u32 + 4),
                Arg::u32(count as u32),
                Arg::ptr(saturated),
            ];
            append.run(&mut vm, [2, 1, 1], &args).unwrap();
            // Without data the same rows are stored again, and nothing else is written.
            let null = Arg::ptr(DevicePtr(0));
            let bare = [&args[..4], &[(); 3].map(|()| null.clone()), &args[7..]].concat();
            let stats = append.run(&mut vm, [1, 1, 1], &bare).unwrap();
            let written = (8 * layout.slot_bytes()) as u64 + 8 * stats.atomics;
            assert_eq!(stats.global_written_bytes, written, "{format}");
            assert!(stats.atomics <= 4, "one for each warp");

            let (mut want, mut want_places) =
                (vec![0xa5a5u16; pages * stride], vec![0xa5a5_a5a5u32; pages * stride]);
            for row in (0..count).filter(|&row| row != 5) {
                let datum = at(row) / layout.slots * stride + at(row) % layout.slots;
                (want[datum], want_places[datum]) = (0, 70 + row as u32);
            }
            assert_eq!(vm.read(scores).unwrap(), bytemuck::cast_slice::<u16, u8>(&want));
            assert_eq!(integers(vm.read(places).unwrap()), want_places);
            let counted = u64::from_le_bytes(vm.read(saturated).unwrap().try_into().unwrap());
            let got = vm.read(arena).unwrap();
            let mut untouched = vec![true; got.len()];
            let mut saturated = 0;
            for row in (0..count).filter(|&row| row != 5) {
                let (page, slot) = (at(row) / layout.slots, at(row) % layout.slots);
                for (region, stored, source) in
                    [(&layout.k, format.k, &keys[row]), (&layout.v, format.v, &values[row])]
                {
                    let [(start, len), (scale_start, scale_len)] = slot_ranges(region, slot);
                    let (mut payload, mut scales) = (vec![0; len], vec![0; scale_len]);
                    saturated += saturate_and_encode(stored, source, &mut payload, &mut scales);
                    let base = page * layout.page_bytes;
                    let (start, scale_start) = (base + start, base + scale_start);
                    let what = format!("{stored} head_dim {head_dim} row {row}");
                    assert_eq!(&got[start..start + len], payload, "{what}");
                    assert_eq!(&got[scale_start..scale_start + scale_len], scales, "{what}");
                    untouched[start..start + len].fill(false);
                    untouched[scale_start..scale_start + scale_len].fill(false);
                }
            }
            assert!(got.iter().zip(untouched).all(|(&b, untouched)| !untouched || b == 0xa5));
            // Both launches counted.
            assert_eq!(counted, 2 * saturated as u64, "{format} head_dim {head_dim}");
        }
    }
}

/// The rows of a decode step, of two sequences with two heads each, at every magnitude.
#[test]
fn a_step_stores_what_the_host_stores() {
    let Some(nvrtc) = nvrtc() else { return };
    for format in FORMATS {
        for head_dim in [64, 80] {
            let spec = spec(format, head_dim, 1, 5);
            let append = kernel(nvrtc, KernelFile::AppendStep, &spec, arch("sm_80"));
            let layout = spec.layout;
            let mut random = Random(17);
            let (keys, values) = (rows(&mut random, 12, head_dim), rows(&mut random, 12, head_dim));
            for first in [0, 4, 8] {
                let [keys, values] = [&keys, &values].map(|rows| &rows[first..first + 4]);
                let packed = |rows: &[Vec<f32>]| words(rows.concat().iter().map(|v| v.to_bits()));
                let mut vm = Machine::new(8);
                let arena = vm.alloc_init("pages", &vec![0xa5; 4 * layout.page_bytes]);
                let saturated = vm.alloc_init("saturated", &[0; 8]);
                // Every row ends in a page of its own, at slot 0.
                let items = (0..4).flat_map(|row| [0, row, 0, u32::MAX, 0, 0]);
                let null = || Arg::ptr(DevicePtr(0));
                let args = [
                    Arg::ptr(arena),
                    Arg::ptr(vm.alloc_read_only("page ids", &words([2, 0, 3, 1]))),
                    Arg::ptr(vm.alloc_init("items", &words(items))),
                    Arg::ptr(vm.alloc_read_only("growing", &words([0, 1, 2, 3]))),
                    Arg::ptr(vm.alloc_read_only("tokens", &words([1, 1]))),
                    Arg::ptr(vm.alloc_read_only("keys", &packed(keys))),
                    Arg::ptr(vm.alloc_read_only("values", &packed(values))),
                    null(),
                    null(),
                    null(),
                    Arg::u32(0),
                    Arg::u32(2 * head_dim as u32),
                    Arg::u32(2),
                    Arg::u32(4),
                    Arg::u32(1),
                    Arg::ptr(saturated),
                ];
                append.run(&mut vm, [1, 1, 1], &args).unwrap();
                let counted = u64::from_le_bytes(vm.read(saturated).unwrap().try_into().unwrap());
                let (got, mut expected) = (vm.read(arena).unwrap(), 0);
                for (row, page) in [2, 0, 3, 1].into_iter().enumerate() {
                    for (region, stored, source) in
                        [(&layout.k, format.k, &keys[row]), (&layout.v, format.v, &values[row])]
                    {
                        let [(start, len), (scale_start, scale_len)] = slot_ranges(region, 0);
                        let (mut payload, mut scales) = (vec![0; len], vec![0; scale_len]);
                        expected += saturate_and_encode(stored, source, &mut payload, &mut scales);
                        let page = &got[page * layout.page_bytes..][..layout.page_bytes];
                        assert_eq!(&page[start..start + len], payload, "{stored} {head_dim}");
                        assert_eq!(&page[scale_start..scale_start + scale_len], scales);
                    }
                }
                assert_eq!(counted, expected as u64, "{format} head_dim {head_dim}");
            }
        }
    }
}

#[test]
fn gather_reads_what_the_host_reads() {
    let Some(nvrtc) = nvrtc() else { return };
    for format in FORMATS {
        for head_dim in [64, 80, 256] {
            let spec = spec(format, head_dim, 1, 7);
            let gather = kernel(nvrtc, KernelFile::Gather, &spec, arch("sm_90"));
            let world = World::new(&spec, &[9, 0, 30], 2);
            let mut vm = Machine::new(1);
            let pages = world.upload(&mut vm, Free::Forbidden);
            let (ids, starts) = world.tables(&mut vm);
            let mut row = 0;
            let tables: Vec<u32> = world
                .heads
                .iter()
                .zip(starts)
                .flat_map(|(head, start)| {
                    row += head.slots as u32;
                    [start, head.slots as u32, row - head.slots as u32]
                })
                .collect();
            let tables = vm.alloc_read_only("tables", &words(tables));
            let bytes = 4 * row as usize * head_dim;
            let keys = vm.alloc_uninit("keys", bytes);
            let values = vm.alloc_uninit("values", bytes);
            for (keys, values) in [(keys, DevicePtr(0)), (DevicePtr(0), values)] {
                let args = [pages, ids, tables, keys, values].map(Arg::ptr);
                gather.run(&mut vm, [2, 3, 1], &args).unwrap();
            }
            let wanted = |of: fn(&super::world::Head) -> &Vec<Vec<f32>>| -> Vec<f32> {
                world.heads.iter().flat_map(|head| of(head).concat()).collect()
            };
            assert_eq!(floats(vm.read(keys).unwrap()), wanted(|head| &head.keys), "{format}");
            assert_eq!(floats(vm.read(values).unwrap()), wanted(|head| &head.values), "{format}");
        }
    }
}

#[test]
fn compact_moves_every_byte_of_a_slot() {
    let Some(nvrtc) = nvrtc() else { return };
    for format in FORMATS {
        for head_dim in [64, 256] {
            let spec = spec(format, head_dim, 1, 6);
            let compact = kernel(nvrtc, KernelFile::Compact, &spec, arch("sm_80"));
            let world = World::new(&spec, &[20, 13], 4);
            let moves: [&[(usize, usize)]; 2] =
                [&[(12, 0), (13, 5), (17, 6), (19, 11)], &[(12, 3)]];
            let mut vm = Machine::new(5);
            let pages = world.upload(&mut vm, Free::Forbidden);
            let (ids, starts) = world.tables(&mut vm);
            let first_move = [0, moves[0].len() as u32];
            let heads = (0..2).flat_map(|i| [starts[i], starts[i], first_move[i]]);
            let heads = vm.alloc_read_only("heads", &words(heads));
            let pairs = moves.concat().into_iter().flat_map(|(a, b)| [a as u32, b as u32]);
            let pairs = vm.alloc_read_only("moves", &words(pairs));
            let counts = moves.map(|moves| moves.len() as u32);
            let counts = vm.alloc_read_only("counts", &words(counts));
            // Scores and positions move along: a score of each slot, and no positions.
            let paged = Paged::of(&world);
            let scores: Vec<Vec<u16>> =
                [20, 13].map(|slots| (0..slots).map(|i| 1000 * slots + i).collect()).to_vec();
            let data = paged.store(scores.iter().map(Vec::as_slice)).upload(&mut vm, "scores");
            let mut args: Vec<Arg> =
                [pages, ids, heads, pairs, counts, data, DevicePtr(0)].map(Arg::ptr).to_vec();
            args.push(Arg::u32(paged.stride as u32));
            compact.run(&mut vm, [1, 2, 1], &args).unwrap();

            let got = vm.read_partial(data).unwrap();
            for (table, scores) in scores.iter().enumerate() {
                for (slot, &score) in scores.iter().enumerate() {
                    let moved = moves[table].iter().find(|&&(_, to)| to == slot);
                    let want = moved.map_or(score, |&(from, _)| scores[from]);
                    let at = 2 * paged.at(table, slot);
                    assert_eq!(u16::from_le_bytes([got[at], got[at + 1]]), want, "slot {slot}");
                }
            }
            let mut want = world.arena.clone();
            let layout = &world.layout;
            for (head, moves) in world.heads.iter().zip(moves) {
                let base =
                    |slot: usize| head.pages[slot / layout.slots] as usize * layout.page_bytes;
                for &(from, to) in moves {
                    for region in [&layout.k, &layout.v] {
                        let read = slot_ranges(region, from % layout.slots);
                        let written = slot_ranges(region, to % layout.slots);
                        for ((at, len), (to_at, _)) in read.into_iter().zip(written) {
                            let at = base(from) + at;
                            want.copy_within(at..at + len, base(to) + to_at);
                        }
                    }
                }
            }
            let got = vm.read_partial(pages).unwrap();
            for &(at, len) in &world.used {
                assert_eq!(got[at..at + len], want[at..at + len], "{format} at {at}");
            }
        }
    }
}

/// Copy-on-compress: others share the pages of a table, so slots are read from it and written to one in
/// which copies stand for the pages that moves write. What does not move is where it was in both, and
/// nobody else sees a change.
#[test]
fn compact_writes_copies_of_shared_pages() {
    let Some(nvrtc) = nvrtc() else { return };
    for format in FORMATS {
        let spec = spec(format, 64, 1, 6);
        let compact = kernel(nvrtc, KernelFile::Compact, &spec, arch("sm_90"));
        let world = World::new(&spec, &[3 * spec.layout.slots + 2], 4);
        let (layout, head) = (&world.layout, &world.heads[0]);
        let (each, bytes) = (layout.slots, layout.page_bytes);
        // Slots of the last two pages, which are only read, go to the first two, which have copies.
        let moves = [(2 * each, 1), (2 * each + 3, each + 2), (3 * each + 1, each + 4)];
        let copy = (world.arena.len() / bytes) as u32;
        let copies = [(head.pages[0], copy), (head.pages[1], copy + 1)];
        let mut vm = Machine::new(6);
        let pages = vm.alloc_uninit("pages", world.arena.len() + copies.len() * bytes);
        for &(at, len) in &world.used {
            let slot = &world.arena[at..at + len];
            vm.write(pages, at, slot).unwrap();
            let (page, offset) = (at / bytes, at % bytes);
            for &(_, to) in copies.iter().filter(|&&(from, _)| from as usize == page) {
                vm.write(pages, to as usize * bytes + offset, slot).unwrap();
            }
        }
        // The old table, then the new one, which ends where the dropped pages were.
        let ids: Vec<u32> = head.pages.iter().copied().chain([copy, copy + 1]).collect();
        let stride = each + 1;
        let held = copy as usize + copies.len();
        let datum = |page: u32, slot: usize| page as usize * stride + slot % each;
        let (mut scores, mut places) = (vec![0xa5a5u16; held * stride], vec![7u32; held * stride]);
        for slot in 0..head.slots {
            let page = head.pages[slot / each];
            let copied = copies.iter().filter(|&&(from, _)| from == page).map(|&(_, to)| to);
            for page in copied.chain([page]) {
                let at = datum(page, slot);
                (scores[at], places[at]) = (300 + slot as u16, 900 + slot as u32);
            }
        }
        let data = vm.alloc_init("scores", bytemuck::cast_slice(&scores));
        let spots = vm.alloc_init("positions", &words(places.iter().copied()));
        let ends = moves.iter().flat_map(|&(from, to)| [from as u32, to as u32]);
        let args = [
            pages,
            vm.alloc_read_only("page ids", &words(ids)),
            vm.alloc_read_only("heads", &words([0, head.pages.len() as u32, 0])),
            vm.alloc_read_only("moves", &words(ends)),
            vm.alloc_read_only("counts", &words([moves.len() as u32])),
            data,
            spots,
        ];
        let mut args = args.map(Arg::ptr).to_vec();
        args.push(Arg::u32(stride as u32));
        compact.run(&mut vm, [1, 1, 1], &args).unwrap();

        let got = vm.read_partial(pages).unwrap();
        for &(at, len) in &world.used {
            assert_eq!(got[at..at + len], world.arena[at..at + len], "{format}: a shared page");
        }
        let source = |slot: usize| moves.iter().find(|m| m.1 == slot).map_or(slot, |m| m.0);
        for slot in 0..2 * each {
            let from = source(slot);
            for region in [&layout.k, &layout.v] {
                let read = slot_ranges(region, from % each);
                let written = slot_ranges(region, slot % each);
                for ((at, len), (to, _)) in read.into_iter().zip(written) {
                    let at = head.pages[from / each] as usize * bytes + at;
                    let to = copies[slot / each].1 as usize * bytes + to;
                    assert_eq!(got[to..to + len], world.arena[at..at + len], "{format}: {slot}");
                }
            }
            let at = datum(copies[slot / each].1, slot);
            (scores[at], places[at]) = (300 + from as u16, 900 + from as u32);
        }
        assert_eq!(vm.read(data).unwrap(), bytemuck::cast_slice::<u16, u8>(&scores));
        assert_eq!(integers(vm.read(spots).unwrap()), places);
    }
}

#[test]
fn copy_copies_whole_pages() {
    let Some(nvrtc) = nvrtc() else { return };
    for head_dim in [64, 256] {
        let spec = spec(PageFormat::both(SlotFormat::F16), head_dim, 1, 21);
        let copy = kernel(nvrtc, KernelFile::Copy, &spec, arch("sm_90"));
        let bytes = spec.layout.page_bytes;
        let mut random = Random(6);
        let source: Vec<u8> = (0..4 * bytes).map(|_| random.next() as u8).collect();
        let mut vm = Machine::new(7);
        let from = vm.alloc_read_only("from", &source);
        let to = vm.alloc_init("to", &vec![0; 5 * bytes]);
        let pairs = [(3, 0), (1, 4), (0, 2)];
        let list = vm.alloc_read_only("pairs", &words(pairs.iter().flat_map(|&(a, b)| [a, b])));
        let args = [Arg::ptr(from), Arg::ptr(to), Arg::ptr(list), Arg::u32(3)];
        let stats = copy.run(&mut vm, [2, 1, 1], &args).unwrap();
        let mut want = vec![0; 5 * bytes];
        for (a, b) in pairs {
            let page = &source[a as usize * bytes..][..bytes];
            want[b as usize * bytes..][..bytes].copy_from_slice(page);
        }
        assert!(vm.read(to).unwrap() == want);
        assert_eq!(stats.global_written_bytes, 3 * bytes as u64);
    }
}
