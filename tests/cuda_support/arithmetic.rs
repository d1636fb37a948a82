//! The kernels between an engine's products against loops in f64, over rows of every width, with what must
//! not be touched poisoned.

use headwise::{
    cuda::{CudaError, DeviceRows, DeviceWords, Element},
    device::{DeviceError, Kernels},
    engine::{
        SamplingError, argmax,
        cuda::{
            Activation, Cast, Embed, Gain, Gates, Greedy, Growth, HeadNorms, Heads, Norms, Pairing,
            Projected, Rotary, Turns, token,
        },
    },
};

use crate::matrix::{Bench, POISON, decode, encode, shapes};

/// x / √(mean(x²) + ε) · weight.
pub fn normed(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + epsilon).sqrt() * w).collect()
}

pub fn tokens_find_their_rows(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    for element in [Element::F16, Element::Bf16] {
        let embed = Embed::new(bench.kernels, element, &bench.stream).unwrap();
        for ([rows, channels], gaps) in shapes() {
            let tokens = 9;
            let (table, values) = bench.matrix(element, [tokens, channels], gaps);
            let ids: Vec<u32> = (0..rows).map(|_| bench.random.below(tokens) as u32).collect();
            let at = bench.words(&ids);
            let mut out = bench.empty(Element::F32, [rows, channels], gaps);
            let ids_at = DeviceWords::of(&at, rows).unwrap();
            embed.launch(ids_at, table.rows(), 2.5, out.rows_mut(), &bench.stream).unwrap();
            let row = |&id: &u32| &values[id as usize * channels..][..channels];
            let exact: Vec<f64> = ids.iter().flat_map(row).map(|x| 2.5 * x).collect();
            bench.check("embedding", &out, &exact, 0.0);
        }
    }
}

pub fn an_unknown_token_is_not_a_number(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    let embed = Embed::new(bench.kernels, Element::F16, &bench.stream).unwrap();
    let (table, _) = bench.matrix(Element::F16, [9, 12], false);
    let mut out = bench.empty(Element::F32, [3, 12], true);
    let at = bench.words(&[8, 9, u32::MAX]);
    let ids = DeviceWords::of(&at, 3).unwrap();
    embed.launch(ids, table.rows(), 1.0, out.rows_mut(), &bench.stream).unwrap();
    let values = bench.values(&out);
    assert!(values[..12].iter().all(|v| v.is_finite()));
    assert!(values[12..].iter().all(|v| v.is_nan()));
}

pub fn norms_are_the_formulas(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    let epsilon = 1e-3f32;
    for element in [Element::F32, Element::F16, Element::Bf16] {
        let norms = Norms::new(bench.kernels, element, &bench.stream).unwrap();
        for ([rows, channels], gaps) in shapes() {
            let shape = [rows, channels];
            let (mut x, before) = bench.matrix(Element::F32, shape, gaps);
            let (y, more) = bench.matrix(Element::F32, shape, gaps);
            let (weight, w) = bench.matrix(Element::F32, [1, channels], gaps);
            let (post, p) = bench.matrix(Element::F32, [1, channels], false);
            let norm = |x: &[f64]| -> Vec<f64> {
                x.chunks(channels).flat_map(|x| normed(x, &w, epsilon.into())).collect()
            };
            let post_normed: Vec<f64> =
                more.chunks(channels).flat_map(|y| normed(y, &p, epsilon.into())).collect();
            let add = |a: &[f64], b: &[f64]| -> Vec<f64> {
                a.iter().zip(b).map(|(a, b)| a + b).collect()
            };
            let gain = Gain { weight: weight.rows(), epsilon };
            let mut out = bench.empty(element, shape, gaps);
            norms.norm(x.rows(), gain, out.rows_mut(), &bench.stream).unwrap();
            bench.check("norm", &out, &norm(&before), 1e-2);
            bench.check("x as it was", &x, &before, 0.0);

            let mut out = bench.empty(element, shape, gaps);
            let growth = Growth { rows: y.rows(), norm: None };
            norms.add_and_norm(growth, x.rows_mut(), gain, out.rows_mut(), &bench.stream).unwrap();
            let once = add(&before, &more);
            bench.check("x that grew", &x, &once, 1.0);
            bench.check("its norm", &out, &norm(&once), 1.0);

            let mut out = bench.empty(element, shape, gaps);
            let growth = Growth { rows: y.rows(), norm: Some(post.rows()) };
            norms.add_and_norm(growth, x.rows_mut(), gain, out.rows_mut(), &bench.stream).unwrap();
            let twice = add(&once, &post_normed);
            bench.check("x that grew by a norm", &x, &twice, 1.0);
            bench.check("the norm of that", &out, &norm(&twice), 1.0);

            norms.add(growth, x.rows_mut(), epsilon, &bench.stream).unwrap();
            bench.check("x that only grew", &x, &add(&twice, &post_normed), 1.0);
            bench.check("y as it was", &y, &more, 0.0);
        }
    }
}

pub fn picked_rows_are_normed(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    let norms = Norms::new(bench.kernels, Element::F16, &bench.stream).unwrap();
    let channels = 20;
    let (x, values) = bench.matrix(Element::F32, [7, channels], true);
    let (weight, w) = bench.matrix(Element::F32, [1, channels], false);
    let gain = Gain { weight: weight.rows(), epsilon: 1e-5 };
    let at = bench.words(&[6, 0, 6, 7]);
    let picks = DeviceWords::of(&at, 4).unwrap();
    let mut out = bench.empty(Element::F16, [4, channels], true);
    norms.norm_picked(x.rows(), picks, gain, out.rows_mut(), &bench.stream).unwrap();
    let got = bench.values(&out);
    for (got, pick) in got.chunks(channels).zip([6, 0, 6]) {
        let exact = normed(&values[pick * channels..][..channels], &w, 1e-5);
        for (&got, exact) in got.iter().zip(exact) {
            assert!((f64::from(got) - exact).abs() < 1e-3 * (exact.abs() + 0.1));
        }
    }
    assert!(got[3 * channels..].iter().all(|v| v.is_nan()), "a row that x does not have");
}

/// One token's heads, turned as the papers say.
pub fn turned(
    x: &[f64],
    dim: usize,
    pairing: Pairing,
    frequencies: &[f64],
    position: u32,
    norm: Option<(&[f64], f64)>,
) -> Vec<f64> {
    let mut out = Vec::new();
    for head in x.chunks(dim) {
        let mut head = norm.map_or(head.to_vec(), |(weight, e)| normed(head, weight, e));
        for (pair, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            let (i, j) = match pairing {
                Pairing::Interleaved => (2 * pair, 2 * pair + 1),
                Pairing::Halves => (pair, pair + frequencies.len()),
            };
            (head[i], head[j]) = (head[i] * cos - head[j] * sin, head[i] * sin + head[j] * cos);
        }
        out.extend(head);
    }
    out
}

pub fn heads_turn_by_their_positions(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    let shapes = [(1, 1, 2, 1), (4, 2, 16, 8), (3, 1, 80, 40), (5, 5, 24, 6), (9, 3, 130, 65)];
    for pairing in [Pairing::Interleaved, Pairing::Halves] {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            let rotary = Rotary::new(bench.kernels, pairing, element, &bench.stream).unwrap();
            for (nth, (query, kv, dim, pairs)) in shapes.into_iter().enumerate() {
                let heads = Heads { query, kv, dim };
                let gaps = nth % 2 == 1;
                let frequencies: Vec<f64> = (0..pairs)
                    .map(|pair| 10_000f64.powf(-2.0 * pair as f64 / (2 * pairs) as f64))
                    .collect();
                let turns = Turns::new(&frequencies, &mut bench.staging, &bench.stream).unwrap();
                let positions: &[u32] = if nth == 0 { &[] } else { &[0, 131_071, 7] };
                let tokens = positions.len();
                let at = bench.words(positions);
                let shape = [tokens, heads.fused()];
                let (mut product, x) = bench.matrix(Element::F32, shape, gaps);
                let (q_norm, q_weight) = bench.matrix(Element::F32, [1, dim], false);
                let (k_norm, k_weight) = bench.matrix(Element::F32, [1, dim], gaps);
                let normed = nth % 2 == 0;
                let norms =
                    normed.then(|| HeadNorms { q: q_norm.rows(), k: k_norm.rows(), epsilon: 1e-4 });
                let mut q = bench.empty(element, [tokens, query * dim], gaps);
                let mut k = bench.empty(element, [tokens, kv * dim], !gaps);
                let mut v = bench.empty(element, [tokens, kv * dim], gaps);
                let moved = element != Element::F32 || nth == 3;
                let rows = Projected {
                    product: product.rows_mut(),
                    q: q.rows_mut(),
                    kv: moved.then(|| [k.rows_mut(), v.rows_mut()]),
                };
                let words = DeviceWords::of(&at, tokens).unwrap();
                rotary.launch(heads, words, &turns, norms, rows, &bench.stream).unwrap();

                let split = |row: &[f64], weight: &[f64], position: u32| {
                    let norm = normed.then_some((weight, 1e-4));
                    turned(row, dim, pairing, &frequencies, position, norm)
                };
                let (mut exact_q, mut exact_k, mut exact_v) = (vec![], vec![], vec![]);
                for (row, &position) in x.chunks(heads.fused()).zip(positions) {
                    let (row_q, rest) = row.split_at(query * dim);
                    let (row_k, row_v) = rest.split_at(kv * dim);
                    exact_q.push(split(row_q, &q_weight, position));
                    exact_k.push(split(row_k, &k_weight, position));
                    exact_v.push(row_v.to_vec());
                }
                bench.check("q", &q, &exact_q.concat(), 1.0);
                if moved {
                    bench.check("k", &k, &exact_k.concat(), 1.0);
                    bench.check("v", &v, &exact_v.concat(), 0.0);
                    bench.check("the product", &product, &x, 0.0);
                } else {
                    let rows = x.chunks(heads.fused()).zip(exact_k).zip(exact_v);
                    let rows = rows.map(|((row, k), v)| [&row[..query * dim], &k, &v].concat());
                    let exact: Vec<f64> = rows.flatten().collect();
                    bench.check("the product with turned keys", &product, &exact, 1.0);
                }
            }
        }
    }
}

pub fn gates_are_the_formulas(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for element in [Element::F16, Element::Bf16] {
            let gates = Gates::new(bench.kernels, activation, element, &bench.stream).unwrap();
            for ([rows, channels], gaps) in shapes() {
                let shape = [rows, 2 * channels];
                let values: Vec<f32> = bench.random.floats(shape[0] * shape[1], 9.0);
                let (gate_up, x) = bench.matrix_of(Element::F32, shape, gaps, &values);
                let mut out = bench.empty(element, [rows, channels], gaps);
                let stream = &bench.stream;
                gates.launch(gate_up.rows(), 0.25, out.rows_mut(), stream).unwrap();
                let f = |x: f64| match activation {
                    Activation::Silu => x / (1.0 + (-x).exp()),
                    Activation::GeluTanh => {
                        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                        x / 2.0 * (1.0 + u.tanh())
                    }
                };
                let row = |row: &[f64]| -> Vec<f64> {
                    (0..channels).map(|i| 0.25 * f(row[i]) * row[channels + i]).collect()
                };
                let exact: Vec<f64> = x.chunks(2 * channels).flat_map(row).collect();
                bench.check("gates", &out, &exact, 1e-3);
            }
        }
    }
}

/// Values at the ends of their range give what the formulas' limits are.
pub fn gates_have_limits(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let gates = Gates::new(bench.kernels, activation, Element::Bf16, &bench.stream).unwrap();
        let big = 1e30f32;
        let values = [big, -big, 0.0, f32::NAN, 1.0, 1.0, 1.0, 1.0];
        let (gate_up, _) = bench.matrix_of(Element::F32, [1, 8], false, &values);
        let mut out = bench.empty(Element::Bf16, [1, 4], false);
        gates.launch(gate_up.rows(), 1.0, out.rows_mut(), &bench.stream).unwrap();
        let got = bench.values(&out);
        assert!((got[0] / big - 1.0).abs() < 1e-2, "{got:?}");
        assert!(got[1] == 0.0 && got[2] == 0.0 && got[3].is_nan(), "{got:?}");
    }
}

pub fn rows_are_rounded(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    for element in [Element::F16, Element::Bf16] {
        let cast = Cast::new(bench.kernels, element, &bench.stream).unwrap();
        for (shape, gaps) in shapes() {
            let (x, values) = bench.matrix(Element::F32, shape, gaps);
            let mut out = bench.empty(element, shape, !gaps);
            cast.launch(x.rows(), out.rows_mut(), &bench.stream).unwrap();
            // Rounded as the host rounds, bit for bit.
            let rounded: Vec<f32> = (values.iter())
                .map(|&value| decode(element, &encode(element, value as f32)))
                .collect();
            assert_eq!(bench.values(&out), rounded);
        }
    }
}

pub fn the_most_likely_token_is_the_hosts(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    let greedy = Greedy::new(bench.kernels, &bench.stream).unwrap();
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let vocab = 1300;
    let mut rows: Vec<Vec<f32>> = (0..12).map(|_| bench.random.floats(vocab, 3.0)).collect();
    // Equals in other threads, in the same one, and first and last.
    [5, 700, 1299].iter().for_each(|&i| rows[0][i] = 4.0);
    [517, 5].iter().for_each(|&i| rows[1][i] = 4.0);
    rows[2][1299] = 4.0;
    rows[3][0] = 4.0;
    // What is wrong is reported before what is large, the first of it.
    rows[4][900] = nan;
    (rows[5][900], rows[5][30]) = (nan, inf);
    (rows[6][900], rows[6][30]) = (inf, nan);
    rows[7].fill(-inf);
    rows[8].fill(-inf);
    rows[8][77] = -3e38;
    rows[9].fill(nan);
    rows[10].fill(0.0);
    rows[10][0] = -0.0;
    for gaps in [false, true] {
        let (logits, _) = bench.matrix_of(Element::F32, [rows.len(), vocab], gaps, &rows.concat());
        let mut best = bench.put(&vec![POISON; 8 * rows.len() + 8]);
        greedy.launch(logits.rows(), &mut best, &bench.stream).unwrap();
        let bytes = bench.bytes(&best);
        let words: Vec<u32> =
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(words[2 * rows.len()..], [u32::MAX; 2], "what lies behind");
        for (row, pair) in rows.iter().zip(words.chunks_exact(2)) {
            let got = token([pair[0], pair[1]], vocab);
            match (got, argmax(row)) {
                (
                    Err(SamplingError::Logit { token: a, value: x }),
                    Err(SamplingError::Logit { token: b, value: y }),
                ) => assert!(a == b && (x == y || x.is_nan() && y.is_nan())),
                (got, expected) => assert_eq!(got, expected),
            }
        }
    }
    let mut best = bench.put(&[0; 7]);
    let (logits, _) = bench.matrix(Element::F32, [1, 3], false);
    let error = greedy.launch(logits.rows(), &mut best, &bench.stream).unwrap_err();
    assert!(matches!(error, DeviceError::Cuda(CudaError::OutOfBounds { len: 7, .. })));
}

pub fn rows_that_do_not_belong_together_are_refused(kernels: &Kernels) {
    let mut bench = Bench::new(kernels);
    let cast = Cast::new(bench.kernels, Element::F16, &bench.stream).unwrap();
    let (x, _) = bench.matrix(Element::F32, [3, 8], false);
    let refuse = |bench: &mut Bench<'_>, element, shape| -> String {
        let mut out = bench.empty(element, shape, false);
        cast.launch(x.rows(), out.rows_mut(), &bench.stream).unwrap_err().to_string()
    };
    let text = refuse(&mut bench, Element::Bf16, [3, 8]);
    assert_eq!(text, "rounded rows are bf16, expected f16");
    assert_eq!(refuse(&mut bench, Element::F16, [2, 8]), "rounded rows: 2, expected 3");
    assert_eq!(refuse(&mut bench, Element::F16, [3, 9]), "rounded rows: 9, expected 8");
    let buffer = bench.put(&[0; 64]);
    let rows = |first, shape, stride| {
        DeviceRows::strided(&buffer, Element::F16, first, shape, stride).map(|_| ())
    };
    assert_eq!(rows(0, [4, 8], 8), Ok(()));
    assert_eq!(rows(1, [4, 7], 8), Ok(()));
    assert_eq!(rows(2, [4, 7], 8), Err(CudaError::OutOfBounds { start: 4, end: 66, len: 64 }));
    assert!(matches!(rows(0, [4, 8], 7), Err(CudaError::WrongLength { got: 7, .. })));
    assert!(rows(0, [usize::MAX, 8], usize::MAX).is_err());
    let view = DeviceRows::of(&buffer, Element::F16, [4, 8]).unwrap();
    assert!(view.slice(3..9).is_err());
    let part = view.slice(3..8).unwrap();
    assert_eq!((part.address(), part.columns(), part.stride()), (view.address() + 6, 5, 8));
}

/// One test for each case; `$run` gives them kernels.
macro_rules! arithmetic {
    ($run:path) => {
        arithmetic! { $run:
            tokens_find_their_rows
            an_unknown_token_is_not_a_number
            norms_are_the_formulas
            picked_rows_are_normed
            heads_turn_by_their_positions
            gates_are_the_formulas
            gates_have_limits
            rows_are_rounded
            the_most_likely_token_is_the_hosts
            rows_that_do_not_belong_together_are_refused
        }
    };
    ($run:path: $($case:ident)*) => {
        $(#[test]
        fn $case() {
            $run(&mut |kernels| $crate::arithmetic::$case(kernels));
        })*
    };
}
pub(crate) use arithmetic;
