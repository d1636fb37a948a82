//! A captured graph: its launches read what later plans left in buffers that never move.

use std::ptr;

use cudarc::driver::sys as cuda;
use headwise::{
    cuda::{
        Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{
        Kernels,
        attention::{DecodeHead, Decoder, Scoring, Tensors},
        kernels::Specialisation,
    },
    format::{PageFormat, PageLayout},
    measure::verify::Noise,
    store::{HostStore, PageStore, Rows, TablePages},
};

const PAGES: usize = 512;
const GROUP: usize = 4;
const DIM: usize = 64;

fn done(what: &str, code: cuda::CUresult) {
    assert_eq!(code, cuda::CUresult::CUDA_SUCCESS, "{what}");
}

/// Queues `launch` into a graph and makes it ready to run.
fn captured(stream: &Stream, launch: impl FnOnce()) -> cuda::CUgraphExec {
    let raw: cuda::CUstream = stream.as_raw().cast();
    // Other threads of this process go on allocating meanwhile.
    let mode = cuda::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let (mut graph, mut ready) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the stream and the pointers are live; nothing but the launch is queued between the first
    // two calls.
    unsafe {
        done("begin", cuda::cuStreamBeginCapture_v2(raw, mode));
        launch();
        done("end", cuda::cuStreamEndCapture(raw, &mut graph));
        done("instantiate", cuda::cuGraphInstantiateWithFlags(&mut ready, graph, 0));
        done("destroy", cuda::cuGraphDestroy(graph));
    }
    ready
}

/// One capture of decode and merge, replayed after each of several plans, gives what launches give.
pub fn a_captured_decode_follows_later_plans(kernels: &Kernels) {
    let context = kernels.context();
    let layout = PageLayout::new(PageFormat::default(), DIM, 8192).unwrap();
    let specialisation = Specialisation::new(layout, GROUP);
    let stream = Stream::new(context).unwrap();
    let mut staging = Staging::new(context, 4, 1 << 20).unwrap();
    let mut noise = Noise::new(23);
    let mut store = HostStore::new(PAGES, layout.page_bytes).unwrap();
    let ids: Vec<u32> = (0..PAGES as u32).rev().collect();
    let slots = PAGES * layout.slots;
    let (k, v) = (noise.values(slots * DIM), noise.values(slots * DIM));
    let table = TablePages { pages: &ids, layout: &layout };
    store.append(table, 0, Rows::dense(&k, DIM), Rows::dense(&v, DIM)).unwrap();
    let plans: [[u32; 3]; 3] = [[5000, 3000, 70], [4000, 4500, 1], [0, 31, 4900]];
    let rows = 3 * GROUP;
    let mut put = |bytes: &[u8]| {
        let mut buffer = DeviceBuffer::new(context, bytes.len()).unwrap();
        staging.upload(&stream, &mut buffer, [(0, bytes)]).unwrap();
        buffer
    };
    let (arena, page_ids) = (put(store.bytes()), put(bytemuck::cast_slice(&ids)));
    let queries = put(bytemuck::cast_slice(&noise.values(rows * DIM)));
    let [captured_out, launched_out] = [(); 2].map(|()| put(&vec![0xff; 4 * rows * DIM]));
    let [captured_lse, launched_lse] = [(); 2].map(|()| put(&vec![0xff; 4 * rows]));
    let tensors = |out: &DeviceBuffer, lse: &DeviceBuffer| Tensors {
        pages: arena.address(),
        page_ids: page_ids.address(),
        queries: queries.address(),
        out: out.address(),
        lse: lse.address(),
        logits: 0,
        scoring: Scoring::scaled(1.0 / (DIM as f32).sqrt()),
    };
    let heads = |slots: [u32; 3]| {
        let mut pages = 0;
        [0, 1, 2].map(|h| {
            let head = DecodeHead { query: (h * GROUP) as u32, pages, slots: slots[h], logits: 0 };
            pages += slots[h].div_ceil(layout.slots as u32);
            head
        })
    };
    let mut decoder = Decoder::new(kernels, specialisation, 3, &stream).unwrap();
    // The merge has its most blocks before they are fixed.
    for slots in plans {
        decoder.plan(&heads(slots), &mut staging, &stream).unwrap();
    }
    let merge_blocks = decoder.merge_blocks();
    let graph = captured(&stream, || {
        let tensors = tensors(&captured_out, &captured_lse);
        // SAFETY: the plan's page ids are pages of the arena; all buffers have their rows.
        unsafe { decoder.launch(&tensors, &stream) }.unwrap();
    });
    for slots in plans {
        decoder.plan(&heads(slots), &mut staging, &stream).unwrap();
        assert_eq!(decoder.merge_blocks(), merge_blocks);
        // SAFETY: graph and stream are live; every buffer that was captured is.
        done("replay", unsafe { cuda::cuGraphLaunch(graph, stream.as_raw().cast()) });
        // SAFETY: as the captured launch.
        unsafe { decoder.launch(&tensors(&launched_out, &launched_lse), &stream) }.unwrap();
        let mut get = |buffer: &DeviceBuffer| {
            let mut bytes = vec![0u8; buffer.bytes()];
            let range = 0..bytes.len();
            let range = std::slice::from_ref(&range);
            staging.download(&stream, buffer, range, &mut bytes).unwrap();
            bytes
        };
        assert!(get(&captured_out) == get(&launched_out), "{slots:?}");
        let lse = get(&captured_lse);
        assert!(lse == get(&launched_lse) && !lse.ends_with(&[0xff; 4]), "{slots:?}");
    }
    // SAFETY: nothing of it runs any more.
    done("destroy", unsafe { cuda::cuGraphExecDestroy(graph) });
}
