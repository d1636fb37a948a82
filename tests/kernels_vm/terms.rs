//! What layers do beside plain attention, at the level of launches: windows over cut tables that grow, tiles
//! that are left out, logits, and values that kernels were not compiled for.

use headwise::{
    base::{LayerShape, Window},
    cuda::{Staging, driver::Stream},
    device::{
        DeviceError,
        attention::{DecodeHead, DecodePlan, Decoder, Prefiller, Scoring, SinkLogits, Tensors},
        kernels::{KernelFile, Specialisation, Terms},
    },
    format::{PageFormat, SlotFormat},
};

use super::{
    decode::TOLERANCE,
    harness::{Random, arch, floats, kernel, nvrtc, spec, words},
    whole::device,
    world::{Free, World, difference, error},
};
use crate::ptxvm::{Arg, Machine, Stats};

const HEADS: usize = 3;
const GROUP: usize = 3;
const BLOCKS: u32 = 7;

/// What a layer does, for the oracle.
#[derive(Clone, Copy, Debug, Default)]
struct Layer {
    window: Option<Window>,
    softcap: Option<f32>,
    /// The logit of query head `h` is this and `h`.
    sinks_from: Option<f32>,
}

impl Layer {
    fn terms(&self) -> Terms {
        Terms {
            window: self.window.is_some(),
            softcap: self.softcap.is_some(),
            sink_logits: self.sinks_from.is_some(),
        }
    }

    fn sink(&self, row: usize) -> Option<f32> {
        self.sinks_from.map(|from| from + row as f32)
    }

    /// The score that a query row gives to each of the first `end` slots; `None` where it does not see one.
    fn scores(&self, world: &World, row: usize, end: usize) -> Vec<Option<f64>> {
        let scores = world.scores(row / GROUP, &world.queries[row], end);
        let capped = scores.into_iter().map(|x| match self.softcap.map(f64::from) {
            Some(cap) => cap * (x / cap).tanh(),
            None => x,
        });
        let sees = |slot: usize| match self.window {
            Some(Window { tokens, sinks }) => slot < sinks || slot + tokens >= end,
            None => true,
        };
        capped.enumerate().map(|(slot, x)| sees(slot).then_some(x)).collect()
    }

    /// Output and log-sum-exp.
    fn attend(&self, world: &World, row: usize, end: usize) -> (Vec<f64>, f64) {
        let scores = self.scores(world, row, end);
        let sum = |least: f64| {
            let seen = scores.iter().flatten().map(|x| (x - least).exp()).sum::<f64>();
            seen + self.sink(row).map_or(0.0, |sink| (f64::from(sink) - least).exp())
        };
        let top = scores.iter().flatten().copied().chain(self.sink(row).map(f64::from));
        let top = top.fold(f64::NEG_INFINITY, f64::max);
        let mut out = vec![0.0; world.layout.channels.v];
        for (x, value) in scores.iter().zip(&world.heads[row / GROUP].values) {
            let Some(x) = x else { continue };
            let p = (x - top).exp() / sum(top);
            out.iter_mut().zip(value).for_each(|(o, &v)| *o += p * f64::from(v));
        }
        (out, if top == f64::NEG_INFINITY { top } else { top + sum(top).ln() })
    }
}

/// A plan and what a launch of it gives.
struct Decoding {
    plan: DecodePlan,
    logits: Vec<u32>,
}

impl Decoding {
    /// Divides heads of `slots` slots over the blocks.
    fn new(world: &World, spec: &Specialisation, slots: [u32; HEADS]) -> Self {
        let page_slots = world.layout.slots as u32;
        let (mut pages, mut heads) = (0, Vec::new());
        let logits: Vec<u32> =
            (0..HEADS).map(|head| world.lengths()[..head].iter().sum()).collect();
        for (head, &slots) in slots.iter().enumerate() {
            let query = (head * GROUP) as u32;
            heads.push(DecodeHead { query, pages, slots, logits: logits[head] });
            pages += world.lengths()[head].div_ceil(page_slots);
        }
        Self { plan: DecodePlan::new(&heads, spec, BLOCKS), logits }
    }

    /// Every head has another slot, as `headwise_append_step` counts it.
    fn grow(&mut self) {
        for &end in &self.plan.ends {
            self.plan.items[end as usize].slots += 1;
        }
    }

    /// Decode and merge: outputs, log-sum-exps, logits, and what decode did.
    fn run(
        &self,
        world: &World,
        spec: &Specialisation,
        layer: &Layer,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>, Stats) {
        let nvrtc = nvrtc().unwrap();
        let decode = kernel(nvrtc, KernelFile::Decode, spec, arch("sm_90"));
        let merge = kernel(nvrtc, KernelFile::Merge, &spec.of_merge(), arch("sm_90"));
        let mut vm = Machine::new(7);
        let pages = world.upload(&mut vm, Free::Nan);
        let (ids, _) = world.tables(&mut vm);
        let cast = |values: &[u32]| words(values.iter().copied());
        let items = vm.alloc_read_only("items", bytemuck::cast_slice(&self.plan.items));
        let lists = vm.alloc_read_only("lists", &cast(&self.plan.lists));
        let queries = world.queries.concat().into_iter().map(f32::to_bits);
        let queries = vm.alloc_read_only("queries", &words(queries));
        let (rows, dim) = (HEADS * GROUP, world.layout.channels.v);
        let out = vm.alloc_uninit("out", 4 * rows * dim);
        let lse = vm.alloc_uninit("lse", 4 * rows);
        let partials = self.plan.partials as usize * GROUP;
        let partial_out = vm.alloc_uninit("partial out", 4 * partials * dim);
        let partial_lse = vm.alloc_uninit("partial lse", 4 * partials);
        let slots: usize = world.heads.iter().map(|head| head.slots).sum();
        let logits = vm.alloc_init("logits", &vec![0; 4 * slots * GROUP]);
        let sinks = (0..rows).map(|row| layer.sink(row).unwrap_or(0.0).to_bits());
        let sinks = vm.alloc_read_only("sink logits", &words(sinks));
        let places = vm.alloc_read_only("places", bytemuck::cast_slice(&self.plan.places));
        let addresses =
            [pages, ids, items, lists, queries, out, lse, partial_out, partial_lse, logits];
        let mut args: Vec<Arg> = addresses.map(Arg::ptr).to_vec();
        args.push(Arg::f32(world.scale()));
        if let Some(window) = layer.window {
            args.push(Arg::ptr(places));
            args.extend([window.tokens, window.sinks].map(|value| Arg::u32(value as u32)));
        }
        args.extend(layer.softcap.map(Arg::f32));
        let sinks = [Arg::ptr(sinks), Arg::u32(rows as u32)];
        args.extend(layer.sinks_from.iter().flat_map(|_| sinks.clone()));
        let stats = decode.run(&mut vm, [BLOCKS, 1, 1], &args).unwrap();
        let merges = vm.alloc_read_only("merges", bytemuck::cast_slice(&self.plan.merges));
        let mut args: Vec<Arg> =
            [merges, partial_out, partial_lse, out, lse].map(Arg::ptr).to_vec();
        args.extend(layer.sinks_from.iter().flat_map(|_| sinks.clone()));
        merge.run(&mut vm, [self.plan.merges.len() as u32, GROUP as u32, 1], &args).unwrap();
        let read = |buffer| floats(vm.read(buffer).unwrap());
        (read(out), read(lse), read(logits), stats)
    }

    fn assert_right(
        &self,
        world: &World,
        spec: &Specialisation,
        layer: &Layer,
        slots: [u32; HEADS],
    ) {
        let (out, lse, logits, _) = self.run(world, spec, layer);
        let dim = world.layout.channels.v;
        for row in 0..HEADS * GROUP {
            let end = slots[row / GROUP] as usize;
            let (want, want_lse) = layer.attend(world, row, end);
            let what = format!("{layer:?}, {slots:?}, row {row}");
            assert!(error(&out[row * dim..][..dim], &want) <= TOLERANCE, "{what}");
            let off = difference(&lse[row..=row], &[want_lse]);
            assert!(off <= TOLERANCE * want_lse.abs().max(1.0), "{what}: {} {want_lse}", lse[row]);
            if !spec.logits {
                continue;
            }
            for (slot, score) in layer.scores(world, row, end).into_iter().enumerate() {
                let at = (self.logits[row / GROUP] as usize + slot) * GROUP + row % GROUP;
                let p = (f64::from(logits[at]) - want_lse * std::f64::consts::LOG2_E).exp2();
                let want = score.map_or(0.0, |score| (score - want_lse).exp());
                assert!((p - want).abs() <= TOLERANCE, "{what}, slot {slot}: {p} {want}");
            }
        }
    }
}

fn spec_of(layer: &Layer, format: PageFormat, logits: bool) -> Specialisation {
    Specialisation { logits, terms: layer.terms(), ..spec(format, 64, GROUP, 16) }
}

/// Cut tables: windows and sinks end anywhere in an item, cover several, or none of it; and later steps of
/// one plan, in which the tables' last items grow and the windows of all items move.
#[test]
fn windows_follow_tables_that_grow() {
    if nvrtc().is_none() {
        return;
    }
    let steps = 3;
    let planned = [700, 40, 0];
    let most = planned.map(|slots| slots as usize + steps);
    let windows = [(1, 0), (18, 0), (150, 20), (400, 140), (690, 0), (703, 5)];
    for (nth, (tokens, sinks)) in windows.into_iter().enumerate() {
        let format = PageFormat::both([SlotFormat::F16, SlotFormat::I8][nth % 2]);
        let layer = Layer { window: Some(Window { tokens, sinks }), ..Layer::default() };
        let layer = if nth % 3 == 2 { Layer { sinks_from: Some(1.5), ..layer } } else { layer };
        let spec = spec_of(&layer, format, nth == 3);
        let world = World::new(&spec, &most, 31);
        let mut decoding = Decoding::new(&world, &spec, planned);
        assert!(decoding.plan.partials > 2, "{:?}", decoding.plan);
        let mut slots = planned;
        for _ in 0..=steps {
            decoding.assert_right(&world, &spec, &layer, slots);
            decoding.grow();
            slots = slots.map(|slots| slots + 1);
            if slots[0] as usize > most[0] {
                break;
            }
        }
    }
}

/// Partial results have no part of a sink's logit, their merge has all of it; logits are held to the cap.
#[test]
fn caps_and_sink_logits_in_cut_heads() {
    if nvrtc().is_none() {
        return;
    }
    let slots = [600, 33, 0];
    for (softcap, sinks_from) in [(None, Some(-3.0)), (Some(2.0), None), (Some(30.0), Some(200.0))]
    {
        let layer = Layer { softcap, sinks_from, window: None };
        let spec = spec_of(&layer, PageFormat::both(SlotFormat::F16), true);
        let world = World::new(&spec, &slots.map(|slots| slots as usize), 32);
        let decoding = Decoding::new(&world, &spec, slots);
        assert!(decoding.plan.partials > 2);
        decoding.assert_right(&world, &spec, &layer, slots);
    }
}

/// A window over a table of everything reads what it sees.
#[test]
fn tiles_that_nobody_sees_are_left_out() {
    if nvrtc().is_none() {
        return;
    }
    let slots = [900, 0, 0];
    let read = |layer: Layer| {
        let spec = spec_of(&layer, PageFormat::both(SlotFormat::F16), false);
        let world = World::new(&spec, &slots.map(|slots| slots as usize), 33);
        let stats = Decoding::new(&world, &spec, slots).run(&world, &spec, &layer).3;
        stats.global_read_bytes as f64
    };
    let all = read(Layer::default());
    let window = Window { tokens: 90, sinks: 10 };
    let seen = read(Layer { window: Some(window), ..Layer::default() });
    assert!(seen < 0.3 * all, "{seen} of {all}");
}

/// Any score and any cap: small scores are as exact as large ones, and what is not finite is not held.
#[test]
fn caps_hold_scores_of_any_size() {
    let Some(nvrtc) = nvrtc() else { return };
    let spec = spec(PageFormat::both(SlotFormat::F32), 16, 1, 16);
    let terms = Terms { softcap: true, ..Terms::NONE };
    let spec = Specialisation { logits: true, terms, ..spec };
    let decode = kernel(nvrtc, KernelFile::Decode, &spec, arch("sm_90"));
    let world = World::new(&spec, &[64], 34);
    // Natural logits of all slots, and the log-sum-exp.
    let held = |query: &[f32], scale: f32, cap: f32| {
        let mut vm = Machine::new(5);
        let pages = world.upload(&mut vm, Free::Nan);
        let (ids, _) = world.tables(&mut vm);
        let items = vm.alloc_read_only("items", &words([0, 0, 64, u32::MAX, 0, 0]));
        let lists = vm.alloc_read_only("lists", &words([0, 1]));
        let queries = vm.alloc_read_only("queries", &words(query.iter().map(|q| q.to_bits())));
        let [out, lse, logits] = [64, 4, 256].map(|bytes| vm.alloc_uninit("results", bytes));
        let addresses = [pages, ids, items, lists, queries, out, lse, out, lse, logits];
        let mut args: Vec<Arg> = addresses.map(Arg::ptr).to_vec();
        args.extend([scale, cap].map(Arg::f32));
        decode.run(&mut vm, [1, 1, 1], &args).unwrap();
        let mut logits = floats(vm.read(logits).unwrap());
        logits.iter_mut().for_each(|x| *x *= std::f32::consts::LN_2);
        (logits, floats(vm.read(lse).unwrap())[0])
    };
    let mut random = Random(3);
    for cap in [1e-20f32, 0.5, 50.0, 5000.0, 1e7, 3e38] {
        for size in [1e-6, 0.1, 1.0, 100.0] {
            let size = (cap * size).min(1e30);
            let query = random.floats(16, size);
            let exact = world.scores(0, &query, 64);
            for (got, x) in held(&query, world.scale(), cap).0.into_iter().zip(exact) {
                let want = f64::from(cap) * (x / f64::from(cap)).tanh();
                // Of the products, and of the tangent.
                let tolerance = 1e-4 * f64::from(size).min(want.abs()) + 1e-5 * f64::from(size);
                let off = difference(&[got], &[want]);
                assert!(off <= tolerance, "cap {cap:e}: {x:e}: {got:e} {want:e}");
            }
        }
    }
    // Products that overflow are in doubt, whatever the cap.
    assert!(held(&random.floats(16, 3e38), 8.0, 50.0).1.is_nan());
    assert!(held(&random.floats(16, 3e8), 8.0, 50.0).1.is_finite());
}

/// Launches give values for just what was compiled in, and plans have places where windows are.
#[test]
fn other_terms_than_compiled_are_refused() {
    device(90, |_, context, kernels| {
        let stream = Stream::new(context).unwrap();
        let mut staging = Staging::new(context, 2, 1 << 16).unwrap();
        let plain = Scoring::scaled(0.1);
        let sinks = SinkLogits { address: 0, heads: 3 };
        let all = [
            plain,
            Scoring { window: Some(Window::of(9)), ..plain },
            Scoring { softcap: Some(2.0), ..plain },
            Scoring { sink_logits: Some(sinks), ..plain },
        ];
        let layer = LayerShape::new(1, 3, 64).unwrap().windowed(Window::of(9)).unwrap();
        assert_eq!(Terms::of(&layer), all[1].terms());
        assert_eq!(Scoring::of(&layer, 0).window, Some(Window::of(9)));
        for of in &all[..2] {
            let spec = spec(PageFormat::default(), 64, GROUP, 16);
            let spec = Specialisation { terms: of.terms(), ..spec };
            let mut decoder = Decoder::new(kernels, spec, 1, &stream).unwrap();
            let prefiller = Prefiller::new(kernels, &spec, &stream).unwrap();
            for scoring in all.iter().filter(|scoring| *scoring != of) {
                let (given, compiled) = (scoring.terms(), spec.terms);
                let refused = Err(DeviceError::OtherTerms { given, compiled });
                let (pages, page_ids, queries, out, lse, logits) = (0, 0, 0, 0, 0, 0);
                let scoring = *scoring;
                let tensors = Tensors { pages, page_ids, queries, out, lse, logits, scoring };
                // SAFETY: nothing is launched.
                assert_eq!(unsafe { decoder.launch(&tensors, &stream) }, refused);
                // SAFETY: as above.
                assert_eq!(unsafe { prefiller.launch(&tensors, 3, &stream) }, refused);
            }
            if of.window.is_some() {
                let head = DecodeHead { query: 0, pages: 0, slots: 5, logits: 0 };
                let good = DecodePlan::new(&[head], &spec, decoder.blocks());
                let mut bad = good.clone();
                bad.places.clear();
                let mut worse = good.clone();
                worse.places[0].last = 1;
                for plan in [bad, worse] {
                    let refused = decoder.upload(plan, &mut staging, &stream);
                    assert!(matches!(refused, Err(DeviceError::OtherPlan { .. })), "{refused:?}");
                }
                decoder.upload(good, &mut staging, &stream).unwrap();
            }
        }
        stream.synchronize().unwrap();
    });
}
