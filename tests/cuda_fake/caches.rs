//! Caches in device memory: what is asked of them in the middle of a step, what fails there, what is refused.

use std::sync::{Arc, OnceLock, Weak};

use headwise::{
    base::CacheShape,
    cache::{CacheConfig, CacheError, DeviceMemory, KvCache, KvSequence},
    cuda::{
        DeviceRows, DeviceRowsMut, Element, Staging,
        driver::{Context, DeviceBuffer, Stream},
    },
    device::Kernels,
    evict::{EvictError, HeadContext, Needs, Scorer},
};

use super::{context, without_leaks};
use crate::{
    compiler::nvrtc,
    emulate::{COMPILED, Compiled, on_launch},
    fake::Fake,
};

const DIM: usize = 64;

/// One layer of 2 KV heads and 6 query heads, in f16 pages.
fn cache(kernels: &Arc<Kernels>) -> KvCache<DeviceMemory> {
    let config = CacheConfig::new(CacheShape::new(1, 2, 6, DIM).unwrap(), 1000);
    let stream = Arc::new(Stream::new(kernels.context()).unwrap());
    let cache = KvCache::on_device(&config, Arc::clone(kernels), stream).unwrap();
    COMPILED.set(Some(Compiled { layout: *cache.layouts().of(0), group: 3 }));
    cache
}

/// A step of so many tokens, whose first key and value are `first` and whose other numbers are 1.
fn step(
    cache: &KvCache<DeviceMemory>,
    sequence: &mut KvSequence,
    tokens: usize,
    first: f32,
) -> Result<(), CacheError> {
    let layer = cache.shape().layer(0).clone();
    let stream = cache.memory().stream();
    let mut staging = Staging::new(stream.context(), 2, 4096).unwrap();
    let mut step = cache.step([(sequence, tokens)])?;
    let widths = [layer.q_row(), layer.k_row(), layer.v_row(), layer.out_row()];
    let mut buffers = widths.map(|width| {
        let mut values = vec![1f32; tokens * width];
        values[0] = if width == layer.k_row() { first } else { 1.0 };
        let mut buffer = DeviceBuffer::new(stream.context(), 4 * values.len()).unwrap();
        staging.upload(stream, &mut buffer, [(0, bytemuck::cast_slice(&values))]).unwrap();
        buffer
    });
    let (inputs, out) = buffers.split_at_mut(3);
    let [q, k, v] =
        [0, 1, 2].map(|i| DeviceRows::of(&inputs[i], Element::F32, [tokens, widths[i]]).unwrap());
    let out = DeviceRowsMut::of(&mut out[0], Element::F32, [tokens, widths[3]]).unwrap();
    let done = step.attend(0, q, k, v, out);
    stream.synchronize().unwrap();
    done?;
    step.commit()
}

fn with_kernels(test: impl FnOnce(&Fake, &Arc<Kernels>)) {
    let Some(fake) = Fake::new() else { return };
    let Some(nvrtc) = nvrtc() else { return };
    fake.on_launch(on_launch);
    without_leaks(&fake, |context| test(&fake, &Arc::new(Kernels::new(context, nvrtc, None))));
}

/// Asks the cache that it is called by; keeps the attention that it was shown.
struct Asks {
    needs: Needs,
    cache: OnceLock<Weak<KvCache<DeviceMemory>>>,
    shown: parking_lot::Mutex<Vec<f32>>,
}

impl Scorer for Asks {
    fn name(&self) -> &'static str {
        "asks"
    }

    fn needs(&self) -> Needs {
        self.needs
    }

    fn score(&self, ctx: &HeadContext<'_>, _: &mut [f32]) -> Result<(), EvictError> {
        let cache = self.cache.get().and_then(Weak::upgrade).unwrap();
        assert_eq!(cache.saturated().unwrap(), 0);
        self.shown.lock().extend(ctx.attention.unwrap());
        Ok(())
    }
}

/// Scores of a prompt of which `skip_newest` slots do not count.
fn scores(kernels: &Arc<Kernels>, tokens: usize, skip_newest: usize) -> Vec<f32> {
    let needs = Needs { attention_window: Some(4), skip_newest, ..Needs::default() };
    let asks = Arc::new(Asks { needs, cache: OnceLock::new(), shown: Default::default() });
    let cache = Arc::new(cache(kernels));
    asks.cache.set(Arc::downgrade(&cache)).unwrap();
    let mut sequence = cache.sequence();
    sequence.observe(Arc::clone(&asks) as Arc<dyn Scorer>);
    step(&cache, &mut sequence, tokens, 1.0).unwrap();
    std::mem::take(&mut *asks.shown.lock())
}

#[test]
fn a_scorer_may_ask_the_cache_that_calls_it() {
    with_kernels(|_, kernels| {
        let shown = scores(kernels, 20, 0);
        assert!(shown.len() == 2 * 3 * 20 && shown.iter().all(|&p2| p2 > 0.0), "{shown:?}");
    });
}

/// More sums than the least memory holds, and no kernel that would write one.
#[test]
fn slots_that_are_all_skipped_score_nothing() {
    with_kernels(|_, kernels| {
        for skip_newest in [20, 32] {
            assert_eq!(scores(kernels, 20, skip_newest), [0.0; 2 * 3 * 20], "{skip_newest}");
        }
    });
}

#[test]
fn a_device_without_room_to_grow_goes_on_as_it_was() {
    with_kernels(|fake, kernels| {
        let cache = cache(kernels);
        let mut sequence = cache.sequence();
        step(&cache, &mut sequence, 2, f32::NAN).unwrap();
        assert_eq!(cache.saturated().unwrap(), 2);
        let mut other = cache.sequence();
        let layer = cache.shape().layer(0).clone();
        let context = kernels.context();
        let buffer = DeviceBuffer::new(context, 4 * 40 * layer.q_row()).unwrap();
        let mut out = DeviceBuffer::new(context, 4 * 40 * layer.q_row()).unwrap();
        let rows = |width| DeviceRows::of(&buffer, Element::F32, [40, width]).unwrap();
        let mut failing = cache.step([(&mut other, 40)]).unwrap();
        fake.fail("cuMemAlloc_v2", 2);
        let (q, k, v) = (rows(layer.q_row()), rows(layer.k_row()), rows(layer.v_row()));
        let out = DeviceRowsMut::of(&mut out, Element::F32, [40, layer.out_row()]).unwrap();
        let error = failing.attend(0, q, k, v, out).unwrap_err().to_string();
        assert!(error.contains("bytes of device memory were not granted"), "{error}");
        fake.fail("", 0);
        drop(failing);
        step(&cache, &mut sequence, 1, 1.0).unwrap();
        assert_eq!(cache.saturated().unwrap(), 2, "counted once");
        step(&cache, &mut sequence, 40, f32::INFINITY).unwrap();
        assert_eq!(cache.saturated().unwrap(), 4);
    });
}

#[test]
fn heads_wider_than_the_kernels_take_are_refused() {
    with_kernels(|_, kernels| {
        let stream = Arc::new(Stream::new(kernels.context()).unwrap());
        let on_device = |dim| {
            let config = CacheConfig::new(CacheShape::new(1, 1, 1, dim).unwrap(), 64);
            KvCache::on_device(&config, Arc::clone(kernels), Arc::clone(&stream))
        };
        assert!(on_device(256).is_ok());
        let error = on_device(272).unwrap_err();
        assert_eq!(error, CacheError::Unsupported("heads of more than 256 channels"));
    });
}

/// Rows at any address: what is refused is not read.
fn apart<'a>(context: &'a Context, width: usize, stride: usize) -> DeviceRows<'a> {
    // SAFETY: refused before anything is queued.
    unsafe { DeviceRows::from_raw(context, 1 << 20, Element::F32, [2, width], stride) }.unwrap()
}

#[test]
fn rows_further_apart_than_kernels_count_are_refused() {
    with_kernels(|fake, kernels| {
        let (cache, context) = (cache(kernels), context(fake));
        let layer = cache.shape().layer(0).clone();
        let widths = [layer.q_row(), layer.k_row(), layer.v_row(), layer.out_row()];
        for (which, what) in ["q", "k", "v"].into_iter().enumerate() {
            let mut strides = widths;
            strides[which] = 1 << 32;
            strides[3] = strides[0];
            let mut sequence = cache.sequence();
            let mut step = cache.step([(&mut sequence, 2)]).unwrap();
            let [q, k, v] = [0, 1, 2].map(|i| apart(&context, widths[i], strides[i]));
            let shape = [2, widths[3]];
            // SAFETY: as above.
            let out = unsafe {
                DeviceRowsMut::from_raw(&context, 1 << 20, Element::F32, shape, strides[3])
            };
            let error = step.attend(0, q, k, v, out.unwrap()).unwrap_err();
            let problem = "its rows are further apart than 32 bits count";
            assert_eq!(error, CacheError::BadTensor { what, problem });
        }
    });
}
