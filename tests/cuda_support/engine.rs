//! An engine's decode loop as it would be written: the planner's tables, mirrored; rows, queries and
//! results on the device; one stream.

use std::sync::Arc;

use headwise::{
    attend::{Attention, Batch, Head, Output, Reference, Span},
    base::LayerShape,
    cuda::{
        Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{
        CudaStore, Kernels, StepFence, TableMirror,
        attention::{Appender, DecodeHead, Decoder, NewRows, Scoring, Tensors},
        eviction::SlotData,
        kernels::Specialisation,
    },
    evict::Score,
    format::PageLayout,
    measure::verify::{Noise, largest_error, row_error},
    plan::{BlockManager, Sequence, TablePlan},
    store::{HostStore, PageStore, Rows, TablePages},
};

/// Two sequences grow and shrink; after each step the device's attention is the reference's.
///
/// `lengths` are the tokens of both sequences in each step; a length below the last one truncates.
pub fn decode_loop_agrees(
    kernels: &Arc<Kernels>,
    layout: PageLayout,
    layer: &LayerShape,
    lengths: &[[usize; 2]],
    tolerance: f32,
) {
    const PAGES: usize = 400;
    let (heads, group, dim) = (layer.kv_heads(), layer.group(), layout.channels.k);
    let mut noise = Noise::new(lengths.len() as u64);
    let context = kernels.context();
    let stream = Arc::new(Stream::new(context).unwrap());
    let mut staging = Staging::new(context, 3, 1 << 16).unwrap();
    let mut device = CudaStore::new(Arc::clone(&stream), PAGES, layout.page_bytes).unwrap();
    let mut host = HostStore::new(PAGES, layout.page_bytes).unwrap();
    // What slots do not have yet must not be taken for data.
    let mut data = SlotData::new(context, PAGES, layout.slots).unwrap();
    let garbage = PAGES * layout.slots;
    data.upload(&vec![0xa5a5; garbage], &vec![0xa5a5_a5a5; garbage], &mut staging, &stream)
        .unwrap();
    let manager = BlockManager::new(PAGES).unwrap();
    let plan = Arc::new(TablePlan::new(vec![layout.slots; heads]).unwrap());
    let mut sequences = [(); 2].map(|()| manager.sequence(Arc::clone(&plan)));
    let most_rows = lengths.iter().flatten().max().unwrap() * heads;
    let mut mirror = TableMirror::new(context, 2 * heads, PAGES as u32).unwrap();
    let mut fence = StepFence::new(context);
    let specialisation = Specialisation::new(layout, group);
    let mut decoder = Decoder::new(kernels, specialisation, 2 * heads, &stream).unwrap();
    let mut appender = Appender::new(kernels, &specialisation, most_rows, &stream).unwrap();
    let buffer = |values: usize| DeviceBuffer::new(context, 4 * values).unwrap();
    let mut rows = [buffer(most_rows * dim), buffer(most_rows * dim)];
    let results = 2 * layer.query_heads();
    let (mut queries, out, lse) = (buffer(results * dim), buffer(results * dim), buffer(results));
    let mut addresses = Vec::new();

    for step in lengths {
        for (s, (sequence, &tokens)) in sequences.iter_mut().zip(step).enumerate() {
            if tokens < sequence.tokens() {
                let freed = manager.truncate(sequence, tokens).unwrap().begin_moves().commit();
                device.poison(&freed).unwrap();
                host.poison(&freed).unwrap();
            }
            let first_token = sequence.tokens();
            let new = tokens - first_token;
            manager.reserve([(&mut *sequence, new)]).unwrap().commit();
            // Rows as a projection leaves them: token after token, head after head.
            let [k, v] = [(); 2].map(|()| noise.values(new * heads * dim));
            let mut slots = vec![0u64; new * heads];
            for (h, table) in sequence.heads().enumerate() {
                mirror.set(s * heads + h, table.pages).unwrap();
                let first = table.slots - new;
                for token in 0..new {
                    let (page, slot) =
                        ((first + token) / layout.slots, (first + token) % layout.slots);
                    slots[token * heads + h] =
                        u64::from(table.pages[page]) * layout.slots as u64 + slot as u64;
                }
                let strided = |values| Rows { values, stride: heads * dim, count: new };
                let table = TablePages { pages: table.pages, layout: &layout };
                let (k, v) = (&k[(h * dim).min(k.len())..], &v[(h * dim).min(v.len())..]);
                host.append(table, first, strided(k), strided(v)).unwrap();
            }
            for (buffer, values) in rows.iter_mut().zip([&k, &v]) {
                staging.upload(&stream, buffer, [(0, bytemuck::cast_slice(values))]).unwrap();
            }
            let positions = first_token..first_token + new;
            let positions: Vec<u32> =
                positions.flat_map(|p| std::iter::repeat_n(p as u32, heads)).collect();
            appender.plan(&slots, &positions, &mut staging, &stream).unwrap();
            let stride = dim as u32;
            let [keys, values] = [rows[0].address(), rows[1].address()];
            let new = NewRows { keys, values, key_stride: stride, value_stride: stride };
            // SAFETY: the slots are the planner's, in this arena; the buffers hold the rows.
            unsafe { appender.launch(device.address(), &new, data.addresses(), &stream) }.unwrap();
        }
        for sequence in &sequences {
            for table in sequence.heads() {
                let (scores, positions) = data
                    .download(table.pages, layout.slots, table.slots, &mut staging, &stream)
                    .unwrap();
                assert!(scores.iter().all(|&score| score == Score::ZERO), "{step:?}");
                let known = (0..table.slots).map(|slot| table.position(slot) as u32);
                assert!(positions.iter().copied().eq(known), "{step:?}: {positions:?}");
            }
        }
        mirror.sync(&mut staging, &stream).unwrap();
        let tables = |s: usize, sequence: &Sequence| {
            let slots: Vec<u32> = sequence.heads().map(|table| table.slots as u32).collect();
            let mirror = &mirror;
            (0..heads).map(move |h| DecodeHead {
                query: (s * layer.query_heads() + h * group) as u32,
                pages: mirror.extent(s * heads + h).unwrap().offset,
                slots: slots[h],
                logits: 0,
            })
        };
        let work: Vec<DecodeHead> = sequences
            .iter()
            .enumerate()
            .flat_map(|(s, q)| tables(s, q).collect::<Vec<_>>())
            .collect();
        decoder.plan(&work, &mut staging, &stream).unwrap();
        let q: Vec<f32> = noise.values(results * dim).iter().map(|x| 3.0 * x).collect();
        staging.upload(&stream, &mut queries, [(0, bytemuck::cast_slice(&q))]).unwrap();
        let tensors = Tensors {
            pages: device.address(),
            page_ids: mirror.address(),
            queries: queries.address(),
            out: out.address(),
            lse: lse.address(),
            logits: 0,
            scoring: Scoring::scaled(1.0 / (dim as f32).sqrt()),
        };
        addresses.push((tensors.page_ids, decoder.merge_blocks()));
        // SAFETY: the plan's page ids are in the mirror and the arena; all buffers have their rows.
        unsafe { decoder.launch(&tensors, &stream) }.unwrap();
        fence.record(manager.end_step(), &stream).unwrap();
        let (mut got_out, mut got_lse) = (vec![0f32; results * dim], vec![0f32; results]);
        for (buffer, values) in [(&out, &mut got_out), (&lse, &mut got_lse)] {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
            let range = 0..bytes.len();
            staging.download(&stream, buffer, std::slice::from_ref(&range), bytes).unwrap();
        }
        if let Some(step) = fence.wait().unwrap() {
            manager.retire(step);
        }

        let heads_of = |sequence: &'_ Sequence| -> Vec<(Vec<u32>, usize)> {
            sequence.heads().map(|table| (table.pages.to_vec(), table.slots)).collect()
        };
        let flat: Vec<(Vec<u32>, usize)> = sequences.iter().flat_map(heads_of).collect();
        let flat: Vec<Head<'_>> = flat
            .iter()
            .map(|(pages, slots)| Head { pages, slots: *slots, layout: &layout })
            .collect();
        let spans: Vec<Span<'_>> =
            flat.chunks_exact(heads).map(|heads| Span { tokens: 1, heads }).collect();
        let (mut expected_out, mut expected_lse) = (vec![0f32; results * dim], vec![0f32; results]);
        let output = Output { out: &mut expected_out, lse: &mut expected_lse, scores: None };
        Reference.attend(&host, &Batch { layer, spans: &spans, q: &q }, output).unwrap();
        let errors =
            [row_error(&got_out, &expected_out, dim), largest_error(&got_lse, &expected_lse)];
        assert!(errors.iter().all(|&error| error <= tolerance), "{step:?}: {errors:?}");
    }
    // What a captured graph has fixed: addresses never move, the merge's blocks only grow.
    assert!(addresses.windows(2).all(|pair| pair[0].0 == pair[1].0 && pair[0].1 <= pair[1].1));
    assert!(addresses.last().unwrap().1 > 0, "no head was cut: the merge was not tested");
}
