//! Keys and values that their page formats cannot hold.

use super::*;
use crate::{
    format::{OutOfRange, Overflow, Side},
    store::{PageStore, TablePages},
};

/// q, k and v of a step's layer.
type Inputs = (Vec<f32>, Vec<f32>, Vec<f32>);

fn inputs(model: &mut Model, tokens: usize) -> Vec<Inputs> {
    let shape = model.shape.clone();
    (0..shape.layers())
        .map(|_| {
            let q = model.values(tokens * shape.layer(0).q_row());
            (
                q,
                model.values(tokens * shape.layer(0).k_row()),
                model.values(tokens * shape.layer(0).k_row()),
            )
        })
        .collect()
}

/// All that a sequence holds, decoded.
fn contents(cache: &KvCache, sequence: &KvSequence) -> Vec<(Vec<f32>, Vec<f32>)> {
    let head_dim = cache.shape().layer(0).k_dim();
    let heads = sequence.tables().heads().enumerate();
    heads
        .map(|(head, table)| {
            let mut k = vec![0.0; table.slots * head_dim];
            let mut v = k.clone();
            let pages = TablePages { pages: table.pages, layout: sequence.layouts().of(head) };
            cache.store().read(pages, 0, &mut k, &mut v).unwrap();
            (k, v)
        })
        .collect()
}

/// What no page of this format holds, by where it goes.
fn unstorable(format: SlotFormat) -> Vec<f32> {
    let mut values = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    match format {
        SlotFormat::F16 => values.extend([65_520.0, -1e5, 3e38]),
        SlotFormat::Bf16 => values.extend([3.4e38, f32::MIN]),
        SlotFormat::F32 | SlotFormat::I8 => {}
    }
    values
}

/// Two sequences in one step; one value of the second, in one head of the last layer, is out of range.
/// It is named exactly; nothing is kept; the layer can be given again, or the step dropped.
#[test]
fn a_value_that_its_format_cannot_hold_is_refused_by_name() {
    for &format in SlotFormat::ALL {
        for side in [Side::Key, Side::Value] {
            for value in unstorable(format) {
                let mut model = Model::new(11);
                // Only the head that it goes to has this format, and only on this side.
                let f32 = PageFormat::both(SlotFormat::F32);
                let here = match side {
                    Side::Key => PageFormat { k: format, ..f32 },
                    Side::Value => PageFormat { v: format, ..f32 },
                };
                let cache = cache(&model, FormatMap::uniform(f32).with(3, here), 100);
                let (mut a, mut b) = (cache.sequence(), cache.sequence());
                let (mut of_a, mut of_b) = (model.history(), model.history());
                let mut both = [(&mut a, &mut of_a, 5), (&mut b, &mut of_b, 9)];
                model.step(&cache, &mut both, 0.02).unwrap();
                let before = [contents(&cache, &a), contents(&cache, &b)];

                let good = inputs(&mut model, 2 + 3);
                let mut bad = good[1].clone();
                let (layer, kv_head, token, channel) = (1, 1, 1, 30);
                let shape = model.shape.clone();
                let row = (2 + token) * shape.layer(0).k_row()
                    + kv_head * shape.layer(0).k_dim()
                    + channel;
                match side {
                    Side::Key => bad.1[row] = value,
                    Side::Value => bad.2[row] = value,
                }
                let refusal = CacheError::OutOfRange {
                    member: 1,
                    layer,
                    kv_head,
                    token: 9 + token,
                    cause: OutOfRange { side, channel, value, format },
                };
                let mut out = vec![0.0; good[0].0.len()];

                // Dropped, all is as it was.
                let mut step = cache.step([(&mut a, 2), (&mut b, 3)]).unwrap();
                step.attend(0, &good[0].0, &good[0].1, &good[0].2, &mut out).unwrap();
                assert_eq!(step.attend(1, &bad.0, &bad.1, &bad.2, &mut out), Err(refusal.clone()));
                drop(step);
                assert_eq!((a.tokens(), b.tokens()), (5, 9));
                assert_eq!([contents(&cache, &a), contents(&cache, &b)], before);
                cache.audit([&a, &b]).unwrap();

                // Given again with other values, it is as if nothing had been.
                let mut step = cache.step([(&mut a, 2), (&mut b, 3)]).unwrap();
                step.attend(0, &good[0].0, &good[0].1, &good[0].2, &mut out).unwrap();
                assert_eq!(step.attend(1, &bad.0, &bad.1, &bad.2, &mut out), Err(refusal));
                step.attend(1, &good[1].0, &good[1].1, &good[1].2, &mut out).unwrap();
                assert_eq!(step.saturated(), 0);
                step.commit().unwrap();
                assert!(out.iter().all(|x| x.is_finite()));
                assert_eq!((a.tokens(), b.tokens(), cache.saturated().unwrap()), (7, 12, 0));
                let held = contents(&cache, &b);
                let at = 9 * shape.layer(0).k_dim();
                assert!(held[3].0[at..].iter().chain(&held[3].1[at..]).all(|x| x.abs() <= 1.01));
                cache.audit([&a, &b]).unwrap();
            }
        }
    }
}

#[test]
fn refusals_say_where_and_which_formats_would_do() {
    let model = Model::new(3);
    let cache = cache(&model, FormatMap::uniform(PageFormat::default()), 20);
    let mut sequence = cache.sequence();
    let shape = model.shape.clone();
    let (q, mut k) =
        (vec![0.5; shape.layer(0).query_heads() * 32], vec![0.5; shape.layer(0).k_row()]);
    k[32 + 4] = 1e5;
    let mut step = cache.step([(&mut sequence, 1)]).unwrap();
    let error = step.attend(0, &q, &k, &k, &mut q.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 0, KV head 1, token 0: channel 4 of the key is 100000, which f16 cannot hold (its \
         largest is 65504); formats that can: f32, bf16, i8"
    );
}

/// Every format, both sides: finite outputs whatever comes in, and a count of what was changed.
#[test]
fn values_saturate_where_that_was_chosen() {
    for &format in SlotFormat::ALL {
        let mut model = Model::new(5);
        let formats = FormatMap::uniform(PageFormat::both(format)).on_overflow(Overflow::Saturate);
        let cache = cache(&model, formats, 100);
        let mut sequence = cache.sequence();
        let mut of = inputs(&mut model, 20);
        let wild = unstorable(format);
        // Into queries of zeros, so that no logit overflows.
        for (q, k, v) in &mut of {
            q.fill(0.0);
            for (i, &value) in wild.iter().enumerate() {
                // A key overflows alone in its row; a value that large would drown sums in f32.
                k[i * 67] = value;
                v[i * 67 + 5] = if value.is_finite() && value.abs() > 1e6 { 0.0 } else { value };
            }
        }
        let each = |v: &Vec<f32>| v.iter().filter(|&&x| !format.holds(x)).count() as u64;
        let expected: u64 = of.iter().map(|(_, k, v)| each(k) + each(v)).sum();
        let mut out = vec![0.0; of[0].0.len()];
        for commit in [false, true] {
            let mut step = cache.step([(&mut sequence, 20)]).unwrap();
            for (layer, (q, k, v)) in of.iter().enumerate() {
                step.attend(layer, q, k, v, &mut out).unwrap();
            }
            assert_eq!(step.saturated(), expected, "{format}");
            if commit {
                step.commit().unwrap();
                assert_eq!(cache.saturated().unwrap(), expected);
            } else {
                drop(step);
                assert_eq!(cache.saturated().unwrap(), 0, "a dropped step keeps nothing");
            }
        }
        let held = contents(&cache, &sequence);
        assert!(held.iter().all(|(k, v)| k.iter().chain(v).all(|x| x.is_finite())), "{format}");
        if format != SlotFormat::F32 && format != SlotFormat::Bf16 {
            // In those two an infinity became the end of f32: a sum of two of them is beyond it.
            assert!(out.iter().all(|x| x.is_finite()), "{format}");
        }
    }
}
