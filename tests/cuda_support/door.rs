//! One cache in two memories: the same verbs on a host and on a device, and what they leave.

use std::sync::Arc;

use headwise::{
    base::{CacheShape, LayerShape, Window},
    cache::{
        CacheConfig, CacheError, Capacity, Compression, DeviceMemory, FormatMap, KvCache,
        KvSequence, Memory, Staged, TensorView,
    },
    cuda::{
        Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::Kernels,
    evict::{Budget, Policy, ScorerKind},
    format::{PageFormat, SlotFormat},
    measure::verify::Noise,
    plan::PlanError,
};

const DIM: usize = 64;
const PAGES: usize = 300;
const ROLLBACK: usize = 5;

/// Two plain heads, one with a window and sinks, one with capped scores and sink logits.
fn shape() -> CacheShape {
    let layer = |heads: usize| LayerShape::new(heads, 2 * heads, DIM).unwrap();
    let local = layer(1).windowed(Window { tokens: 20, sinks: 2 }).unwrap();
    let capped = layer(1).softcapped(20.0).unwrap().with_sink_logits(vec![0.5, -1.0]).unwrap();
    CacheShape::from_layers([layer(2), local, capped]).unwrap()
}

fn config() -> CacheConfig {
    let format = |k, v| PageFormat { k, v };
    // Of the first layer's heads each has its own.
    let formats = FormatMap::uniform(PageFormat::default())
        .with(1, format(SlotFormat::I8, SlotFormat::F16))
        .with(2, format(SlotFormat::I8, SlotFormat::F16));
    CacheConfig {
        shape: shape(),
        block_tokens: 8,
        formats,
        rollback: ROLLBACK,
        capacity: Capacity::Pages(PAGES),
    }
}

/// A sequence in both memories.
struct Pair {
    host: KvSequence,
    device: KvSequence,
}

/// Both caches, and what moves rows to one of them.
struct Door<'a> {
    host: KvCache,
    device: KvCache<DeviceMemory>,
    kernels: &'a Kernels,
    stream: Arc<Stream>,
    staging: Staging,
    noise: Noise,
}

impl Door<'_> {
    /// A step of these members with that many tokens each; drops it if it is not to be kept. Where the host
    /// has no room, the device has none.
    fn step(&mut self, pairs: &mut [Pair], tokens: &[usize], keep: bool) -> bool {
        let shape = shape();
        let total: usize = tokens.iter().sum();
        let rows: Vec<[Vec<f32>; 3]> = (shape.iter())
            .map(|of| {
                [of.q_row(), of.k_row(), of.v_row()].map(|row| self.noise.values(total * row))
            })
            .collect();
        // Without gaps, or as a fused projection leaves them.
        let gap = if self.noise.below(2) == 0 { 0 } else { 2 * DIM };
        let (hosts, devices): (Vec<_>, Vec<_>) = (pairs.iter_mut().zip(tokens))
            .map(|(pair, &tokens)| ((&mut pair.host, tokens), (&mut pair.device, tokens)))
            .unzip();
        // What was given back on the device is free once it is done.
        self.stream.synchronize().unwrap();
        let context = self.kernels.context().clone();
        let (host, device) = (&self.host, &self.device);
        let (mut on_host, mut on_device) = match (host.step(hosts), device.step(devices)) {
            (Ok(host), Ok(device)) => (host, device),
            (Err(CacheError::Plan(host)), Err(CacheError::Plan(device))) => {
                assert_eq!(host, device);
                return false;
            }
            (host, device) => {
                panic!("{:?} on the host, {:?} on the device", host.err(), device.err())
            }
        };
        let mut results = Vec::new();
        for (layer, [q, k, v]) in rows.iter().enumerate() {
            let of = shape.layer(layer);
            let mut want = vec![f32::NAN; total * of.out_row()];
            on_host.attend(layer, q, k, v, &mut want).unwrap();
            let mut upload = |values: &[f32], width: usize| {
                let stride = width + gap;
                let rows = values.len() / width;
                let mut spread = vec![f32::NAN; rows * stride];
                for (row, values) in spread.chunks_exact_mut(stride).zip(values.chunks_exact(width))
                {
                    row[..width].copy_from_slice(values);
                }
                let mut buffer = DeviceBuffer::new(&context, 4 * spread.len().max(1)).unwrap();
                let bytes = bytemuck::cast_slice(&spread);
                self.staging.upload(&self.stream, &mut buffer, [(0, bytes)]).unwrap();
                buffer
            };
            let widths = [of.q_row(), of.k_row(), of.v_row(), of.out_row()];
            let nothing = vec![7.0; want.len()];
            let buffers = [
                upload(q, widths[0]),
                upload(k, widths[1]),
                upload(v, widths[2]),
                upload(&nothing, widths[3]),
            ];
            let view = |i: usize| {
                let (address, stride) = (buffers[i].address(), widths[i] + gap);
                // SAFETY: the buffer has these rows and lives until the stream is waited for below.
                let view = unsafe {
                    TensorView::new(&context, address, SlotFormat::F32, [total, widths[i]], stride)
                };
                view.unwrap()
            };
            on_device.attend(layer, view(0), view(1), view(2), view(3)).unwrap();
            let stride = widths[3] + gap;
            let mut got = vec![0f32; total * stride];
            let all = 0..4 * got.len();
            let bytes = bytemuck::cast_slice_mut(&mut got);
            self.staging.download(&self.stream, &buffers[3], &[all], bytes).unwrap();
            for (got, want) in got.chunks_exact(stride).zip(want.chunks_exact(widths[3])) {
                let (got, beyond) = got.split_at(widths[3]);
                results.extend(got.iter().copied().zip(want.iter().copied()));
                assert!(beyond.iter().all(|x| x.is_nan()), "written beyond a row");
            }
        }
        for (got, want) in results {
            assert!((got - want).abs() <= 4e-3, "{got} on the device, {want} on the host");
        }
        if keep {
            on_host.commit().unwrap();
            on_device.commit().unwrap();
        }
        keep
    }

    /// The bytes of the slots in use, head after head, and which tokens they hold.
    fn contents<M: Memory>(cache: &KvCache<M>, sequence: &KvSequence) -> Vec<(Vec<u32>, Vec<u8>)> {
        let of_head = |(head, table): (usize, headwise::plan::HeadTable<'_>)| {
            let layout = sequence.layouts().of(head);
            let mut bytes = vec![0; table.pages.len() * layout.page_bytes];
            cache.memory().read_pages(table.pages, &mut bytes).unwrap();
            let mut held = Vec::new();
            for slot in 0..table.slots {
                let page = slot / layout.slots * layout.page_bytes;
                for region in [layout.k, layout.v] {
                    for (start, stride) in [
                        (region.payload, region.payload_stride),
                        (region.scales, region.scale_stride),
                    ] {
                        let at = page + start + slot % layout.slots * stride;
                        held.extend_from_slice(&bytes[at..at + stride]);
                    }
                }
            }
            (table.positions.to_vec(table.slots), held)
        };
        sequence.tables().heads().enumerate().map(of_head).collect()
    }

    fn check(&self, pairs: &[Pair]) {
        for pair in pairs {
            assert_eq!(pair.host.tokens(), pair.device.tokens());
            let (host, device) = (
                Self::contents(&self.host, &pair.host),
                Self::contents(&self.device, &pair.device),
            );
            for (head, (host, device)) in host.iter().zip(&device).enumerate() {
                assert_eq!(host.0, device.0, "positions of head {head}");
                assert!(host.1 == device.1, "contents of head {head}");
            }
        }
        self.stream.synchronize().unwrap();
        let host = self.host.audit(pairs.iter().map(|pair| &pair.host)).unwrap();
        let device = self.device.audit(pairs.iter().map(|pair| &pair.device)).unwrap();
        assert_eq!(host, device);
    }
}

/// `verbs` random verbs on both, from `seed`.
pub fn both_memories_agree(kernels: &Arc<Kernels>, verbs: usize, seed: u64) {
    let stream = Arc::new(Stream::new(kernels.context()).unwrap());
    let device = KvCache::on_device(&config(), Arc::clone(kernels), Arc::clone(&stream)).unwrap();
    let mut door = Door {
        host: KvCache::new(&config()).unwrap(),
        device,
        kernels,
        staging: Staging::new(kernels.context(), 3, 1 << 16).unwrap(),
        stream,
        noise: Noise::new(seed),
    };
    let mut pairs: Vec<Pair> = Vec::new();
    let mut staged: Vec<[Staged; 2]> = Vec::new();
    for verb in 0..verbs {
        let kind = if pairs.is_empty() { 0 } else { door.noise.below(12) };
        let which = if pairs.is_empty() { 0 } else { door.noise.below(pairs.len()) };
        match kind {
            0 if pairs.len() < 4 => {
                pairs.push(Pair { host: door.host.sequence(), device: door.device.sequence() });
            }
            // One prefills a chunk, the others decode.
            1 | 2 => {
                let mut tokens = vec![1; pairs.len()];
                tokens[which] = 1 + door.noise.below(14);
                door.step(&mut pairs, &tokens, true);
            }
            0 | 3..=5 => {
                let tokens = vec![1; pairs.len()];
                let keep = door.noise.below(5) > 0;
                door.step(&mut pairs, &tokens, keep);
            }
            6 if pairs.len() < 4 => {
                let pair = &pairs[which];
                let (host, device) =
                    (door.host.fork(&pair.host).unwrap(), door.device.fork(&pair.device).unwrap());
                pairs.push(Pair { host, device });
            }
            7 | 8 => {
                let kinds = [ScorerKind::KeyDiff, ScorerKind::Random, ScorerKind::SinksWindow];
                let compression = Compression {
                    scorer: Arc::from(kinds[door.noise.below(3)].build()),
                    policy: Policy { sinks: 2, window: 3, ..Policy::default() },
                    budget: Budget::Ratio(1.0 + door.noise.below(8) as f64 / 4.0),
                };
                let pair = &mut pairs[which];
                door.stream.synchronize().unwrap();
                let done = [
                    door.host.compress(&mut pair.host, &compression),
                    door.device.compress(&mut pair.device, &compression),
                ];
                assert_eq!(done[0], done[1]);
            }
            9 => {
                let pair = &mut pairs[which];
                let to = pair.host.tokens().saturating_sub(door.noise.below(ROLLBACK + 3));
                door.stream.synchronize().unwrap();
                let done = [
                    door.host.truncate(&mut pair.host, to),
                    door.device.truncate(&mut pair.device, to),
                ];
                assert_eq!(done[0], done[1]);
                if let Err(error) = &done[0] {
                    let margin = matches!(error, CacheError::Plan(PlanError::PastMargin { .. }));
                    assert!(margin, "{error}");
                }
            }
            10 => {
                let Pair { host, device } = pairs.swap_remove(which);
                if door.noise.below(2) == 0 {
                    let host = door.host.stage_out(host).unwrap();
                    staged.push([host, door.device.stage_out(device).unwrap()]);
                }
            }
            _ => {
                // Back in, each where the other was.
                if let Some([host, device]) = staged.pop() {
                    door.stream.synchronize().unwrap();
                    let (host, device) = (
                        door.host.stage_in(&device).unwrap(),
                        door.device.stage_in(&host).unwrap(),
                    );
                    pairs.push(Pair { host, device });
                }
            }
        }
        if verb % 4 == 3 || verb + 1 == verbs {
            door.check(&pairs);
        }
    }
    assert_eq!(door.device.saturated().unwrap(), 0);
    drop(pairs);
    door.stream.synchronize().unwrap();
    assert_eq!(door.device.stats().free, PAGES);
}
