//! The attention contract with queries and results in host memory.

use std::{collections::HashMap, f32::consts::LOG2_E, sync::Arc};

use parking_lot::Mutex;

use super::{
    decode::{DecodeHead, Decoder, Tensors},
    prefill::{PrefillHead, Prefiller},
    scoring::Scoring,
    window::{WindowHead, WindowScorer},
};
use crate::{
    attend::{
        AttendError, Attention, Batch, Output, Reduce, SlotScores,
        settle::{self, Doubts},
    },
    base::LayerShape,
    cuda::{Growing, Staging, driver::Stream},
    device::{
        error::DeviceError,
        kernels::{Specialisation, Terms},
        loader::Kernels,
        store::CudaStore,
    },
    format::{PageLayout, SlotFormat},
    store::StoreError,
};

/// The largest log-sum-exp that scores are replayed from: prefill rounds queries to eight or eleven bits, so
/// that its logits are off by a thousandth part of themselves.
const MOST_REPLAYED: f32 = 64.0;

/// Slots of the staging ring, and their bytes.
const STAGING: (usize, usize) = (4, 1 << 20);

/// Attention on a device for engines whose queries are in host memory: one call copies them there and
/// the results back. All work runs in the store's stream. Rows that the kernels leave in doubt are computed
/// once more on the host, as the contract wants them.
#[derive(Debug)]
pub struct CudaAttention {
    kernels: Arc<Kernels>,
    state: Mutex<State>,
}

/// Device memory that is kept from call to call.
#[derive(Debug)]
struct State {
    staging: Staging,
    queries: Growing,
    out: Growing,
    lse: Growing,
    page_ids: Growing,
    sums: Growing,
    sink_logits: Growing,
    launchers: HashMap<Vec<String>, Launchers>,
}

/// What launches the kernels of one specialisation, made when it is first needed.
#[derive(Debug, Default)]
struct Launchers {
    decoder: Option<Decoder>,
    prefiller: Option<Prefiller>,
    scorer: Option<WindowScorer>,
}

/// The heads of a batch that share a layout, and so a launch.
struct Uniform {
    specialisation: Specialisation,
    decode: Vec<DecodeHead>,
    prefill: Vec<PrefillHead>,
    score: Vec<WindowHead>,
}

/// A batch taken apart.
struct Parts {
    page_ids: Vec<u32>,
    uniform: Vec<Uniform>,
    /// Slots over all heads, each of which has a sum per query head of its group.
    slots: usize,
    /// Rows whose query sees no slot and that no kernel writes.
    blind: Vec<std::ops::Range<usize>>,
    /// Slots that no query of the window counts and that no kernel writes a sum for.
    unscored: Vec<std::ops::Range<usize>>,
}

impl CudaAttention {
    /// Attention with `kernels` on their device.
    pub fn new(kernels: Arc<Kernels>) -> Result<Self, DeviceError> {
        let staging = Staging::new(kernels.context(), STAGING.0, STAGING.1)?;
        let [queries, out, lse, page_ids, sums, sink_logits] = Default::default();
        let launchers = HashMap::new();
        let state = State { staging, queries, out, lse, page_ids, sums, sink_logits, launchers };
        Ok(Self { kernels, state: Mutex::new(state) })
    }
}

impl Attention<CudaStore> for CudaAttention {
    /// # Errors
    /// Besides bad input, [`StoreError::Device`] for what the device or the compiler refuses.
    fn attend(
        &self,
        store: &CudaStore,
        batch: &Batch<'_>,
        mut output: Output<'_>,
    ) -> Result<(), AttendError> {
        batch.check(store, &output)?;
        check_layer(batch.layer)?;
        if !store.context().same(self.kernels.context()) {
            return Err(device(DeviceError::OtherContext));
        }
        let mut scores = output.scores.take();
        if let Some(scores) = scores.as_deref_mut() {
            scores.reset(batch);
        }
        let parts = Parts::new(batch, scores.as_deref())?;
        let mut sums =
            vec![0f32; if scores.is_some() { parts.slots * batch.layer.group() } else { 0 }];
        // Locked for the launches alone: settling rows takes rayon's threads, which may wait for each
        // other with another call of this on their stack.
        self.state
            .lock()
            .run(&self.kernels, store, batch, &parts, &mut output, &mut sums)
            .map_err(device)?;
        for rows in parts.blind {
            let dim = batch.layer.v_dim();
            output.out[rows.start * dim..rows.end * dim].fill(0.0);
            match batch.layer.sink_logits() {
                // All query heads of a KV head.
                Some(logits) => {
                    let head = rows.start % logits.len();
                    output.lse[rows.clone()].copy_from_slice(&logits[head..head + rows.len()]);
                }
                None => output.lse[rows].fill(f32::NEG_INFINITY),
            }
        }
        Doubts::mark(output.out, output.lse);
        doubt_faint_queries(batch, output.lse);
        let doubts = Doubts::of(output.lse);
        doubts.settle(store, batch, output.out, output.lse)?;
        if let Some(scores) = scores {
            for slots in parts.unscored {
                let group = batch.layer.group();
                sums[slots.start * group..slots.end * group].fill(0.0);
            }
            reduce(scores, &sums, batch);
            let unsure = doubts.unsure_heads(batch, output.lse, scores, MOST_REPLAYED);
            settle::rescore(store, batch, &unsure, scores)?;
        }
        Ok(())
    }
}

/// Refuses layers that the kernels do not know.
fn check_layer(layer: &LayerShape) -> Result<(), AttendError> {
    match layer.channels().alike() {
        Some(_) => Ok(()),
        None => Err(AttendError::Unsupported("keys and values of different channels")),
    }
}

/// Queries, as the kernels scale them, of which half precision holds fewer than 16 bits.
const FAINT: f32 = 1.0 / 256.0;

/// Leaves rows in doubt whose queries are too small for the half precision that f16 and i8 keys are
/// multiplied in: nothing overflows there, so nothing else shows it.
fn doubt_faint_queries(batch: &Batch<'_>, lse: &mut [f32]) {
    let (dim, heads, group) = (batch.layer.k_dim(), batch.layer.query_heads(), batch.layer.group());
    let scale = LOG2_E * batch.layer.scale();
    let spans = batch.spans.iter().flat_map(|span| (0..span.tokens).map(move |_| span));
    for ((span, q), lse) in
        spans.zip(batch.q.chunks_exact(heads * dim)).zip(lse.chunks_exact_mut(heads))
    {
        for ((head, q), lse) in q.chunks_exact(dim).enumerate().zip(lse) {
            let halves = matches!(
                span.heads[head / group].layout.format.k,
                SlotFormat::F16 | SlotFormat::I8
            );
            let largest = scale * q.iter().fold(0f32, |most, q| most.max(q.abs()));
            if halves && 0.0 < largest && largest < FAINT && *lse != f32::NEG_INFINITY {
                *lse = f32::NAN;
            }
        }
    }
}

impl Parts {
    fn new(batch: &Batch<'_>, scores: Option<&SlotScores>) -> Result<Self, AttendError> {
        let (group, query_heads) = (batch.layer.group(), batch.layer.query_heads());
        let tokens = batch.tokens();
        let too_large = || AttendError::TooLarge { tokens };
        let index = |value: usize| u32::try_from(value).map_err(|_| too_large());
        let mut parts = Self {
            page_ids: Vec::new(),
            uniform: Vec::new(),
            slots: 0,
            blind: Vec::new(),
            unscored: Vec::new(),
        };
        let mut first_row = 0;
        for span in batch.spans {
            for (h, head) in span.heads.iter().enumerate() {
                let pages = index(parts.page_ids.len())?;
                parts.page_ids.extend_from_slice(&head.pages[..head.used_pages()]);
                let at = parts.slots;
                parts.slots += head.slots;
                if span.tokens == 0 {
                    parts.unscored.push(at..parts.slots);
                    continue;
                }
                // Tokens older than every slot see nothing.
                let blind = span.tokens.saturating_sub(head.slots).min(span.tokens - 1);
                for token in 0..blind {
                    let row = first_row + token * query_heads + h * group;
                    parts.blind.push(row..row + group);
                }
                let query = index(first_row + blind * query_heads + h * group)?;
                let slots = index(head.slots)?;
                let uniform = Self::of(&mut parts.uniform, head.layout, batch.layer);
                if span.tokens - blind == 1 {
                    uniform.decode.push(DecodeHead { query, pages, slots, logits: 0 });
                } else {
                    let tokens = index(span.tokens - blind)?;
                    uniform.prefill.push(PrefillHead { query, pages, slots, tokens });
                }
                if let Some(scores) = scores {
                    // The first token of the window that sees a slot that counts.
                    let skip = scores.skip_newest();
                    let first = span.tokens.saturating_add(skip).saturating_sub(head.slots);
                    let window = scores.tokens(span).start.max(first);
                    if window >= span.tokens {
                        parts.unscored.push(at..parts.slots);
                        continue;
                    }
                    index(parts.slots)?;
                    uniform.score.push(WindowHead {
                        query: index(first_row + window * query_heads + h * group)?,
                        pages,
                        slots,
                        before: index(head.slots - skip - (span.tokens - window))?,
                        window: index(span.tokens - window)?,
                        skip: index(skip)?,
                        sums: index(at)?,
                    });
                }
            }
            first_row += span.tokens * query_heads;
        }
        index(first_row)?;
        Ok(parts)
    }

    fn of<'a>(
        all: &'a mut Vec<Uniform>,
        layout: &PageLayout,
        layer: &LayerShape,
    ) -> &'a mut Uniform {
        let found = all.iter().position(|uniform| uniform.specialisation.layout == *layout);
        let at = found.unwrap_or_else(|| {
            let plain = Specialisation::new(*layout, layer.group());
            let specialisation = Specialisation { terms: Terms::of(layer), ..plain };
            let (decode, prefill, score) = Default::default();
            all.push(Uniform { specialisation, decode, prefill, score });
            all.len() - 1
        });
        &mut all[at]
    }
}

impl State {
    fn run(
        &mut self,
        kernels: &Kernels,
        store: &CudaStore,
        batch: &Batch<'_>,
        parts: &Parts,
        output: &mut Output<'_>,
        sums: &mut [f32],
    ) -> Result<(), DeviceError> {
        let (context, stream) = (kernels.context(), &**store.stream());
        let query_heads = batch.layer.query_heads() as u32;
        let Self { staging, queries, out, lse, page_ids, sink_logits, .. } = self;
        let logits = batch.layer.sink_logits().unwrap_or_default();
        let logits = sink_logits.upload(context, staging, stream, logits)?;
        let tensors = Tensors {
            pages: store.address(),
            page_ids: page_ids.upload(context, staging, stream, &parts.page_ids)?,
            queries: queries.upload(context, staging, stream, batch.q)?,
            out: out.reserve(context, size_of_val::<[f32]>(output.out))?.address(),
            lse: lse.reserve(context, size_of_val::<[f32]>(output.lse))?.address(),
            logits: 0,
            scoring: Scoring::of(batch.layer, logits),
        };
        let sums_at = self.sums.reserve(context, size_of_val::<[f32]>(sums))?.address();
        for uniform in &parts.uniform {
            let specialisation = &uniform.specialisation;
            let launchers = self.launchers.entry(specialisation.defines()).or_default();
            // SAFETY, of every launch: page ids and slots were checked against the store, the rows are
            // those of the buffers reserved above and `sums` has a place for each slot and query head of
            // the group; all outlive the download that ends this call.
            if !uniform.decode.is_empty() {
                let decoder = launchers.decoder(kernels, uniform, stream)?;
                decoder.plan(&uniform.decode, staging, stream)?;
                // SAFETY: as above.
                unsafe { decoder.launch(&tensors, stream) }?;
            }
            if !uniform.prefill.is_empty() {
                let prefiller = match &mut launchers.prefiller {
                    Some(prefiller) => prefiller,
                    none => none.insert(Prefiller::new(kernels, specialisation, stream)?),
                };
                prefiller.plan(&uniform.prefill, staging, stream)?;
                // SAFETY: as above.
                unsafe { prefiller.launch(&tensors, query_heads, stream) }?;
            }
            if !uniform.score.is_empty() {
                let scorer = match &mut launchers.scorer {
                    Some(scorer) => scorer,
                    none => none.insert(WindowScorer::new(kernels, specialisation, stream)?),
                };
                scorer.plan(&uniform.score, staging, stream)?;
                // SAFETY: as above.
                unsafe { scorer.launch(&tensors, sums_at, query_heads, stream) }?;
            }
        }
        self.out.download(staging, stream, output.out)?;
        self.lse.download(staging, stream, output.lse)?;
        Ok(self.sums.download(staging, stream, sums)?)
    }
}

impl Launchers {
    /// The decoder, made anew when it is too small.
    fn decoder(
        &mut self,
        kernels: &Kernels,
        uniform: &Uniform,
        stream: &Stream,
    ) -> Result<&mut Decoder, DeviceError> {
        let heads = uniform.decode.len();
        self.decoder.take_if(|decoder| decoder.most_heads() < heads);
        Ok(match &mut self.decoder {
            Some(decoder) => decoder,
            none => {
                let (of, most) = (uniform.specialisation, heads.next_power_of_two());
                none.insert(Decoder::new(kernels, of, most, stream)?)
            }
        })
    }
}

/// Brings sums of `[slots][group]` per head into the form that was asked for.
fn reduce(scores: &mut SlotScores, sums: &[f32], batch: &Batch<'_>) {
    let (reduce, group) = (scores.reduce(), batch.layer.group());
    let tables = batch.spans.iter().flat_map(|span| span.heads);
    let mut at = 0;
    for (values, head) in scores.heads_mut().into_iter().zip(tables) {
        let rows = sums[at * group..(at + head.slots) * group].chunks_exact(group);
        for (slot, row) in rows.enumerate() {
            match reduce {
                Reduce::Group => values[slot] = row.iter().sum(),
                Reduce::PerQueryHead => {
                    for (g, &sum) in row.iter().enumerate() {
                        values[g * head.slots + slot] = sum;
                    }
                }
            }
        }
        at += head.slots;
    }
}

fn device(error: DeviceError) -> AttendError {
    StoreError::Device(error.to_string()).into()
}
