//! The CUDA side against a driver in host memory: everything but the kernels' own code.
#![cfg(all(feature = "cuda", unix))]

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

use std::sync::Arc;

use compiler::nvrtc;
use emulate::{COMPILED, Compiled, LAUNCHES};
use fake::Fake;
use headwise::{
    base::{CacheShape, SlotMove},
    cuda::{
        CudaError, CudaStore, Kernels, Staging,
        attention::{Appender, DecodeHead, DecodePlan, Decoder, NO_SLOT, NewRows},
        device::DeviceInfo,
        driver::{Context, DeviceBuffer, Driver, Event, Module, Stream},
        eviction::{SlotAddresses, SlotData},
        kernels::Specialisation,
        verify::{AttentionCase, attention_errors, store_agrees_with_the_host},
    },
    evict::Score,
    format::{PageFormat, PageLayout, Region, SlotFormat},
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
fn bounds_are_checked_before_anything_is_queued() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let stream = Stream::new(context).unwrap();
        let mut staging = Staging::new(context, 2, 64).unwrap();
        let mut buffer = DeviceBuffer::new(context, 100).unwrap();
        let error = staging.upload(&stream, &mut buffer, [(90, &[0; 11][..])]).unwrap_err();
        assert_eq!(error.to_string(), "bytes 90..101 are outside a buffer of 100 bytes");
        let out_of = |error| matches!(error, CudaError::OutOfBounds { .. });
        assert!(out_of(buffer.fill(50..101, 0, &stream).unwrap_err()));
        assert!(out_of(buffer.copy_within(0, 99, 2, &stream).unwrap_err()));
        assert!(out_of(buffer.copy_within(usize::MAX, 0, 2, &stream).unwrap_err()));
        let mut to = [0; 2];
        assert!(out_of(
            staging
                .download(&stream, &buffer, std::slice::from_ref(&(99..101)), &mut to)
                .unwrap_err()
        ));
        stream.synchronize().unwrap();
    });
}

/// A download that is refused, or that the driver refuses half way, leaves no copy behind that a later
/// upload's bytes could fall victim to.
#[test]
fn a_refused_download_leaves_the_ring_usable() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let stream = Stream::new(context).unwrap();
        let mut staging = Staging::new(context, 2, 64).unwrap();
        let mut buffer = DeviceBuffer::new(context, 100).unwrap();
        staging.upload(&stream, &mut buffer, [(0, &[7; 100][..])]).unwrap();
        let mut to = [0; 43];
        let error = staging.download(&stream, &buffer, &[0..32, 90..101], &mut to).unwrap_err();
        assert_eq!(error.to_string(), "bytes 90..101 are outside a buffer of 100 bytes");
        let error = staging.download(&stream, &buffer, &[0..32, 90..100], &mut to).unwrap_err();
        assert_eq!(error.to_string(), "bytes to copy to: 43, expected 42");
        staging.upload(&stream, &mut buffer, [(0, &[9; 32][..])]).unwrap();
        fake.fail("cuMemcpyDtoHAsync_v2", 700);
        assert!(staging.download(&stream, &buffer, &[0..32, 32..43], &mut to).is_err());
        fake.fail("cuEventRecord", 700);
        assert!(staging.download(&stream, &buffer, &[0..32, 32..43], &mut to).is_err());
        fake.fail("", 0);
        staging.upload(&stream, &mut buffer, [(64, &[5; 32][..])]).unwrap();
        let mut seen = [0; 100];
        staging.download(&stream, &buffer, &[0..32, 32..100], &mut seen).unwrap();
        let expected = [[9u8; 32].as_slice(), &[7; 32], &[5; 32], &[7; 4]].concat();
        assert_eq!(seen.as_slice(), expected);
    });
}

/// Scores and positions go where their pages go, and whoever names too few pages is told.
#[test]
fn slot_data_follow_pages() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let stream = Stream::new(context).unwrap();
        let mut staging = Staging::new(context, 2, 64).unwrap();
        let mut data = SlotData::new(context, 6, 5).unwrap();
        let scores: Vec<u16> = (100..110).collect();
        let positions: Vec<u32> = (200..210).collect();
        data.write(&[4, 1], &scores, &positions, &mut staging, &stream).unwrap();
        data.copy_pages(&[(4, 0), (1, 5), (5, 2)], &stream).unwrap();
        let (mut codes, mut places) = (vec![0; 10], vec![0; 10]);
        for pages in [[4, 1], [0, 5], [0, 2]] {
            data.read(&pages, &mut codes, &mut places, &mut staging, &stream).unwrap();
            assert_eq!((&codes, &places), (&scores, &positions), "{pages:?}");
        }
        let (codes, places) = data.download(&[0, 2], 4, 7, &mut staging, &stream).unwrap();
        let codes: Vec<u16> = codes.into_iter().map(Score::to_bits).collect();
        assert_eq!(codes, [100, 101, 102, 103, 105, 106, 107]);
        assert_eq!(places, [200, 201, 202, 203, 205, 206, 207]);
        let mut refused = |pages: &[u32], page_slots, slots| {
            data.download(pages, page_slots, slots, &mut staging, &stream).unwrap_err().to_string()
        };
        assert_eq!(refused(&[0, 2], 4, 9), "slots of pages: 8, expected 9");
        assert_eq!(refused(&[], 4, 1), "slots of pages: 0, expected 1");
        assert_eq!(refused(&[0], 6, 1), "slots of a page: 6, expected 5");
        assert_eq!(refused(&[6], 5, 1), "bytes 60..62 are outside a buffer of 60 bytes");
        let error = data.write(&[0], &[0; 5], &[0; 4], &mut staging, &stream).unwrap_err();
        assert_eq!(error.to_string(), "positions: 4, expected 5");
        let mut short = [0; 4];
        let error = data.read(&[0], &mut short, &mut [0; 5], &mut staging, &stream).unwrap_err();
        assert_eq!(error.to_string(), "bytes to copy to: 8, expected 10");
        assert!(data.copy_pages(&[(0, 6)], &stream).is_err());
        stream.synchronize().unwrap();
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
fn refusals_are_those_of_the_host_store() {
    let Some(fake) = Fake::new() else { return };
    let context = context(&fake);
    let stream = Arc::new(Stream::new(&context).unwrap());
    let mut device = CudaStore::new(Arc::clone(&stream), 2, 1024).unwrap();
    let mut host = HostStore::new(2, 1024).unwrap();
    let layout = PageLayout::new(PageFormat::default(), 32, 1024).unwrap();
    let other = PageLayout::new(PageFormat::default(), 32, 2048).unwrap();
    let row = [1.0; 32];
    let tables: [(&[u32], &PageLayout); 3] = [(&[2], &layout), (&[0], &layout), (&[0], &other)];
    for (pages, layout) in tables {
        let table = TablePages { pages, layout };
        for (first, k, v) in [(0, 32, 32), (layout.slots, 32, 32), (0, 31, 32), (0, 32, 0)] {
            let (k, v) = (Rows::dense(&row[..k], 32), Rows::dense(&row[..v], 32));
            if first == 0
                && pages == [0]
                && layout.page_bytes == 1024
                && k.values.len() == v.values.len()
            {
                continue;
            }
            let error = device.append(table, first, k, v).unwrap_err();
            assert_eq!(error, host.append(table, first, k, v).unwrap_err());
        }
    }
    let forged = [
        PageLayout { slots: 1000, ..layout },
        PageLayout { slots: 0, ..layout },
        PageLayout { head_dim: 0, ..layout },
        PageLayout { head_dim: usize::MAX, ..layout },
        PageLayout { head_dim: 16, ..layout },
        PageLayout { k: Region { payload: 1 << 40, ..layout.k }, ..layout },
        PageLayout { v: Region { scale_stride: 64, ..layout.v }, ..layout },
    ];
    for layout in &forged {
        let table = TablePages { pages: &[0, 1], layout };
        let moves = [SlotMove { from: 1, to: 0 }, SlotMove { from: 3, to: 2 }];
        let dense = Rows { values: &row, stride: 32, count: 0 };
        let (mut k, mut v) = ([0.0; 32], [0.0; 32]);
        for refused in [
            device.append(table, 0, dense, dense),
            device.move_slots(table, &moves),
            device.read(table, 0, &mut k, &mut v),
            device.read_keys(table, 0, &mut k),
        ] {
            let text = refused.unwrap_err().to_string();
            let rows = text.starts_with("K has ") && layout.head_dim > 32;
            assert!(rows || text.contains("a page layout that is not that of f16 pages"), "{text}");
        }
    }
    assert_eq!(device.poison(&[9]).unwrap_err(), host.poison(&[9]).unwrap_err());
    assert_eq!(device.copy_pages(&[(0, 3)]).unwrap_err(), host.copy_pages(&[(0, 3)]).unwrap_err());
    let error = device.read_pages(&[0], &mut [0; 1000]).unwrap_err();
    assert_eq!(error.to_string(), "page bytes has 1000 values, expected 1024");
    for (pages, page_bytes) in [(0, 1024), (1, 100), (usize::MAX, 1024)] {
        let error = CudaStore::new(Arc::clone(&stream), pages, page_bytes).unwrap_err();
        assert_eq!(error, StoreError::BadSize { pages, page_bytes });
    }
    let mut bytes = [1; 2048];
    device.read_pages(&[0, 1], &mut bytes).unwrap();
    assert!(bytes.iter().all(|&b| b == 0));
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
            let shape = CacheShape::new(1, kv_heads, kv_heads * group, 64).unwrap();
            let layout = PageLayout::new(format, 64, 8192).unwrap();
            COMPILED.set(Some(Compiled { layout, group }));
            LAUNCHES.take();
            let case =
                AttentionCase { shape, formats: &[format], longest: 2500, seed: seed as u64 };
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
        let shape = CacheShape::new(1, 2, 6, 64).unwrap();
        let layout = PageLayout::new(PageFormat::both(SlotFormat::I8), 64, 4096).unwrap();
        COMPILED.set(Some(Compiled { layout, group: 3 }));
        let lengths = [[2100, 1], [2101, 2], [20, 3], [0, 40], [1, 41]];
        engine::decode_loop_agrees(&kernels, layout, shape, &lengths, 1e-3);
    });
}

/// A decoder follows no plan that leads its blocks outside its buffers.
#[test]
fn plans_of_other_decoders_are_refused() {
    let Some(fake) = Fake::new() else { return };
    let Some(nvrtc) = nvrtc() else { return };
    without_leaks(&fake, |context| {
        let stream = Stream::new(context).unwrap();
        let kernels = Kernels::new(context, nvrtc, None);
        let layout = PageLayout::new(PageFormat::default(), 64, 8192).unwrap();
        let specialisation = Specialisation::new(layout, 2);
        let mut staging = Staging::new(context, 2, 4096).unwrap();
        let mut decoder = Decoder::new(&kernels, specialisation, 3, &stream).unwrap();
        let blocks = decoder.blocks();
        let heads = [4000, 100, 9].map(|slots| DecodeHead { query: 0, pages: 0, slots, logits: 0 });
        let own = DecodePlan::new(&heads, &specialisation, blocks);
        assert!(own.partials > 1 && own.merges.len() == 1, "{own:?}");
        decoder.upload(own.clone(), &mut staging, &stream).unwrap();
        let merge_blocks = decoder.merge_blocks();
        let with = |change: fn(&mut DecodePlan)| {
            let mut plan = own.clone();
            change(&mut plan);
            plan
        };
        let forged = [
            DecodePlan::new(&heads, &specialisation, blocks / 2),
            DecodePlan::new(&heads, &specialisation, 2 * blocks),
            with(|plan| plan.lists.clear()),
            with(|plan| plan.lists[1] = 1 << 20),
            with(|plan| *plan.lists.last_mut().unwrap() += 1),
            with(|plan| plan.lists[0] = 1),
            with(|plan| plan.partials = 1 << 20),
            with(|plan| plan.partials = 1),
            with(|plan| plan.items[0].partial = 1 << 20),
            with(|plan| plan.merges[0].count = u32::MAX),
            with(|plan| plan.merges = vec![plan.merges[0]; 4]),
        ];
        for plan in forged {
            let error = decoder.upload(plan, &mut staging, &stream).unwrap_err();
            assert!(matches!(error, CudaError::OtherPlan { .. }), "{error}");
        }
        assert_eq!(decoder.merge_blocks(), merge_blocks, "the last plan stays");
        let error = decoder.plan(&[heads[0]; 4], &mut staging, &stream).unwrap_err();
        assert!(matches!(error, CudaError::TooManyHeads { heads: 4, most: 3 }), "{error}");
        stream.synchronize().unwrap();
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
