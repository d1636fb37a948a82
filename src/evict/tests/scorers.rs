use proptest::collection::vec;
use proptest::prelude::*;

use crate::base::Positions;
use crate::evict::scorer::{KeyDiff, KeyNorm, KvCompress, Random, SinksWindow};
use crate::evict::{
    EvictError, HeadContext, HeadSlots, Policy, Score, Scorer, ScorerKind, plan, quantize,
};

fn context(slots: usize) -> HeadContext<'static> {
    HeadContext {
        head: 0,
        logical_len: slots,
        positions: Positions::Identity,
        head_dim: 4,
        group: 2,
        queries: 1,
        keys: None,
        attention: None,
    }
}

fn scores(scorer: &dyn Scorer, ctx: &HeadContext<'_>, slots: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; slots];
    scorer.score(ctx, &mut out).unwrap();
    out
}

/// Every slot against every other, by position.
fn pooled_by_definition(
    attention: &[f32],
    positions: &[u32],
    group: usize,
    kernel: usize,
) -> Vec<f32> {
    let slots = positions.len();
    let rank = |slot: usize| positions.iter().filter(|&&p| p < positions[slot]).count();
    (0..slots)
        .map(|slot| {
            (0..group)
                .map(|query| {
                    (0..slots)
                        .filter(|&other| rank(slot).abs_diff(rank(other)) <= kernel / 2)
                        .map(|other| attention[query * slots + other])
                        .fold(0.0, f32::max)
                })
                .sum()
        })
        .collect()
}

proptest! {
    #[test]
    fn kv_compress_pools_neighbours_by_position(
        (slots, group, attention, positions) in (0usize..40, 1usize..5).prop_flat_map(|(s, g)| (
            Just(s),
            Just(g),
            vec(0f32..1.0, s * g),
            Just((0..60u32).collect::<Vec<_>>()).prop_shuffle(),
        )),
        half in 0usize..25,
        identity: bool,
    ) {
        let kernel = 2 * half + 1;
        let explicit = &positions[..slots];
        let order: Vec<u32> = (0..slots as u32).collect();
        let ctx = HeadContext {
            positions: if identity { Positions::Identity } else { Positions::Explicit(explicit) },
            logical_len: 60,
            group,
            attention: Some(&attention),
            ..context(slots)
        };
        let found = scores(&KvCompress::new(32, kernel).unwrap(), &ctx, slots);
        let positions = if identity { &order } else { explicit };
        let expected = pooled_by_definition(&attention, positions, group, kernel);
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!((found - expected).abs() <= 1e-6 * expected, "{found} {expected}");
        }
    }

    #[test]
    fn key_diff_is_one_minus_the_cosine(keys in vec(-3f32..3.0, 4 * 17)) {
        let ctx = HeadContext { keys: Some(&keys), ..context(17) };
        let mut mean = [0f64; 4];
        let norm = |key: &[f32]| key.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        for key in keys.chunks(4).filter(|key| norm(key) > 0.0) {
            (0..4).for_each(|i| mean[i] += f64::from(key[i]) / norm(key) / 17.0);
        }
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (key, found) in keys.chunks(4).zip(scores(&KeyDiff, &ctx, 17)) {
            let dot: f64 = (0..4).map(|i| f64::from(key[i]) * mean[i]).sum();
            let expected = 1.0 - dot / (length * norm(key)).max(1e-30);
            prop_assert!((f64::from(found) - expected).abs() < 1e-5, "{found} {expected}");
            prop_assert!((0.0..=2.0).contains(&found));
        }
    }
}

#[test]
fn kv_compress_pools_before_it_sums_the_group() {
    let attention =
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, /* second query head */ 0.0, 0.0, 0.0, 2.0, 0.0, 0.0];
    let ctx = HeadContext { attention: Some(&attention), ..context(6) };
    let pooled = scores(&KvCompress::new(8, 3).unwrap(), &ctx, 6);
    assert_eq!(pooled, [1.0, 1.0, 2.0, 2.0, 2.0, 0.0]);
    assert_eq!(scores(&KvCompress::new(8, 1).unwrap(), &ctx, 6), [1.0, 0.0, 0.0, 2.0, 0.0, 0.0]);
    let mut step = [9.0; 6];
    KvCompress::default().increment(&ctx, &mut step).unwrap();
    assert_eq!(step, [1.0, 0.0, 0.0, 2.0, 0.0, 0.0]);
}

#[test]
fn kernels_have_a_middle() {
    assert_eq!(KvCompress::new(8, 6), Err(EvictError::Kernel(6)));
    assert_eq!(KvCompress::new(8, 0), Err(EvictError::Kernel(0)));
}

#[test]
fn similar_keys_go_first() {
    let keys = [1.0, 0.0, 0.0, 0.0, 2.0, 0.1, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let ctx = HeadContext { keys: Some(&keys), ..context(4) };
    let found = scores(&KeyDiff, &ctx, 4);
    assert!(found[2] > found[0] && found[2] > found[1]);
    assert_eq!(found[3], 1.0);
    let zeros = HeadContext { keys: Some(&[0.0; 8]), ..context(2) };
    assert_eq!(scores(&KeyDiff, &zeros, 2), [1.0, 1.0]);
    let opposite = [3.0, 0.0, 0.0, 0.0, -3.0, 0.0, 0.0, 0.0];
    let ctx = HeadContext { keys: Some(&opposite), ..context(2) };
    assert_eq!(scores(&KeyDiff, &ctx, 2), [1.0, 1.0]);
}

#[test]
fn low_norms_stay() {
    let keys = [3.0, 4.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e30, 1e30, 1e30, 1e30];
    let ctx = HeadContext { keys: Some(&keys), ..context(4) };
    assert_eq!(scores(&KeyNorm, &ctx, 4), [0.2, 2.0, f32::MAX, 5e-31]);
}

#[test]
fn the_window_slides_oldest_first_and_evenly() {
    // Long enough that neighbouring positions share a score.
    let len = 10_000;
    let mut scored = vec![Score::ZERO; len];
    let values = scores(&SinksWindow, &context(len), len);
    assert!(values.is_sorted() && values[0] < values[len - 1]);
    quantize(&values, &mut scored).unwrap();
    let head = HeadSlots { scores: &scored, positions: Positions::Identity, slots_per_page: 16 };
    let plan = plan(&[head; 3], len, &Policy::default(), 3 * 500).unwrap();
    for head in plan.heads() {
        assert_eq!(head.pages_freed(), 500);
        let mut positions = Positions::Identity.to_vec(len);
        head.apply_to(&mut positions).unwrap();
        positions.sort();
        let newest = len - (positions.len() - 4);
        assert!(positions.into_iter().eq((0..4).chain(newest as u32..len as u32)));
    }
    let last = HeadContext {
        positions: Positions::Explicit(&[u32::MAX - 1]),
        logical_len: u32::MAX as usize,
        ..context(1)
    };
    assert!(Score::try_from(scores(&SinksWindow, &last, 1)[0]).unwrap() < Score::MAX);
}

#[test]
fn random_follows_the_token() {
    let plain = scores(&Random::new(5), &context(64), 64);
    let reversed: Vec<u32> = (0..64).rev().collect();
    let ctx = HeadContext { positions: Positions::Explicit(&reversed), ..context(64) };
    let mut moved = scores(&Random::new(5), &ctx, 64);
    moved.reverse();
    assert_eq!(plain, moved);
    assert_ne!(plain, scores(&Random::new(6), &context(64), 64));
    assert_ne!(plain, scores(&Random::new(5), &HeadContext { head: 1, ..context(64) }, 64));
    let mean = plain.iter().sum::<f32>() / 64.0;
    assert!((0.35..0.65).contains(&mean));
}

#[test]
fn scorers_are_found_by_name() {
    for (kind, name) in ScorerKind::ALL.into_iter().zip(ScorerKind::NAMES) {
        assert_eq!(name.parse(), Ok(kind));
        assert_eq!(kind.to_string(), name);
        assert_eq!(kind.build().name(), name);
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{name:?}"));
    }
    let unknown = "snapkv".parse::<ScorerKind>().unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "no scorer is called \"snapkv\", there are: kv-compress, keydiff, key-norm, sinks-window, random"
    );
}

#[test]
fn what_a_scorer_needs_it_says_and_checks() {
    let mut out = [0.0; 3];
    for kind in ScorerKind::ALL {
        let scorer = kind.build();
        let needs = scorer.needs();
        let found = scorer.score(&context(3), &mut out);
        match needs {
            n if n.keys || n.attention_window.is_some() => {
                assert!(matches!(found, Err(EvictError::Missing { .. })), "{kind}");
            }
            _ => assert_eq!(found, Ok(())),
        }
        let full = HeadContext { keys: Some(&[1.0; 12]), attention: Some(&[1.0; 6]), ..context(3) };
        assert_eq!(scorer.score(&full, &mut out), Ok(()));
        let step = scorer.increment(&full, &mut out);
        let expected = if needs.decode_attention {
            Ok(())
        } else {
            Err(EvictError::NotCumulative(kind.name()))
        };
        assert_eq!(step, expected);

        let short =
            HeadContext { keys: Some(&[1.0; 11]), attention: Some(&[1.0; 5]), ..context(3) };
        let nan = HeadContext {
            keys: Some(&[f32::NAN; 12]),
            attention: Some(&[f32::NAN; 6]),
            ..context(3)
        };
        if needs != Default::default() {
            assert!(matches!(scorer.score(&short, &mut out), Err(EvictError::Length { .. })));
            assert!(matches!(
                scorer.score(&nan, &mut out),
                Err(EvictError::Input { index: 0, .. })
            ));
        }
    }
    let negative = HeadContext { attention: Some(&[0.0, 0.0, 0.0, -1.0, 0.0, 0.0]), ..context(3) };
    assert_eq!(
        KvCompress::default().score(&negative, &mut out),
        Err(EvictError::Input { input: "attention", index: 3, value: -1.0 })
    );
    let positions = HeadContext { positions: Positions::Explicit(&[0, 1]), ..context(3) };
    for kind in [ScorerKind::SinksWindow, ScorerKind::Random] {
        let found = kind.build().score(&positions, &mut out);
        assert!(matches!(found, Err(EvictError::Length { what: "positions", .. })));
    }
}

#[test]
fn no_slots_are_no_trouble() {
    for kind in ScorerKind::ALL {
        let ctx = HeadContext { keys: Some(&[]), attention: Some(&[]), ..context(0) };
        assert_eq!(kind.build().score(&ctx, &mut []), Ok(()));
    }
}

/// Twelve slots, a window of 4 queries, the newest 2 slots of each skipped: slot 9 was seen from afar by
/// no query, slots 8 and 7 by one and two, the others by more than four or four.
#[test]
fn scores_from_afar_make_up_for_queries_that_were_too_near() {
    let scorer = KvCompress::new(4, 1).unwrap().from_afar(2);
    assert_eq!(scorer.needs().skip_newest, 2);
    let context = HeadContext {
        head: 0,
        logical_len: 12,
        positions: Positions::Identity,
        head_dim: 16,
        group: 1,
        queries: 4,
        keys: None,
        attention: Some(&[1.0; 12]),
    };
    let mut scores = [0.0; 12];
    scorer.score(&context, &mut scores).unwrap();
    let (near, far) = ([4.0 / 3.0, 2.0, 4.0, 4.0, 4.0], [1.0; 7]);
    assert_eq!(scores[..7], far);
    assert_eq!(scores[7..], near);
    // After a compaction attention still goes by slots, whatever they hold.
    let positions: Vec<u32> = (20..32).rev().collect();
    let positions = Positions::Explicit(&positions);
    scorer.score(&HeadContext { logical_len: 40, positions, ..context }, &mut scores).unwrap();
    assert_eq!(scores[..7], far);
    assert_eq!(scores[7..], near);
}

/// A prompt of 300 in chunks of 150: the last chunk has fewer queries than the window of 256, and a slot
/// that all of them saw from afar weighs 1.
#[test]
fn a_chunk_shorter_than_the_window_counts_its_own_queries() {
    let attention = [1.0; 300];
    let context =
        HeadContext { group: 1, queries: 150, attention: Some(&attention), ..context(300) };
    let scores = scores(&KvCompress::default(), &context, 300);
    assert_eq!(scores[..119], [1.0; 119]);
    assert_eq!(scores[119], 150.0 / 149.0);
    assert_eq!(scores[267..], [150.0; 33]);
}

#[test]
fn settings_of_any_size_are_refused_or_work() {
    assert_eq!(KvCompress::new(0, 7), Err(EvictError::NoQueries));
    let attention = [0.5, 0.0, 2.0];
    let ctx = HeadContext { group: 1, attention: Some(&attention), ..context(3) };
    for kernel in [7, 999_999_999_999, usize::MAX] {
        let pooled = scores(&KvCompress::new(usize::MAX, kernel).unwrap(), &ctx, 3);
        assert_eq!(pooled, [2.0; 3], "{kernel}");
    }
    let afar = KvCompress::new(usize::MAX, 1).unwrap().from_afar(usize::MAX);
    assert_eq!(scores(&afar, &ctx, 3), attention);
    let unseen = HeadContext { queries: 0, ..ctx };
    assert_eq!(scores(&KvCompress::default(), &unseen, 3), [2.0; 3]);
}

#[test]
fn scorers_are_alike_when_their_settings_are() {
    let (one, paper) = (KvCompress::default(), KvCompress::paper());
    assert!(one.is_like(&KvCompress::default()));
    assert!(!one.is_like(&paper) && !one.is_like(&one.from_afar(7)) && !one.is_like(&KeyDiff));
    assert!(!KeyDiff.is_like(&KeyDiff), "nothing is collected for it");
}

#[test]
fn keys_next_to_nothing_leave_the_others_their_scores() {
    let keys = [1.0, 0.0, 0.0, 0.0, 1e-40, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
    let ctx = HeadContext { keys: Some(&keys), ..context(3) };
    assert_eq!(scores(&KeyDiff, &ctx, 3), [0.0, 1.0, 0.0]);
}
