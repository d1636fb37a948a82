//! A model's forward pass on a device, real or not, against the host's.

use std::{ops::Range, path::Path, sync::Arc};

use headwise::{
    cache::{CacheConfig, FormatMap, KvCache},
    cuda::{
        DeviceRows, DeviceRowsMut, Element, Staging,
        cublas::Gemm,
        driver::{DeviceBuffer, Stream},
    },
    device::Kernels,
    engine::{
        ContiguousKv, EngineError, GgufFile, KvBackend, LogitRows, Logits, Model, SequenceId, Span,
        argmax,
        cuda::{Choice, DeviceKv, DeviceModel, DeviceSetup},
    },
    format::{PageFormat, SlotFormat},
};

use crate::{
    matrix::{decode, encode},
    tiny_llama::TinyLlama,
};

/// How a device's model is stored.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    pub weights: Element,
    pub attention: Element,
}

/// Every way there is.
pub const STORED: [Stored; 4] = [
    Stored { weights: Element::F16, attention: Element::F32 },
    Stored { weights: Element::F16, attention: Element::F16 },
    Stored { weights: Element::Bf16, attention: Element::F32 },
    Stored { weights: Element::Bf16, attention: Element::Bf16 },
];

/// Attention on the host between a device's layers: rows are copied there and back.
pub struct HostAttention<K> {
    pub kv: K,
    staging: Staging,
}

impl<K> HostAttention<K> {
    pub fn new(kv: K, stream: &Stream) -> Self {
        Self { kv, staging: Staging::new(stream.context(), 2, 1 << 16).unwrap() }
    }

    fn download(&mut self, rows: DeviceRows<'_>, stream: &Stream) -> Vec<f32> {
        let size = rows.element().bytes();
        let numbers = rows.rows().saturating_sub(1) * rows.stride() + rows.columns();
        let numbers = if rows.rows() == 0 { 0 } else { numbers };
        // SAFETY: the view covers them, and the stream is waited for.
        let buffer =
            unsafe { DeviceBuffer::from_raw(rows.context(), rows.address(), numbers * size) };
        let ranges: Vec<Range<usize>> = (0..rows.rows())
            .map(|row| row * rows.stride() * size..(row * rows.stride() + rows.columns()) * size)
            .collect();
        let mut bytes = vec![0; rows.rows() * rows.columns() * size];
        self.staging.download(stream, &buffer, &ranges, &mut bytes).unwrap();
        bytes.chunks_exact(size).map(|number| decode(rows.element(), number)).collect()
    }
}

impl<K: KvBackend> DeviceKv for HostAttention<K> {
    fn attend(
        &mut self,
        layer: usize,
        q: DeviceRows<'_>,
        k: DeviceRows<'_>,
        v: DeviceRows<'_>,
        out: DeviceRowsMut<'_>,
        stream: &Stream,
    ) -> Result<(), EngineError> {
        let out = out.as_rows();
        assert_eq!((q.stride(), q.columns(), q.rows()), (out.stride(), out.columns(), k.rows()));
        assert_eq!([q, k, v].map(|rows| rows.element()), [out.element(); 3]);
        let [q, k, v] = [q, k, v].map(|rows| self.download(rows, stream));
        let mut attended = vec![f32::NAN; q.len()];
        self.kv.attend(layer, &q, &k, &v, &mut attended)?;
        let bytes: Vec<u8> =
            attended.iter().flat_map(|&value| encode(out.element(), value)).collect();
        assert_eq!(out.stride(), out.columns());
        // SAFETY: the rows are dense, as was asserted, and the stream is waited for.
        let mut to = unsafe { DeviceBuffer::from_raw(out.context(), out.address(), bytes.len()) };
        self.staging.upload(stream, &mut to, [(0, &*bytes)])?;
        stream.synchronize()?;
        Ok(())
    }
}

/// Loads a file's model onto the device.
pub fn load(
    file: &GgufFile,
    kernels: &Kernels,
    gemm: Box<dyn Gemm + Send>,
    stored: Stored,
) -> Result<DeviceModel, EngineError> {
    let stream = Arc::new(Stream::new(kernels.context()).unwrap());
    let Stored { weights, attention } = stored;
    let setup = DeviceSetup { kernels, gemm, stream, weights, attention, progress: &|_| () };
    DeviceModel::load(file, setup)
}

/// The largest root-mean-square difference of logits, over theirs, that rounding explains: in each layer
/// the weights and the inputs of four products are rounded, and those of the head; their errors are
/// independent, so squares add. Half as much again is for what softmax and gates make of them in models as
/// small as these.
pub fn tolerance(stored: Stored, layers: usize) -> f64 {
    let unit = match stored.weights {
        Element::Bf16 => 2f64.powi(-8),
        _ => 2f64.powi(-11),
    };
    let attention = if stored.attention == Element::F32 { 0 } else { 4 };
    1.5 * (((8 + attention) * layers + 2) as f64).sqrt() * unit
}

/// The root-mean-square difference of rows over the root-mean-square of the second.
pub fn difference(got: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(got.len(), exact.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = squares(&mut got.iter().zip(exact).map(|(&got, exact)| f64::from(got) - exact));
    let whole = squares(&mut exact.iter().copied());
    (error / whole).sqrt()
}

fn tokens(count: usize, salt: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + salt * 131) % 300) as u32).collect()
}

/// The steps of the test: for each span its sequence, its tokens and which get logits. Chunks and single
/// tokens of two sequences, steps without logits, with some, and with all.
const STEPS: [&[(usize, Range<usize>, Logits)]; 4] = [
    &[(0, 0..7, Logits::None), (1, 0..1, Logits::None)],
    &[(1, 1..12, Logits::All), (0, 7..8, Logits::Last)],
    &[(0, 8..9, Logits::Last), (1, 12..13, Logits::Last)],
    &[(0, 9..20, Logits::Last)],
];

/// Runs all steps, each by `run`.
fn steps(
    mut run: impl FnMut(&[Span<'_>], &[(SequenceId, usize)]) -> LogitRows,
    sequences: [SequenceId; 2],
) -> Vec<LogitRows> {
    let texts = [tokens(20, 1), tokens(13, 2)];
    STEPS
        .iter()
        .map(|step| {
            let spans: Vec<Span<'_>> = step
                .iter()
                .map(|(sequence, range, logits)| Span {
                    tokens: &texts[*sequence][range.clone()],
                    position: range.start,
                    logits: *logits,
                })
                .collect();
            let members: Vec<_> = step
                .iter()
                .map(|(sequence, range, _)| (sequences[*sequence], range.len()))
                .collect();
            run(&spans, &members)
        })
        .collect()
}

/// What all steps give on the host, and the names of their sequences.
fn on_the_host(host: &Model) -> (Vec<LogitRows>, [SequenceId; 2]) {
    let mut kv = ContiguousKv::new(host.shape().clone());
    let sequences = [kv.add_sequence(), kv.add_sequence()];
    let rows = steps(
        |spans, members| {
            kv.begin_step(members).unwrap();
            host.forward(spans, &mut kv).unwrap()
        },
        sequences,
    );
    (rows, sequences)
}

fn write(tiny: &TinyLlama, folder: &Path) -> GgufFile {
    let path = folder.join("tiny.gguf");
    tiny.write(&path);
    GgufFile::open(&path).unwrap()
}

/// Steps of two sequences on the device give the host's logits, and its greedy tokens are those of its own
/// logits.
pub fn forward_agrees(
    kernels: &Kernels,
    gemm: &dyn Fn() -> Box<dyn Gemm + Send>,
    tiny: &TinyLlama,
    stored: Stored,
) {
    let folder = tempfile::tempdir().unwrap();
    let file = write(tiny, folder.path());
    let host = Model::load(&file).unwrap();
    let (expected, _) = on_the_host(&host);
    let mut model = load(&file, kernels, gemm(), stored).unwrap();
    assert_eq!((model.config(), model.shape()), (host.config(), host.shape()));
    let stream = Arc::clone(model.stream());
    let mut kv = HostAttention::new(ContiguousKv::new(host.shape().clone()), &stream);
    let sequences = [kv.kv.add_sequence(), kv.kv.add_sequence()];
    let got = steps(
        |spans, members| {
            kv.kv.begin_step(members).unwrap();
            model.forward(spans, &mut kv).unwrap()
        },
        sequences,
    );
    let most = tolerance(stored, tiny.layers);
    for (got, expected) in got.iter().zip(&expected) {
        assert_eq!(got.len(), expected.len());
        for ((owner, got), (whose, expected)) in got.iter().zip(expected.iter()) {
            assert_eq!(owner, whose);
            let exact: Vec<f64> = expected.iter().map(|&v| v.into()).collect();
            let error = difference(got, &exact);
            assert!(error <= most, "{stored:?} {owner:?}: {error}, allowed {most}");
            println!("{stored:?}: {error:.1e} of {most:.1e}");
        }
    }
    // Once more from the start, choosing on the device.
    let mut kv = HostAttention::new(ContiguousKv::new(host.shape().clone()), &stream);
    let sequences = [kv.kv.add_sequence(), kv.kv.add_sequence()];
    let mut logits = got.iter();
    steps(
        |spans, members| {
            kv.kv.begin_step(members).unwrap();
            let chosen = model.greedy(spans, &mut kv).unwrap();
            let rows = logits.next().unwrap();
            assert_eq!(chosen.len(), rows.len());
            for (choice, (owner, row)) in chosen.into_iter().zip(rows.iter()) {
                assert_eq!(choice, Choice { owner, token: argmax(row) });
            }
            rows.clone()
        },
        sequences,
    );
}

/// The same steps with K and V in pages of the device: model and cache on one stream, nothing on the host
/// between layers.
pub fn forward_through_pages(
    kernels: &Arc<Kernels>,
    gemm: &dyn Fn() -> Box<dyn Gemm + Send>,
    tiny: &TinyLlama,
    stored: Stored,
) {
    let folder = tempfile::tempdir().unwrap();
    let file = write(tiny, folder.path());
    let host = Model::load(&file).unwrap();
    let (expected, ids) = on_the_host(&host);
    let mut model = load(&file, kernels, gemm(), stored).unwrap();
    let formats = FormatMap::uniform(PageFormat::both(SlotFormat::F32));
    let config =
        CacheConfig { block_tokens: 8, formats, ..CacheConfig::new(host.shape().clone(), 200) };
    let stream = Arc::clone(model.stream());
    let cache = KvCache::on_device(&config, Arc::clone(kernels), stream).unwrap();
    let mut sequences = [cache.sequence(), cache.sequence()];
    let got = steps(
        |spans, members| {
            let [a, b] = &mut sequences;
            let mut held = [Some(a), Some(b)];
            let members = members
                .iter()
                .map(|&(id, tokens)| (held[usize::from(id == ids[1])].take().unwrap(), tokens));
            let mut step = cache.step(members).unwrap();
            let rows = model.forward(spans, &mut step).unwrap();
            step.commit().unwrap();
            rows
        },
        ids,
    );
    let most = tolerance(stored, tiny.layers);
    for (got, expected) in got.iter().zip(&expected) {
        for ((owner, got), (whose, expected)) in got.iter().zip(expected.iter()) {
            assert_eq!(owner, whose);
            let exact: Vec<f64> = expected.iter().map(|&v| v.into()).collect();
            let error = difference(got, &exact);
            assert!(error <= most, "{stored:?} {owner:?}: {error}, allowed {most}");
        }
    }
    // A model in another queue is told so.
    let other = Arc::new(Stream::new(kernels.context()).unwrap());
    let cache = KvCache::on_device(&config, Arc::clone(kernels), other).unwrap();
    let mut sequence = cache.sequence();
    let mut step = cache.step([(&mut sequence, 1)]).unwrap();
    let span = Span { tokens: &[1], position: 0, logits: Logits::Last };
    let error = model.forward(&[span], &mut step).unwrap_err();
    assert_eq!(error.to_string(), "model and cache queue their work in different streams");
}
