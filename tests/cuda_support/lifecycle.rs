//! What an engine does with a sequence whose scores and positions live on the device, real or not: a
//! prompt, its scores, a fork, swapping, and an eviction while others share its pages.

use std::sync::Arc;

use headwise::{
    attend::{Attention, Batch, Head, Output, Reduce, Reference, SlotScores, Span},
    base::{LayerShape, Positions},
    cuda::{
        Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{
        CudaStore, Kernels, TableMirror,
        attention::{
            Appender, NewRows, PrefillHead, Prefiller, Scoring, Tensors, WindowHead, WindowScorer,
        },
        eviction::{Evictor, Losing, MovedTable, PoolHead, PriceHead, SlotData, pool_scores},
        kernels::Specialisation,
    },
    evict::{Cost, HeadSlots, Policy, Score, cheapest_pages, plan},
    format::{PageFormat, PageLayout},
    measure::verify::{Noise, largest_error, row_error},
    plan::{BlockManager, HeadRewrite, HeadTable, PageCopy, Sequence, TablePlan},
    store::{HostStore, PageStore, Rows, TablePages},
};

const PAGES: usize = 48;
const HEADS: usize = 2;
const GROUP: usize = 2;
const DIM: usize = 32;
/// Tokens of the prompt: several pages and a part of one.
const PROMPT: usize = 47;
/// Query tokens that score the prompt.
const WINDOW: usize = 5;
/// What no slot has written.
const GARBAGE: (u16, u32) = (0xa5a5, 0xa5a5_a5a5);

/// Pages on the device and on the host, and the device's data of their slots.
struct Engine<'a> {
    kernels: &'a Kernels,
    stream: Arc<Stream>,
    staging: Staging,
    specialisation: Specialisation,
    device: CudaStore,
    host: HostStore,
    data: SlotData,
    mirror: TableMirror,
    noise: Noise,
}

impl Engine<'_> {
    fn layout(&self) -> PageLayout {
        self.specialisation.layout
    }

    fn put(&mut self, values: &[f32]) -> DeviceBuffer {
        let mut buffer = DeviceBuffer::new(self.kernels.context(), size_of_val(values)).unwrap();
        let bytes = bytemuck::cast_slice(values);
        self.staging.upload(&self.stream, &mut buffer, [(0, bytes)]).unwrap();
        buffer
    }

    fn get(&mut self, buffer: &DeviceBuffer) -> Vec<f32> {
        let mut values = vec![0f32; buffer.bytes() / 4];
        let range = 0..buffer.bytes();
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.staging.download(&self.stream, buffer, std::slice::from_ref(&range), bytes).unwrap();
        values
    }

    /// Rows of the newest `count` tokens, here and there.
    fn append(&mut self, sequence: &Sequence, count: usize) {
        let layout = self.layout();
        let [k, v] = [(); 2].map(|()| self.noise.values(count * HEADS * DIM));
        let first = sequence.tokens() - count;
        let (mut slots, mut positions) = (Vec::new(), Vec::new());
        for token in 0..count {
            for table in sequence.heads() {
                let at = table.slots - count + token;
                let page = u64::from(table.pages[at / layout.slots]);
                slots.push(page * layout.slots as u64 + (at % layout.slots) as u64);
                positions.push((first + token) as u32);
            }
        }
        for (h, table) in sequence.heads().enumerate() {
            let pages = TablePages { pages: table.pages, layout: &layout };
            let rows = |values| Rows { values, stride: HEADS * DIM, count };
            let (k, v) = (rows(&k[h * DIM..]), rows(&v[h * DIM..]));
            self.host.append(pages, table.slots - count, k, v).unwrap();
        }
        let (keys, values) = (self.put(&k), self.put(&v));
        let rows = slots.len();
        let mut appender =
            Appender::new(self.kernels, &self.specialisation, rows, &self.stream).unwrap();
        appender.plan(&slots, &positions, &mut self.staging, &self.stream).unwrap();
        let new = NewRows {
            keys: keys.address(),
            values: values.address(),
            key_stride: DIM as u32,
            value_stride: DIM as u32,
        };
        let (arena, data) = (self.device.address(), self.data.addresses());
        // SAFETY: the slots are the planner's, in this arena; the buffers hold the rows.
        unsafe { appender.launch(arena, &new, data, &self.stream) }.unwrap();
        self.stream.synchronize().unwrap();
    }

    /// Copies whole pages, bytes and data.
    fn copy(&mut self, copies: &[PageCopy]) {
        let pairs: Vec<(u32, u32)> = copies.iter().map(|copy| (copy.from, copy.to)).collect();
        self.host.copy_pages(&pairs).unwrap();
        self.device.copy_pages(&pairs).unwrap();
        self.data.copy_pages(&pairs, &self.stream).unwrap();
    }

    /// The device's tables of all heads, from table `at` on, and where each starts.
    fn tables<'a>(&mut self, at: usize, heads: impl Iterator<Item = &'a [u32]>) -> Vec<u32> {
        for (h, pages) in heads.enumerate() {
            self.mirror.set(at + h, pages).unwrap();
        }
        self.mirror.sync(&mut self.staging, &self.stream).unwrap();
        (0..HEADS).map(|h| self.mirror.extent(at + h).unwrap().offset).collect()
    }

    /// Scores and positions of each head.
    fn data(&mut self, sequence: &Sequence) -> Vec<(Vec<Score>, Vec<u32>)> {
        let page_slots = self.layout().slots;
        let of = |table: HeadTable<'_>| {
            let (staging, stream) = (&mut self.staging, &self.stream);
            self.data.download(table.pages, page_slots, table.slots, staging, stream).unwrap()
        };
        sequence.heads().map(of).collect()
    }

    /// Every byte of every page is the host's.
    fn same_pages(&mut self, when: &str) {
        let all: Vec<u32> = (0..PAGES as u32).collect();
        let mut bytes = vec![0; self.host.bytes().len()];
        self.device.read_pages(&all, &mut bytes).unwrap();
        assert!(bytes == self.host.bytes(), "{when}");
    }

    /// Attention of the whole prompt on device addresses, as the reference has it, and its scores at
    /// rest.
    fn prefill(&mut self, sequence: &Sequence) {
        let layout = self.layout();
        let query_heads = HEADS * GROUP;
        let tables = self.tables(0, sequence.heads().map(|table| table.pages));
        let q: Vec<f32> = self.noise.values(PROMPT * query_heads * DIM);
        let queries = self.put(&q);
        let out = self.put(&vec![f32::NAN; q.len()]);
        let lse = self.put(&[f32::NAN; PROMPT * HEADS * GROUP]);
        let sums = self.put(&[f32::NAN; HEADS * PROMPT * GROUP]);
        let tensors = Tensors {
            pages: self.device.address(),
            page_ids: self.mirror.address(),
            queries: queries.address(),
            out: out.address(),
            lse: lse.address(),
            logits: 0,
            scoring: Scoring::scaled(1.0 / (DIM as f32).sqrt()),
        };
        let (kernels, of, stream) = (self.kernels, self.specialisation, Arc::clone(&self.stream));
        let mut prefiller = Prefiller::new(kernels, &of, &stream).unwrap();
        let mut scorer = WindowScorer::new(kernels, &of, &stream).unwrap();
        let (tokens, window) = (PROMPT as u32, WINDOW as u32);
        let chunks: Vec<PrefillHead> = (0u32..)
            .zip(&tables)
            .map(|(h, &pages)| PrefillHead {
                query: h * GROUP as u32,
                pages,
                slots: tokens,
                tokens,
            })
            .collect();
        let windows: Vec<WindowHead> = (0u32..)
            .zip(&tables)
            .map(|(h, &pages)| WindowHead {
                query: (tokens - window) * query_heads as u32 + h * GROUP as u32,
                pages,
                slots: tokens,
                before: tokens - window,
                window,
                skip: 0,
                sums: h * tokens,
            })
            .collect();
        let pooled: Vec<PoolHead> = (0u32..)
            .zip(&tables)
            .map(|(h, &pages)| PoolHead { pages, slots: tokens, sums: h * tokens })
            .collect();
        prefiller.plan(&chunks, &mut self.staging, &stream).unwrap();
        scorer.plan(&windows, &mut self.staging, &stream).unwrap();
        let mut buffer = DeviceBuffer::new(kernels.context(), 64).unwrap();
        let addresses = [self.mirror.address(), sums.address(), 0];
        let data = self.data.addresses();
        // SAFETY: the tables are pages of the arena, and every buffer has its rows, slots and heads.
        unsafe {
            prefiller.launch(&tensors, query_heads as u32, &stream).unwrap();
            scorer.launch(&tensors, sums.address(), query_heads as u32, &stream).unwrap();
            let staging = &mut self.staging;
            pool_scores(kernels, &of, &pooled, addresses, data, &mut buffer, staging, &stream)
                .unwrap();
        }
        let layer = LayerShape::new(HEADS, query_heads, DIM).unwrap();
        let heads: Vec<Head<'_>> = sequence
            .heads()
            .map(|table| Head { pages: table.pages, slots: table.slots, layout: &layout })
            .collect();
        let spans = [Span { tokens: PROMPT, heads: &heads }];
        let (mut want, mut want_lse) = (vec![0f32; q.len()], vec![0f32; PROMPT * query_heads]);
        let mut scores = SlotScores::new(WINDOW, Reduce::PerQueryHead);
        let output = Output { out: &mut want, lse: &mut want_lse, scores: Some(&mut scores) };
        Reference
            .attend(&self.host, &Batch { layer: &layer, spans: &spans, q: &q }, output)
            .unwrap();
        assert!(row_error(&self.get(&out), &want, DIM) <= 1e-2);
        assert!(largest_error(&self.get(&lse), &want_lse) <= 1e-2);
        let sums = self.get(&sums);
        for (h, (at_rest, _)) in self.data(sequence).into_iter().enumerate() {
            let sums = &sums[h * PROMPT * GROUP..][..PROMPT * GROUP];
            // The reference has a row of slots for each query head.
            let turned: Vec<f32> =
                (0..GROUP).flat_map(|g| (0..PROMPT).map(move |s| sums[s * GROUP + g])).collect();
            let expected = scores.head(0, h);
            assert!(row_error(&turned, expected, expected.len()) <= 4e-2, "head {h}");
            for (slot, &score) in at_rest.iter().enumerate() {
                let near = slot.saturating_sub(3)..(slot + 4).min(PROMPT);
                let most = |g: usize| near.clone().map(|s| sums[s * GROUP + g]).fold(0.0, f32::max);
                let want = (0..GROUP).map(most).fold(0.0, |sum, v| sum + v);
                assert_eq!(score, Score::try_from(want).unwrap(), "slot {slot}");
            }
        }
    }

    /// Swaps a sequence's pages out and, after others had them, in again.
    fn swap(&mut self, sequence: &Sequence) {
        let pages: Vec<u32> = sequence.heads().flat_map(|table| table.pages.to_vec()).collect();
        let values = pages.len() * self.layout().slots;
        let mut bytes = vec![0; pages.len() * self.layout().page_bytes];
        let (mut scores, mut positions) = (vec![0; values], vec![0; values]);
        let (data, staging, stream) = (&mut self.data, &mut self.staging, &self.stream);
        self.device.read_pages(&pages, &mut bytes).unwrap();
        data.read(&pages, &mut scores, &mut positions, staging, stream).unwrap();
        self.device.poison(&pages).unwrap();
        let garbage = (vec![GARBAGE.0; values], vec![GARBAGE.1; values]);
        data.write(&pages, &garbage.0, &garbage.1, staging, stream).unwrap();
        self.device.write_pages(&pages, &bytes).unwrap();
        data.write(&pages, &scores, &positions, staging, stream).unwrap();
    }

    /// Evicts `free` pages of a sequence whose pages others share: as the host plans it, without a change
    /// to what the others see.
    fn evict(&mut self, manager: &BlockManager, sequence: &mut Sequence, free: usize) {
        let layout = self.layout();
        let policy = Policy { sinks: 2, window: 6, cost: Cost::MaxVictim, ..Policy::default() };
        let known = self.data(sequence);
        let heads: Vec<HeadSlots<'_>> = known
            .iter()
            .map(|(scores, positions)| HeadSlots {
                scores,
                positions: Positions::Explicit(positions),
                slots_per_page: layout.slots,
            })
            .collect();
        let planned = plan(&heads, sequence.tokens(), &policy, free).unwrap();

        let (kernels, stream) = (self.kernels, Arc::clone(&self.stream));
        let mut evictor = Evictor::new(kernels, &self.specialisation, &stream).unwrap();
        let starts = self.tables(HEADS, sequence.heads().map(|table| table.pages));
        let evictable = policy.evictable(sequence.tokens());
        let (begin, end) = (evictable.start as u32, evictable.end as u32);
        let priced: Vec<PriceHead> = starts
            .iter()
            .zip(sequence.heads())
            .map(|(&pages, table)| {
                let spare = table.slots.saturating_sub(policy.floor_slots);
                let most = (spare / layout.slots) as u32;
                PriceHead { pages, slots: table.slots as u32, begin, end, most }
            })
            .collect();
        let (ids, data) = (self.mirror.address(), self.data.addresses());
        // SAFETY: the heads are the mirror's tables, whose pages have data.
        let costs =
            unsafe { evictor.costs(&priced, 16, ids, data, &mut self.staging, &stream) }.unwrap();
        let pages = cheapest_pages((0..HEADS).map(|head| costs.head(head)), free).unwrap();
        let slots: Vec<usize> = sequence.heads().map(|table| table.slots).collect();
        let after = |h: usize| planned.heads()[h].slots_after();
        let losing: Vec<Losing> = (0..HEADS)
            .map(|h| {
                let dying = (slots[h] - after(h)) as u32;
                assert_eq!(
                    slots[h].div_ceil(layout.slots) - after(h).div_ceil(layout.slots),
                    pages[h] as usize
                );
                Losing { pages: starts[h], slots: slots[h] as u32, begin, end, dying }
            })
            .collect();
        // SAFETY: as above; the device counted the slots that may die when it priced the pages.
        unsafe { evictor.select(&losing, ids, data, &mut self.staging, &stream) }.unwrap();
        let moves = evictor.moves(&mut self.staging, &stream).unwrap();
        for (moves, head) in moves.iter().zip(planned.heads()) {
            assert_eq!(moves.as_slice(), head.moves());
        }
        let rewrites = (0..HEADS).zip(moves).map(|(head, moves)| HeadRewrite {
            head,
            slots_after: after(head),
            moves,
        });
        let moving = manager.rewrite(sequence, rewrites.collect()).unwrap().begin_moves();
        let mut passes = moving.passes();
        let pass = passes.next().unwrap();
        assert!(passes.next().is_none(), "the moves run in one launch");
        assert!(pass.copies().len() > 1, "nothing was shared");
        self.copy(pass.copies());
        let written = self.tables(2 * HEADS, pass.heads().map(|head| head.pages()));
        let tables: Vec<MovedTable> = starts
            .iter()
            .zip(written)
            .map(|(&read, written)| MovedTable { read, written })
            .collect();
        let arena = self.device.address();
        let short = &tables[..1];
        // SAFETY: the tables were selected from, the written ones are the rewrite's: private where they
        // are written. The first call is refused.
        unsafe {
            let staging = &mut self.staging;
            let error = evictor.compact(short, arena, ids, data, staging, &stream).unwrap_err();
            assert_eq!(error.to_string(), "tables of selected heads: 1, expected 2");
            evictor.compact(&tables, arena, ids, data, staging, &stream).unwrap();
        }
        for head in pass.heads() {
            let table = TablePages { pages: head.pages(), layout: &layout };
            self.host.move_slots(table, head.moves()).unwrap();
        }
        drop(passes);
        moving.commit();
        let (mut scores, mut positions): (Vec<_>, Vec<_>) = known.into_iter().unzip();
        planned.apply_to(&mut scores).unwrap();
        planned.apply_to(&mut positions).unwrap();
        let got: (Vec<_>, Vec<_>) = self.data(sequence).into_iter().unzip();
        assert_eq!(got, (scores, positions));
    }
}

/// Scores and positions are those of their slots through all of it, on memory that held garbage.
pub fn scores_and_positions_follow_slots(kernels: &Arc<Kernels>, format: PageFormat) {
    let context = kernels.context();
    let bytes = PageLayout::page_bytes_for(format, DIM, 8).unwrap();
    let layout = PageLayout::new(format, DIM, bytes).unwrap();
    let stream = Arc::new(Stream::new(context).unwrap());
    let device = CudaStore::new(Arc::clone(&stream), PAGES, bytes).unwrap();
    let mut engine = Engine {
        kernels,
        staging: Staging::new(context, 3, 1 << 14).unwrap(),
        specialisation: Specialisation::new(layout, GROUP),
        device: device.with_kernels(Arc::clone(kernels)).unwrap(),
        host: HostStore::new(PAGES, bytes).unwrap(),
        data: SlotData::new(context, PAGES, layout.slots).unwrap(),
        mirror: TableMirror::new(context, 3 * HEADS, 256).unwrap(),
        noise: Noise::new(17),
        stream,
    };
    let all: Vec<u32> = (0..PAGES as u32).collect();
    let values = PAGES * layout.slots;
    let (scores, positions) = (vec![GARBAGE.0; values], vec![GARBAGE.1; values]);
    let (data, staging) = (&mut engine.data, &mut engine.staging);
    data.write(&all, &scores, &positions, staging, &engine.stream).unwrap();

    let manager = BlockManager::new(PAGES).unwrap();
    let plan = Arc::new(TablePlan::new(vec![layout.slots; HEADS]).unwrap());
    let mut prompt = manager.sequence(plan);
    manager.reserve([(&mut prompt, PROMPT)]).unwrap().commit();
    engine.append(&prompt, PROMPT);
    let known = engine.data(&prompt);
    let tokens: Vec<u32> = (0..PROMPT as u32).collect();
    assert!(known.iter().all(|head| head.1 == tokens && head.0 == [Score::ZERO; PROMPT]));
    engine.prefill(&prompt);
    engine.same_pages("a prompt");

    // A fork appends: its partial pages become its own.
    let known = engine.data(&prompt);
    let mut fork = manager.fork(&prompt).unwrap();
    let step = manager.reserve([(&mut fork, 2)]).unwrap();
    assert_eq!(step.copies().len(), HEADS);
    engine.copy(step.copies());
    step.commit();
    engine.append(&fork, 2);
    for (head, prompt) in engine.data(&fork).iter().zip(&known) {
        assert_eq!(head.0, [&prompt.0[..], &[Score::ZERO; 2]].concat());
        assert_eq!(head.1, [&prompt.1[..], &[PROMPT as u32, PROMPT as u32 + 1]].concat());
    }
    engine.same_pages("a fork");

    engine.swap(&fork);
    engine.same_pages("swapping");
    engine.evict(&manager, &mut fork, 3);
    engine.same_pages("an eviction");
    assert_eq!(engine.data(&prompt), known, "the fork's eviction changed the prompt's data");
    manager.audit([&prompt, &fork]).unwrap();
}
