//! Same results as the reference, over shapes, formats, lengths, instruction sets.

use proptest::prelude::*;

use super::*;
use crate::{
    attend::{CpuAttention, Reference},
    base::simd::Isa,
    format::Side,
};

const REDUCES: [Reduce; 2] = [Reduce::PerQueryHead, Reduce::Group];

/// Compares on every instruction set of this machine, with scores of both kinds.
fn check(scene: &Scene, window: usize, what: &str) {
    for (reduce, skip) in [(REDUCES[0], 0), (REDUCES[1], 0), (REDUCES[0], 5)] {
        let want = scene.run(&Reference, Some(&mut SlotScores::new(window, reduce).skipping(skip)));
        assert!(want.out.iter().all(|x| x.is_finite()), "{what}: the oracle saw a free slot");
        for isa in Isa::available() {
            let cpu = CpuAttention::with_isa(isa).unwrap();
            let got = scene.run(&cpu, Some(&mut SlotScores::new(window, reduce).skipping(skip)));
            assert_close(&got, &want, &format!("{what}, {isa:?}, {reduce:?}"));
        }
    }
}

fn shape(kv_heads: usize, group: usize, head_dim: usize) -> CacheShape {
    CacheShape::new(1, kv_heads, kv_heads * group, head_dim).unwrap()
}

/// Tables with lengths around every boundary, formats in turn.
fn tables(lengths: &[usize], first_format: usize) -> Vec<Table> {
    let formats = all_formats();
    let format = |i: usize| formats[(first_format + i) % formats.len()];
    lengths.iter().enumerate().map(|(i, &slots)| Table { slots, format: format(i) }).collect()
}

#[test]
fn decode_over_head_dims_and_groups() {
    for (i, head_dim) in [16, 64, 80, 96, 128, 256, 512].into_iter().enumerate() {
        for (j, group) in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17].into_iter().enumerate() {
            let spans =
                [(1, tables(&[0, 1, 37], 7 * i + j)), (1, tables(&[130, 259, 15], 3 * i + 5 * j))];
            let scene = Scene::new(shape(3, group, head_dim), &spans, 8192, (i * 100 + j) as u64);
            check(&scene, 1, &format!("head_dim {head_dim}, group {group}"));
        }
    }
}

#[test]
fn prefill_over_head_dims_and_groups() {
    for (i, head_dim) in [16, 64, 80, 96, 128, 256].into_iter().enumerate() {
        for (j, group) in [1, 3, 4, 8].into_iter().enumerate() {
            // From nothing, after earlier pages, after an eviction that left fewer slots than tokens.
            let spans = [
                (37, tables(&[37, 101], i + j)),
                (18, tables(&[200, 5], 2 * i)),
                (2, tables(&[9, 0], j)),
            ];
            let scene = Scene::new(shape(2, group, head_dim), &spans, 8192, (i * 10 + j) as u64);
            check(&scene, 7, &format!("head_dim {head_dim}, group {group}"));
        }
    }
}

#[test]
fn every_pair_of_formats_in_one_batch() {
    let spans: Vec<_> =
        [1, 3, 33].into_iter().map(|tokens| (tokens, tables(&[33 + tokens; 16], 0))).collect();
    check(&Scene::new(shape(16, 3, 64), &spans, 4096, 1), 4, "all formats");
}

#[test]
fn long_heads_are_split_and_merged() {
    // 3,000 f32 slots of head_dim 128 are three pieces; the queries of 70 tokens are three blocks.
    let format = PageFormat::both(SlotFormat::F32);
    let table = |slots| Table { slots, format };
    let spans = [(1, vec![table(3000), table(2999)]), (70, vec![table(1025), table(70)])];
    check(&Scene::new(shape(2, 4, 128), &spans, 16384, 2), 9, "splits");
    // One page that holds everything is cut inside.
    let spans = [(1, vec![table(3000), table(2000)])];
    check(&Scene::new(shape(2, 4, 128), &spans, 1 << 22, 3), 1, "one page");
}

#[test]
fn results_do_not_depend_on_threads_or_on_the_rest_of_the_batch() {
    let format = PageFormat::default();
    let long = |tokens, slots| (tokens, vec![Table { slots, format }; 2]);
    let spans = [long(1, 5000), long(40, 3000), long(3, 700)];
    let scene = Scene::new(shape(2, 3, 64), &spans, 4096, 4);
    let cpu = CpuAttention::new();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| scene.run(&cpu, Some(&mut SlotScores::new(8, Reduce::Group))))
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        let other = run(threads);
        assert_eq!((&one.out, &one.lse, &one.scores), (&other.out, &other.lse, &other.scores));
    }
    scene.with_batch(|batch| {
        let mut first = 0;
        for span in batch.spans {
            let rows = first * 6..(first + span.tokens) * 6;
            let values = rows.start * 64..rows.end * 64;
            let alone = Batch { spans: &[*span], q: &batch.q[values.clone()], ..*batch };
            let (mut out, mut lse) = (vec![0.0; values.len()], vec![0.0; rows.len()]);
            let output = Output { out: &mut out, lse: &mut lse, scores: None };
            cpu.attend(&scene.store, &alone, output).unwrap();
            assert_eq!((&out[..], &lse[..]), (&one.out[values], &one.lse[rows]));
            first += span.tokens;
        }
    });
}

#[test]
fn seeing_nothing_is_zero_and_minus_infinity() {
    let empty = Table { slots: 0, format: PageFormat::default() };
    let scene = Scene::new(shape(1, 2, 64), &[(1, vec![empty]), (20, vec![empty])], 4096, 5);
    for isa in Isa::available() {
        let got = scene.run(&CpuAttention::with_isa(isa).unwrap(), None);
        assert!(got.out.iter().all(|&x| x == 0.0));
        assert!(got.lse.iter().all(|&x| x == f32::NEG_INFINITY));
    }
}

#[test]
fn a_newer_token_that_is_nan_reaches_no_older_one() {
    let slots = 150;
    let format = PageFormat::both(SlotFormat::F32);
    let mut scene = Scene::new(shape(1, 3, 64), &[(50, vec![Table { slots, format }])], 4096, 6);
    let clean = scene.run(&CpuAttention::new(), None);
    let (pages, _, layout) = scene.tables[0].clone();
    let place = TablePages { pages: &pages, layout: &layout };
    for side in [Side::Key, Side::Value] {
        scene.store.poison_slots(place, slots - 10..slots, side).unwrap();
    }
    for isa in Isa::available() {
        let got = scene.run(&CpuAttention::with_isa(isa).unwrap(), None);
        let rows = 40 * 3;
        for (got, want) in got.out[..rows * 64].iter().zip(&clean.out) {
            assert!((got - want).abs() < 1e-5, "{isa:?}");
        }
        assert!(got.out[rows * 64..].iter().all(|x| x.is_nan()), "{isa:?}: NaN went unseen");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn ragged_batches(
        seed in any::<u64>(),
        kv_heads in 1usize..4,
        group in 1usize..10,
        vectors in 1usize..9,
        page_kib in 1usize..6,
        window in 0usize..6,
        spans in prop::collection::vec((0usize..40, 0usize..300), 0..4),
    ) {
        let mut random = Random(seed);
        let formats = all_formats();
        let spans: Vec<(usize, Vec<Table>)> = spans
            .into_iter()
            .map(|(tokens, most)| {
                let mut table = || Table {
                    slots: random.next() as usize % (most + 1),
                    format: formats[random.next() as usize % formats.len()],
                };
                (tokens, (0..kv_heads).map(|_| table()).collect())
            })
            .collect();
        let scene = Scene::new(shape(kv_heads, group, 16 * vectors), &spans, page_kib << 10, seed);
        check(&scene, window, "ragged");
    }
}
