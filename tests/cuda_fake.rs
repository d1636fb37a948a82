//! The CUDA side against a driver in host memory: everything but the kernels' own code.
#![cfg(unix)]

#[path = "cuda_fake/caches.rs"]
mod caches;
#[path = "cuda_support/compiler.rs"]
mod compiler;
#[path = "cuda_support/emulate.rs"]
mod emulate;
#[path = "cuda_support/engine.rs"]
mod engine;
#[path = "cuda_support/fake.rs"]
mod fake;
#[path = "cuda_support/memory.rs"]
mod memory;
#[path = "cuda_fake/refusals.rs"]
mod refusals;
#[path = "common/skipped.rs"]
mod skipped;

use std::sync::Arc;

use compiler::nvrtc;
use emulate::{COMPILED, Compiled, LAUNCHES};
use fake::Fake;
use headwise::{
    base::LayerShape,
    cuda::{
        CudaError, DeviceInfo, Staging,
        driver::{Context, DeviceBuffer, Driver, Event, Module, Stream},
    },
    device::{
        CudaStore, Kernels,
        attention::{Appender, NO_SLOT, NewRows},
        eviction::SlotAddresses,
        kernels::Specialisation,
    },
    format::{PageFormat, PageLayout, SlotFormat},
    measure::verify::{AttentionCase, attention_errors, store_agrees_with_the_host},
    store::{HostStore, PageStore, Rows, StoreError, TablePages},
};

fn context(fake: &Fake) -> Context {
    Context::new(&fake.open().unwrap(), 0).unwrap()
}

/// Every handle and allocation is given back.
fn without_leaks(fake: &Fake, test: impl FnOnce(&Context)) {
    let context = context(fake);
    test(&context);
    drop(context);
    assert_eq!(fake.live(), 0, "handles were leaked");
}

#[test]
fn devices_are_listed() {
    let Some(fake) = Fake::new() else { return };
    fake.set("devices", 2);
    let driver = fake.open().unwrap();
    assert_eq!(driver.version().to_string(), "13.0");
    let info = DeviceInfo::of(&driver, 1).unwrap();
    assert_eq!((info.name.as_str(), info.arch.to_string()), ("Fake 1", "sm_90".to_owned()));
    assert_eq!((info.multiprocessors, info.memory_bytes), (4, 1 << 30));
    let error = DeviceInfo::of(&driver, 2).unwrap_err();
    assert_eq!(error.to_string(), "there is no CUDA device 2, only 2");
    let error = Context::new(&driver, usize::MAX).unwrap_err();
    assert_eq!(error, CudaError::NoSuchDevice { ordinal: usize::MAX, devices: 2 });
}

#[test]
fn drivers_and_devices_that_do_not_do_say_why() {
    let Some(fake) = Fake::new() else { return };
    fake.set("devices", 0);
    assert_eq!(fake.open().unwrap_err().to_string(), "the CUDA driver sees no device");
    fake.set("devices", 1);
    fake.set("version", 11_080);
    let error = fake.open().unwrap_err();
    assert_eq!(error.to_string(), "the CUDA driver is of version 11.8, older than 12.0");
    fake.set("version", 13_000);
    fake.set("arch", 75);
    let error = Context::new(&fake.open().unwrap(), 0).unwrap_err();
    assert_eq!(error.to_string(), "device Fake 0 is sm_75; the kernels need sm_80 or newer");
    fake.fail("cuInit", 999);
    let error = fake.open().unwrap_err();
    assert_eq!(error.to_string(), "cuInit failed with code 999 (unknown)");
}

#[test]
fn memory_that_is_not_granted_says_how_much_is_free() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let stream = Arc::new(Stream::new(context).unwrap());
        fake.fail("cuMemAlloc_v2", 2);
        let error = DeviceBuffer::new(context, 1 << 40).unwrap_err().to_string();
        let text = "1099511627776 bytes of device memory were not granted, 12345 are free";
        assert_eq!(error, text);
        let error = CudaStore::new(Arc::clone(&stream), 4, 1024).unwrap_err();
        assert!(matches!(error, StoreError::OutOfMemory { bytes: 4096, .. }), "{error}");
        fake.fail("cuMemHostAlloc", 2);
        let error = CudaStore::new(stream, 4, 1024).unwrap_err().to_string();
        assert!(error.contains("bytes of pinned host memory were not granted"), "{error}");
    });
}

/// Whatever call fails, the store returns an error that names it, and nothing is leaked.
#[test]
fn a_failing_call_is_named() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let stream = Arc::new(Stream::new(context).unwrap());
        let mut store = CudaStore::new(stream, 4, 1024).unwrap();
        let layout = PageLayout::new(PageFormat::default(), 16, 1024).unwrap();
        let table = TablePages { pages: &[2], layout: &layout };
        let mut rows = [[0f32; 16]; 2];
        for call in [
            "cuCtxSetCurrent",
            "cuMemcpyHtoDAsync_v2",
            "cuEventRecord",
            "cuMemcpyDtoHAsync_v2",
            "cuEventSynchronize",
        ] {
            fake.fail(call, 700);
            let [k, v] = &mut rows;
            let dense = Rows::dense(&[1.0; 16], 16);
            let result =
                store.append(table, 0, dense, dense).and_then(|()| store.read(table, 0, k, v));
            let text = format!(
                "page memory on the device: {call} failed with code 700 (CUDA_ERROR_ILLEGAL_ADDRESS)"
            );
            assert_eq!(result.unwrap_err().to_string(), text);
            fake.fail("", 0);
        }
        let [k, v] = &mut rows;
        store.append(table, 0, Rows::dense(&[2.0; 16], 16), Rows::dense(&[3.0; 16], 16)).unwrap();
        store.read(table, 0, k, v).unwrap();
        assert_eq!((k, v), (&mut [2.0; 16], &mut [3.0; 16]));
    });
}

#[test]
fn pages_survive_every_operation() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        (0..12).for_each(|seed| store_agrees_with_the_host(context, None, seed).unwrap());
    });
}

#[test]
fn an_engines_own_memory_and_stream_stay_its_own() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let memory = DeviceBuffer::new(context, 4096).unwrap();
        // SAFETY: null is the default stream; the memory outlives the store.
        let (stream, store) = unsafe {
            let stream = Arc::new(Stream::from_raw(context, std::ptr::null_mut()));
            (Arc::clone(&stream), CudaStore::from_raw(stream, memory.address(), 4, 1024))
        };
        let mut store = store.unwrap();
        store.write_pages(&[1], &[7; 1024]).unwrap();
        drop(store);
        let address = memory.address();
        assert_eq!(fake.allocation(address + 5), Some((address, 4096)), "still the engine's");
        let mut staging = Staging::new(context, 2, 4096).unwrap();
        let mut bytes = [0; 1024];
        staging
            .download(&stream, &memory, std::slice::from_ref(&(1024..2048)), &mut bytes)
            .unwrap();
        assert_eq!(bytes, [7; 1024]);
        // SAFETY: refused before it is used.
        let error = unsafe { CudaStore::from_raw(stream, memory.address() + 64, 1, 1024) };
        assert!(matches!(error.unwrap_err(), StoreError::BadSize { .. }));
    });
}

#[test]
fn staging_mirror_and_fence_wait_for_what_they_must() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        (0..20).for_each(|seed| memory::staging_delivers(context, seed));
        memory::staging_serves_two_streams(context);
        (0..5).for_each(|seed| memory::mirror_follows(context, seed));
        memory::fence_retires_in_order(context);
        let stream = Stream::new(context).unwrap();
        let (start, end) = (Event::timed(context).unwrap(), Event::timed(context).unwrap());
        start.record(&stream).unwrap();
        end.record(&stream).unwrap();
        stream.wait(&start).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(end.since(&start).unwrap().as_micros(), 1500);
    });
}

#[test]
fn attention_plans_and_launches() {
    let Some(fake) = Fake::new() else { return };
    let Some(nvrtc) = nvrtc() else { return };
    fake.on_launch(emulate::on_launch);
    without_leaks(&fake, |context| {
        let kernels = Arc::new(Kernels::new(context, nvrtc, None));
        let i8 = PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 };
        for (seed, (format, kv_heads, group)) in
            [(PageFormat::default(), 3, 4), (i8, 2, 1), (PageFormat::both(SlotFormat::F32), 2, 3)]
                .into_iter()
                .enumerate()
        {
            let layer = LayerShape::new(kv_heads, kv_heads * group, 64).unwrap();
            let layout = PageLayout::new(format, 64, 8192).unwrap();
            COMPILED.set(Some(Compiled { layout, group }));
            LAUNCHES.take();
            let case = AttentionCase {
                layer: &layer,
                formats: &[format],
                longest: 2500,
                seed: seed as u64,
            };
            let errors = attention_errors(&kernels, &case).unwrap();
            assert!(errors.within(1e-3), "{format}: {errors:?}");
            let names: Vec<String> = LAUNCHES.take().into_iter().map(|(name, _)| name).collect();
            for kernel in ["decode", "prefill", "score"] {
                assert!(names.contains(&format!("headwise_{kernel}")), "{kernel} in {names:?}");
            }
        }
    });
}

#[test]
fn an_engines_decode_loop_is_that_of_the_reference() {
    let Some(fake) = Fake::new() else { return };
    let Some(nvrtc) = nvrtc() else { return };
    fake.on_launch(emulate::on_launch);
    without_leaks(&fake, |context| {
        let kernels = Arc::new(Kernels::new(context, nvrtc, None));
        let layer = LayerShape::new(2, 6, 64).unwrap();
        let layout = PageLayout::new(PageFormat::both(SlotFormat::I8), 64, 4096).unwrap();
        COMPILED.set(Some(Compiled { layout, group: 3 }));
        let lengths = [[2100, 1], [2101, 2], [20, 3], [0, 40], [1, 41]];
        engine::decode_loop_agrees(&kernels, layout, &layer, &lengths, 1e-3);
    });
}

/// Contexts retained one by one are the device's one context.
#[test]
fn a_device_has_one_context() {
    let Some(fake) = Fake::new() else { return };
    fake.set("devices", 2);
    let driver = fake.open().unwrap();
    let [a, b, other] = [0, 0, 1].map(|ordinal| Context::new(&driver, ordinal).unwrap());
    assert!(a.same(&b) && a.same(&a.clone()) && !a.same(&other));
}

#[test]
fn a_launch_that_fails_on_the_device_shows() {
    let Some(fake) = Fake::new() else { return };
    let Some(nvrtc) = nvrtc() else { return };
    fake.on_launch(emulate::on_launch);
    let context = context(&fake);
    let stream = Stream::new(&context).unwrap();
    let kernels = Kernels::new(&context, nvrtc, None);
    let layout = PageLayout::new(PageFormat::default(), 64, 8192).unwrap();
    let specialisation = Specialisation::new(layout, 1);
    let mut staging = Staging::new(&context, 2, 64).unwrap();
    let mut appender = Appender::new(&kernels, &specialisation, 4, &stream).unwrap();
    appender.plan(&[NO_SLOT], &[], &mut staging, &stream).unwrap();
    let error = appender.plan(&[0; 5], &[], &mut staging, &stream).unwrap_err();
    assert_eq!(error.to_string(), "5 heads or rows are more than the 4 that buffers were made for");
    let error = appender.plan(&[0; 3], &[0; 2], &mut staging, &stream).unwrap_err();
    assert_eq!(error.to_string(), "positions of rows: 2, expected 3");
    COMPILED.set(None);
    let rows = NewRows { keys: 0, values: 0, key_stride: 0, value_stride: 0 };
    // SAFETY: the fake fails the launch before it looks at any address.
    unsafe { appender.launch(0, &rows, SlotAddresses::default(), &stream) }.unwrap();
    let data = SlotAddresses { scores: 0, positions: 256, stride: 1 };
    // SAFETY: refused: the plan has no positions.
    let error = unsafe { appender.launch(0, &rows, data, &stream) }.unwrap_err();
    assert_eq!(error.to_string(), "positions of rows: 0, expected 1");
    let error = stream.synchronize().unwrap_err().to_string();
    assert_eq!(error, "cuStreamSynchronize failed with code 700 (CUDA_ERROR_ILLEGAL_ADDRESS)");
}

/// Rows on the device, strided as an engine has them, go where the slots say.
#[test]
fn appended_rows_are_those_of_the_host_store() {
    let Some(fake) = Fake::new() else { return };
    let Some(nvrtc) = nvrtc() else { return };
    fake.on_launch(emulate::on_launch);
    without_leaks(&fake, |context| {
        let stream = Arc::new(Stream::new(context).unwrap());
        let kernels = Kernels::new(context, nvrtc, None);
        let layout = PageLayout::new(PageFormat::both(SlotFormat::I8), 32, 1024).unwrap();
        COMPILED.set(Some(Compiled { layout, group: 1 }));
        let mut staging = Staging::new(context, 2, 256).unwrap();
        let specialisation = Specialisation::new(layout, 1);
        let mut appender = Appender::new(&kernels, &specialisation, 8, &stream).unwrap();
        let store = CudaStore::new(Arc::clone(&stream), 3, 1024).unwrap();
        let mut host = HostStore::new(3, 1024).unwrap();
        // K and V of three rows, interleaved: K 32, V 32, 8 of something else.
        let values: Vec<f32> = (0..3 * 72).map(|i| (i % 50) as f32 - 20.0).collect();
        let mut rows = DeviceBuffer::new(context, 4 * values.len()).unwrap();
        staging.upload(&stream, &mut rows, [(0, bytemuck::cast_slice(&values))]).unwrap();
        let slots = [2 * layout.slots as u64 + 3, NO_SLOT, 1];
        appender.plan(&slots, &[], &mut staging, &stream).unwrap();
        let address = rows.address();
        let new =
            NewRows { keys: address, values: address + 128, key_stride: 72, value_stride: 72 };
        let data = SlotAddresses::default();
        // SAFETY: the slots are in the arena, the rows in their buffer.
        unsafe { appender.launch(store.address(), &new, data, &stream) }.unwrap();
        for (row, page, slot) in [(0, 2, 3), (2, 0, 1)] {
            let table = TablePages { pages: &[page], layout: &layout };
            let at = row * 72;
            let (k, v) = (&values[at..at + 32], &values[at + 32..at + 64]);
            host.append(table, slot, Rows::dense(k, 32), Rows::dense(v, 32)).unwrap();
        }
        let mut bytes = [0; 3 * 1024];
        store.read_pages(&[0, 1, 2], &mut bytes).unwrap();
        assert!(bytes == host.bytes());
    });
}

#[test]
fn modules_say_what_they_lack() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let stream = Stream::new(context).unwrap();
        let ptx =
            ".visible .global .align 4 .u32 answer = 42;\n.visible .entry k(\n.param .u64 a\n)\n";
        let module = Module::new(context, ptx).unwrap();
        assert_eq!(module.global::<u32>("answer", &stream).unwrap(), 42);
        let error = module.global::<u64>("answer", &stream).unwrap_err();
        assert!(matches!(error, CudaError::OutOfBounds { len: 4, .. }), "{error}");
        let error = module.global::<u32>("answers", &stream).unwrap_err().to_string();
        assert_eq!(error, "cuModuleGetGlobal_v2 failed with code 500 (unknown)");
        assert!(module.kernel("k", 0).is_ok());
        assert!(module.kernel("kk", 0).is_err());
        let error = module.kernel("k", 1 << 20).unwrap_err().to_string();
        assert!(error.starts_with("cuFuncSetAttribute failed"), "{error}");
        fake.fail("cuModuleLoadData", 222);
        let error = Module::new(context, ptx).unwrap_err().to_string();
        let text =
            "the driver of CUDA 13.0 does not take the PTX of this NVRTC: use NVRTC 13.0 or older";
        assert_eq!(error, text);
        fake.fail("", 0);
        assert_eq!(
            Module::new(context, "a\0b").unwrap_err().to_string(),
            "the PTX contains a zero byte"
        );
    });
}

#[test]
fn a_file_that_is_no_driver_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libcuda.so");
    std::fs::write(&path, "not a library").unwrap();
    // SAFETY: no code of the file is called: it does not open.
    let error = unsafe { Driver::open_at(&path) }.unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot use {} as the CUDA driver: ", path.display())));
}
