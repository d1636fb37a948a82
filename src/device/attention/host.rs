//! The attention contract with queries and results in host memory.

use std::{collections::HashMap, f32::consts::LOG2_E, sync::Arc};

use parking_lot::Mutex;

use super::{
    decode::{Decoder, Tensors},
    parts::{Parts, Uniform},
    prefill::Prefiller,
    scoring::Scoring,
    window::WindowScorer,
};
use crate::{
    attend::{
        AttendError, Attention, Batch, Output, Reduce, SlotScores,
        settle::{self, Doubts},
    },
    base::LayerShape,
    cuda::{
        Growing, Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{error::DeviceError, loader::Kernels, store::CudaStore},
    format::SlotFormat,
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
        let io = SlotFormat::F32;
        let parts = Parts::new(batch, batch.layer.query_heads(), io, scores.as_deref())?;
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

/// Queries and outputs that are on the device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTensors {
    /// Address of the first token's first query row.
    pub queries: u64,
    /// Address of the first token's first output row.
    pub out: u64,
    /// Type of both: f32, f16 or bf16.
    pub io: SlotFormat,
    /// From a token's rows to the next token's, in rows, in both.
    pub row_stride: usize,
}

impl CudaAttention {
    /// Queues attention with queries and outputs on the device; `batch.q` is not looked at. Waits only
    /// where `scores` are asked for. Rows of a query that sees no slot are zeroed.
    ///
    /// Nothing is settled here as [`attend`](Attention::attend) does, whose caller waits. Rows that leave the
    /// kernels' range, which is past the logits that models have, are NaN. Faint queries (all of
    /// |q · scale · log₂ e| < 2⁻⁸) lose bits over f16 and i8 keys, and nothing shows it. Scores of rows with
    /// a log-sum-exp of 64 or more stay as the kernels give them, with the rounding of logits in the
    /// probabilities. Keys and values that pages could not hold are numbers by now, and show in the count of
    /// the saturated alone.
    ///
    /// # Errors
    /// As [`attend`](Attention::attend).
    ///
    /// # Safety
    /// The tensors have the batch's rows and are not used otherwise until the store's stream is done.
    pub unsafe fn queue(
        &self,
        store: &CudaStore,
        batch: &Batch<'_>,
        tensors: &DeviceTensors,
        scores: Option<&mut SlotScores>,
    ) -> Result<(), AttendError> {
        batch.check_tables(store)?;
        check_layer(batch.layer)?;
        if !store.context().same(self.kernels.context()) {
            return Err(device(DeviceError::OtherContext));
        }
        let DeviceTensors { queries, out, io, row_stride } = *tensors;
        let mut scores = scores;
        if let Some(scores) = scores.as_deref_mut() {
            scores.reset(batch);
        }
        let parts = Parts::new(batch, row_stride, io, scores.as_deref())?;
        let mut state = self.state.lock();
        let (context, stream) = (self.kernels.context(), &**store.stream());
        let row = batch.layer.v_dim() * value_bytes(io);
        for rows in &parts.blind {
            let (start, bytes) = (out + (rows.start * row) as u64, rows.len() * row);
            // SAFETY: rows of the output, which the caller vouches for.
            let mut rows = unsafe { DeviceBuffer::from_raw(context, start, bytes) };
            rows.fill(0..bytes, 0, stream).map_err(|error| device(error.into()))?;
        }
        // SAFETY: the caller vouches for the rows.
        unsafe { state.queue(&self.kernels, store, batch, &parts, [queries, out], row_stride) }
            .map_err(device)?;
        if let Some(scores) = scores {
            let group = batch.layer.group();
            let mut sums = vec![0f32; parts.slots * group];
            if parts.scored() {
                let State { staging, sums: on_device, .. } = &mut *state;
                let down = on_device.download(staging, stream, &mut sums);
                down.map_err(|error| device(error.into()))?;
            }
            for slots in parts.unscored {
                sums[slots.start * group..slots.end * group].fill(0.0);
            }
            reduce(scores, &sums, batch);
        }
        Ok(())
    }
}

/// Bytes of a value of an IO format.
fn value_bytes(io: SlotFormat) -> usize {
    if io == SlotFormat::F32 { 4 } else { 2 }
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
        let Self { staging, queries, out, .. } = self;
        let queries = queries.upload(context, staging, stream, batch.q)?;
        let out = out.reserve(context, size_of_val::<[f32]>(output.out))?.address();
        let row_stride = batch.layer.query_heads();
        // SAFETY: the rows are those of the buffers reserved here, which outlive the downloads below.
        unsafe { self.queue(kernels, store, batch, parts, [queries, out], row_stride) }?;
        self.out.download(&mut self.staging, stream, output.out)?;
        self.lse.download(&mut self.staging, stream, output.lse)?;
        if parts.scored() {
            self.sums.download(&mut self.staging, stream, sums)?;
        }
        Ok(())
    }

    /// Queues the launches of a batch. Afterwards log-sum-exps and sums are in the buffers for that.
    ///
    /// # Safety
    /// The rows of queries and outputs at these addresses, `row_stride` rows a token, are those of the
    /// batch, in the IO format of its parts, until the stream is done.
    unsafe fn queue(
        &mut self,
        kernels: &Kernels,
        store: &CudaStore,
        batch: &Batch<'_>,
        parts: &Parts,
        [queries, out]: [u64; 2],
        row_stride: usize,
    ) -> Result<(), DeviceError> {
        let (context, stream) = (kernels.context(), &**store.stream());
        let Self { staging, lse, page_ids, sink_logits, .. } = self;
        let logits = batch.layer.sink_logits().unwrap_or_default();
        let logits = sink_logits.upload(context, staging, stream, logits)?;
        let mut scoring = Scoring::of(batch.layer, logits);
        if let Some(sinks) = &mut scoring.sink_logits {
            // Rows between one token's and the next's are nobody's.
            sinks.heads = row_stride as u32;
        }
        let rows = batch.tokens() * row_stride;
        let tensors = Tensors {
            pages: store.address(),
            page_ids: page_ids.upload(context, staging, stream, &parts.page_ids)?,
            queries,
            out,
            lse: lse.reserve(context, rows * size_of::<f32>())?.address(),
            logits: 0,
            scoring,
        };
        let sums = if parts.scored() { parts.slots * batch.layer.group() } else { 0 };
        let sums_at = self.sums.reserve(context, sums * size_of::<f32>())?.address();
        for uniform in &parts.uniform {
            let specialisation = &uniform.specialisation;
            let launchers = self.launchers.entry(specialisation.defines()).or_default();
            // SAFETY, of every launch: page ids and slots were checked against the store, the caller vouches
            // for the rows, and `lse` and `sums` have a place for each row, and for each slot and query head
            // of the group.
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
                unsafe { prefiller.launch(&tensors, row_stride as u32, stream) }?;
            }
            if !uniform.score.is_empty() {
                let scorer = match &mut launchers.scorer {
                    Some(scorer) => scorer,
                    none => none.insert(WindowScorer::new(kernels, specialisation, stream)?),
                };
                scorer.plan(&uniform.score, staging, stream)?;
                // SAFETY: as above.
                unsafe { scorer.launch(&tensors, sums_at, row_stride as u32, stream) }?;
            }
        }
        Ok(())
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
