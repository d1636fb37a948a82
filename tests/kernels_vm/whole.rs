//! The whole CUDA side without a GPU: plans, copies and launches on a driver in host memory, whose
//! launches run the kernels' real PTX in the interpreter.
use std::{cell::RefCell, collections::HashMap, ffi::c_int, rc::Rc, slice, sync::Arc};

use crate::{
    compiler::nvrtc,
    door, engine,
    fake::{Fake, Launch, RawLaunch},
    ptxvm::{Arg, DevicePtr, Machine, Module},
};
use headwise::{
    base::LayerShape,
    cuda::{
        KernelCache,
        driver::{Context, Stream},
    },
    device::{CudaStore, Kernels},
    format::{PageFormat, PageLayout, SlotFormat},
    measure::verify::{
        AttentionCase, append_agrees_with_the_host, attention_errors, store_agrees_with_the_host,
    },
    store::PageStore,
};

thread_local! {
    /// The driver whose launches run on this thread.
    static FAKE: RefCell<Option<Rc<Fake>>> = const { RefCell::new(None) };
    /// Parsed PTX, by its text's address: modules are not unloaded while a test runs.
    static MODULES: RefCell<HashMap<usize, Rc<Module>>> = RefCell::default();
    /// Kernels that ran.
    static RAN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "C" fn on_launch(raw: *const RawLaunch) -> c_int {
    // SAFETY: the driver calls with a launch of its own.
    let launch = unsafe { Launch::new(raw) };
    match run(&launch) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}: {error}", launch.name);
            700
        }
    }
}

fn run(launch: &Launch<'_>) -> Result<(), String> {
    let fake = FAKE.with_borrow(Clone::clone).ok_or("no driver")?;
    let module = MODULES.with_borrow_mut(|modules| -> Result<_, String> {
        let key = launch.ptx.as_ptr() as usize;
        if let Some(module) = modules.get(&key) {
            return Ok(Rc::clone(module));
        }
        let parsed = Rc::new(Module::parse(launch.ptx).map_err(|e| format!("{e:?}"))?);
        modules.insert(key, Rc::clone(&parsed));
        Ok(parsed)
    })?;
    // Addresses are arguments and nothing else: memory holds indices alone. Each allocation that an
    // argument points into is a buffer of the interpreter, which bounds every access to it.
    let mut machine = Machine::new(launch.arguments.len() as u64);
    let mut buffers: HashMap<u64, (DevicePtr, usize)> = HashMap::new();
    let mut arguments = Vec::new();
    for (&value, &size) in launch.arguments.iter().zip(launch.sizes) {
        if size == 4 {
            arguments.push(Arg::u32(value as u32));
            continue;
        }
        let Some((start, bytes)) = fake.allocation(value) else {
            arguments.push(Arg::bytes(&value.to_le_bytes()));
            continue;
        };
        // SAFETY: the driver's device memory is host memory, and a launch runs alone.
        let memory = unsafe { slice::from_raw_parts(start as *const u8, bytes) };
        let (buffer, _) = *buffers
            .entry(start)
            .or_insert_with(|| (machine.alloc_init("allocation", memory), bytes));
        arguments.push(Arg::ptr(buffer.offset(value - start)));
    }
    let block = [launch.threads, 1, 1];
    machine
        .launch(&module, launch.name, launch.grid, block, launch.shared, &arguments)
        .map_err(|e| format!("{e:?}"))?;
    for (start, (buffer, bytes)) in buffers {
        let content = machine.read(buffer).map_err(|e| format!("{e:?}"))?;
        // SAFETY: as above; the interpreter's buffer has the allocation's size.
        unsafe { slice::from_raw_parts_mut(start as *mut u8, bytes) }.copy_from_slice(content);
    }
    RAN.with_borrow_mut(|ran| ran.push(launch.name.to_owned()));
    Ok(())
}

/// Kernels that ran on this thread since the last call.
pub fn ran() -> Vec<String> {
    RAN.take()
}

/// A device that runs PTX; `None`, loudly, where there is no C compiler or no NVRTC.
pub fn device(arch: c_int, test: impl FnOnce(&Fake, &Context, &Arc<Kernels>)) {
    let Some(fake) = Fake::new() else { return };
    fake.set("arch", arch);
    let Some(nvrtc) = nvrtc() else { return };
    fake.on_launch(on_launch);
    let fake = Rc::new(fake);
    FAKE.set(Some(Rc::clone(&fake)));
    let context = Context::new(&fake.open().unwrap(), 0).unwrap();
    // Tests of one format share their kernels.
    let cache = KernelCache::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels"));
    let kernels = Arc::new(Kernels::new(&context, nvrtc, Some(cache)));
    test(&fake, &context, &kernels);
    drop((context, kernels));
    assert_eq!(fake.live(), 0, "handles were leaked");
}

#[test]
fn attention_over_mixed_formats_is_that_of_the_reference() {
    device(90, |_, _, kernels| {
        let formats = [
            PageFormat::default(),
            PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 },
            PageFormat::both(SlotFormat::F32),
        ];
        let layer = LayerShape::new(2, 6, 64).unwrap();
        // Longer than what one block scores.
        let case = AttentionCase { layer: &layer, formats: &formats, longest: 1100, seed: 5 };
        let errors = attention_errors(kernels, &case).unwrap();
        assert!(errors.within(2e-3), "{errors:?}");
        let ran = RAN.take();
        for kernel in ["decode", "prefill", "score"] {
            assert!(ran.contains(&format!("headwise_{kernel}")), "{kernel} in {ran:?}");
        }
    });
}

#[test]
fn rows_are_encoded_as_on_the_host() {
    device(90, |_, _, kernels| {
        for format in [PageFormat::default(), PageFormat::both(SlotFormat::I8)] {
            append_agrees_with_the_host(kernels, format, 80, 3).unwrap();
        }
    });
}

#[test]
fn pages_survive_moves_and_copies_by_kernels() {
    device(80, |fake, context, kernels| {
        (0..2).for_each(|seed| store_agrees_with_the_host(context, Some(kernels), seed).unwrap());
        let ran = RAN.take();
        assert!(ran.iter().any(|name| name == "headwise_compact"), "{ran:?}");
        assert!(ran.iter().any(|name| name == "headwise_copy"), "{ran:?}");
        fake.fail("cuLaunchKernel", 2);
        let stream = Arc::new(Stream::new(context).unwrap());
        let store = CudaStore::new(stream, 6, 1024).unwrap();
        let mut store = store.with_kernels(Arc::clone(kernels)).unwrap();
        let error = store.copy_pages(&[(0, 1), (2, 3)]).unwrap_err().to_string();
        let text = "page memory on the device: cuLaunchKernel failed with code 2 (CUDA_ERROR_OUT_OF_MEMORY)";
        assert_eq!(error, text);
    });
}

/// Ten thousand random verbs in all, in four tests that run side by side.
fn a_cache_is_the_same_in_both_memories(seed: u64) {
    device(90, |_, _, kernels| {
        door::both_memories_agree(kernels, 2500, seed);
        let ran = RAN.take();
        for kernel in ["append", "decode", "prefill", "compact", "copy"] {
            assert!(ran.contains(&format!("headwise_{kernel}")), "{kernel} did not run");
        }
    });
}

#[test]
fn a_cache_is_the_same_in_both_memories_0() {
    a_cache_is_the_same_in_both_memories(0);
}

#[test]
fn a_cache_is_the_same_in_both_memories_1() {
    a_cache_is_the_same_in_both_memories(1);
}

#[test]
fn a_cache_is_the_same_in_both_memories_2() {
    a_cache_is_the_same_in_both_memories(2);
}

#[test]
fn a_cache_is_the_same_in_both_memories_3() {
    a_cache_is_the_same_in_both_memories(3);
}

#[test]
fn an_engines_decode_loop_is_that_of_the_reference() {
    device(90, |_, _, kernels| {
        let layer = LayerShape::new(2, 6, 64).unwrap();
        let k8v16 = PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 };
        for format in [PageFormat::both(SlotFormat::F32), k8v16] {
            let layout = PageLayout::new(format, 64, 4096).unwrap();
            let lengths = [[1100, 1], [1101, 2], [20, 3], [0, 40], [1, 41]];
            engine::decode_loop_agrees(kernels, layout, &layer, &lengths, 2e-3);
        }
        let ran = RAN.take();
        for kernel in ["append", "decode", "merge"] {
            assert!(ran.contains(&format!("headwise_{kernel}")), "{kernel} in {ran:?}");
        }
    });
}
