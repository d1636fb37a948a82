//! Caches in device memory.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::{
    config::CacheConfig,
    error::CacheError,
    kv_cache::KvCache,
    memory::{Attended, LayerWork, Memory},
    runs::Runs,
};
use crate::{
    attend::Batch,
    base::SlotMove,
    cuda::{CudaError, DeviceRows, DeviceRowsMut, Element, Staging, driver::Stream},
    device::{
        CudaAttention, CudaStore, DeviceError, Kernels, StepFence,
        attention::{Appender, DeviceTensors, NO_SLOT, NewRows},
        eviction::SlotAddresses,
        kernels::{MOST_HEAD_DIM, Specialisation},
    },
    format::{PageLayout, SlotFormat},
    plan::StepId,
    store::{PageStore, StoreError, TablePages},
};

/// Slots of the staging ring, and their bytes.
const STAGING: (usize, usize) = (4, 1 << 20);

/// Pages on a device, and the kernels that append to and attend over them in an engine's own stream.
///
/// Steps are queued, not waited for, but where a scorer wants attention: its sums are read back, and the
/// scores at rest are in host memory. Keys and values that a page format cannot hold are saturated, whatever
/// the formats' [`Overflow`](crate::format::Overflow) says, and counted ([`KvCache::saturated`]). Pages that
/// are given back can be taken again once the work of then is done. K and V are of the same width.
///
/// Scores are those of the kernels: what a host settles, rows with a log-sum-exp of 64 or more and faint
/// queries, is left as it is ([`CudaAttention::queue`]).
#[derive(Debug)]
pub struct DeviceMemory {
    kernels: Arc<Kernels>,
    stream: Arc<Stream>,
    attention: CudaAttention,
    store: Mutex<CudaStore>,
    fence: Mutex<StepFence>,
    work: Mutex<Work>,
    /// Buffers of steps that are between layers.
    scratch: Mutex<Vec<Runs>>,
    pages: usize,
    page_bytes: usize,
}

/// What appends, and its buffers.
#[derive(Debug)]
struct Work {
    staging: Staging,
    appenders: HashMap<Vec<String>, Appending>,
}

/// The append kernel of one specialisation.
#[derive(Debug)]
struct Appending {
    appender: Appender,
    most_rows: usize,
    /// What appenders before it counted, which were too small.
    counted: u64,
}

impl KvCache<DeviceMemory> {
    /// A cache on the device of `kernels`, whose work is queued in `stream`.
    ///
    /// # Errors
    /// Also [`CacheError::Unsupported`] for heads whose K and V differ in channels, or have more than the
    /// kernels take ([`MOST_HEAD_DIM`]), and [`CacheError::Store`] for memory that the device does not have,
    /// and for kernels of another context.
    pub fn on_device(
        config: &CacheConfig,
        kernels: Arc<Kernels>,
        stream: Arc<Stream>,
    ) -> Result<Self, CacheError> {
        let unequal = config.shape.iter().any(|layer| layer.channels().alike().is_none());
        if unequal {
            return Err(CacheError::Unsupported("keys and values of different channels"));
        }
        if config.shape.iter().any(|layer| layer.k_dim() > MOST_HEAD_DIM) {
            return Err(CacheError::Unsupported("heads of more than 256 channels"));
        }
        Self::in_memory(config, |pages, page_bytes| {
            DeviceMemory::new(kernels, stream, pages, page_bytes)
        })
    }
}

impl DeviceMemory {
    fn new(
        kernels: Arc<Kernels>,
        stream: Arc<Stream>,
        pages: usize,
        page_bytes: usize,
    ) -> Result<Self, CacheError> {
        let store = CudaStore::new(Arc::clone(&stream), pages, page_bytes)?;
        let store = store.with_kernels(Arc::clone(&kernels))?;
        let attention = CudaAttention::new(Arc::clone(&kernels)).map_err(device)?;
        let staging = Staging::new(kernels.context(), STAGING.0, STAGING.1);
        let staging = staging.map_err(|error| device(error.into()))?;
        let work = Work { staging, appenders: HashMap::new() };
        Ok(Self {
            fence: Mutex::new(StepFence::new(kernels.context())),
            kernels,
            stream,
            attention,
            store: Mutex::new(store),
            work: Mutex::new(work),
            scratch: Mutex::default(),
            pages,
            page_bytes,
        })
    }

    /// The stream that all work is queued in.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Whether `stream` is the queue that all work goes to.
    pub fn queues_in(&self, stream: &Stream) -> bool {
        self.stream.as_raw() == stream.as_raw() && self.stream.context().same(stream.context())
    }

    /// Queues the append of a layer's rows: a launch for each specialisation, or for each of its heads where
    /// rows of K or V have a gap between tokens.
    fn append(
        &self,
        work: &LayerWork<'_>,
        state: &mut Work,
        k: DeviceRows<'_>,
        v: DeviceRows<'_>,
    ) -> Result<(), DeviceError> {
        let (layer, tokens) = (work.layer, work.tokens());
        let (dim, heads) = (layer.k_dim(), layer.kv_heads());
        let one = tokens == 1;
        let dense = one || k.stride() == layer.k_row() && v.stride() == layer.v_row();
        let mut layouts: Vec<PageLayout> = Vec::new();
        for member in work.members {
            for head in work.first_head..work.first_head + heads {
                let layout = member.layouts.of(head);
                if !layouts.contains(layout) {
                    layouts.push(*layout);
                }
            }
        }
        for layout in layouts {
            let plain = Specialisation::new(layout, layer.group());
            let specialisation = Specialisation { io: format(k.element()), ..plain };
            // A row for each token and head of the launch: where it goes.
            let each = if dense { heads } else { 1 };
            for first_head in (0..heads).step_by(each) {
                let of_heads = first_head..first_head + each;
                let mut slots = Vec::with_capacity(tokens * of_heads.len());
                for member in work.members {
                    for token in 0..member.tokens {
                        for h in of_heads.clone() {
                            let head = work.first_head + h;
                            let (of, table) = (member.layouts.of(head), member.tables.head(head));
                            let slot = table.slots - member.tokens + token;
                            let page = |index: usize| u64::from(table.pages[index]);
                            slots.push(match *of == layout {
                                true => {
                                    page(slot / of.slots) * of.slots as u64
                                        + (slot % of.slots) as u64
                                }
                                false => NO_SLOT,
                            });
                        }
                    }
                }
                if slots.iter().all(|&slot| slot == NO_SLOT) {
                    continue;
                }
                let first = (of_heads.start * dim * k.element().bytes()) as u64;
                let stride = |view: DeviceRows<'_>| if dense { dim } else { view.stride() } as u32;
                let rows = NewRows {
                    keys: k.address() + first,
                    values: v.address() + first,
                    key_stride: stride(k),
                    value_stride: stride(v),
                };
                self.append_rows(state, &specialisation, &slots, &rows)?;
            }
        }
        Ok(())
    }

    fn append_rows(
        &self,
        Work { staging, appenders }: &mut Work,
        specialisation: &Specialisation,
        slots: &[u64],
        rows: &NewRows,
    ) -> Result<(), DeviceError> {
        let stream = &*self.stream;
        let new = |rows: usize| Appender::new(&self.kernels, specialisation, rows, stream);
        let appending = match appenders.entry(specialisation.defines()) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let most_rows = slots.len().next_power_of_two();
                entry.insert(Appending { appender: new(most_rows)?, most_rows, counted: 0 })
            }
        };
        if appending.most_rows < slots.len() {
            let most_rows = slots.len().next_power_of_two();
            // Before anything is changed: a device without the memory for it keeps the appender it has.
            let appender = new(most_rows)?;
            let counted = appending.counted + appending.appender.saturated(staging, stream)?;
            *appending = Appending { appender, most_rows, counted };
        }
        appending.appender.plan(slots, &[], staging, stream)?;
        let arena = self.store.lock().address();
        // SAFETY: planned above in the same stream; each slot is one of a page of the arena that the planner
        // gave to the step, and no two are the same; the views' rows are vouched for by who made them, and
        // were checked to be as many and as wide.
        unsafe { appending.appender.launch(arena, rows, SlotAddresses::NONE, stream) }
    }
}

impl Memory for DeviceMemory {
    type Rows<'a> = DeviceRows<'a>;
    type Out<'a> = DeviceRowsMut<'a>;

    fn pages(&self) -> usize {
        self.pages
    }

    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn check(
        &self,
        work: &LayerWork<'_>,
        q: DeviceRows<'_>,
        k: DeviceRows<'_>,
        v: DeviceRows<'_>,
        out: &DeviceRowsMut<'_>,
    ) -> Result<(), CacheError> {
        let (layer, tokens) = (work.layer, work.tokens());
        let widths = [layer.q_row(), layer.k_row(), layer.v_row(), layer.out_row()];
        let names = ["q", "k", "v", "out"];
        let rows = [q, k, v, out.as_rows()];
        for ((view, width), what) in rows.into_iter().zip(widths).zip(names) {
            if !view.context().same(self.kernels.context()) {
                return Err(device(DeviceError::OtherContext));
            }
            if view.rows() != tokens || view.columns() != width {
                let (got, expected) = (view.rows().saturating_mul(view.columns()), tokens * width);
                return Err(CacheError::WrongLength { what, got, expected });
            }
            let bad = |problem| Err(CacheError::BadTensor { what, problem });
            if view.element() != q.element() {
                return bad("it is not of the type of q");
            }
            if tokens > 1 && u32::try_from(view.stride()).is_err() {
                return bad("its rows are further apart than 32 bits count");
            }
            // Four numbers are read at once.
            let apart = tokens < 2 || view.stride().is_multiple_of(4);
            if !view.address().is_multiple_of(4 * view.element().bytes() as u64) || !apart {
                return bad("its rows do not start on four numbers");
            }
        }
        if tokens > 1 {
            let bad = |what, problem| Err(CacheError::BadTensor { what, problem });
            if !q.stride().is_multiple_of(layer.k_dim()) {
                return bad("q", "its rows are not a multiple of a head's channels apart");
            }
            if out.as_rows().stride() != q.stride() {
                return bad("out", "its rows are not as far apart as those of q");
            }
        }
        Ok(())
    }

    fn attend(
        &self,
        work: &LayerWork<'_>,
        q: DeviceRows<'_>,
        k: DeviceRows<'_>,
        v: DeviceRows<'_>,
        out: DeviceRowsMut<'_>,
    ) -> Result<Attended, CacheError> {
        let out = out.as_rows();
        // Locked for the launches alone: scorers run below, and may ask this memory something. The stream
        // keeps what a step appends before what it attends to, whatever another step queues between.
        self.append(work, &mut self.work.lock(), k, v).map_err(device)?;
        let mut runs = self.scratch.lock().pop().unwrap_or_default();
        let read_keys = |table: TablePages<'_>, keys: &mut [f32]| self.read_keys(table, keys);
        let noted = runs.attend(work, &read_keys, &mut |run| {
            let queries = q.rows_of(run.tokens.clone()).map_err(cuda)?;
            let out = out.rows_of(run.tokens.clone()).map_err(cuda)?;
            // One token's rows have no next one's, and may be any distance from it.
            let stride = if q.rows() > 1 { q.stride() } else { q.columns() };
            let tensors = DeviceTensors {
                queries: queries.address(),
                out: out.address(),
                io: format(q.element()),
                row_stride: stride / work.layer.k_dim(),
            };
            let batch = Batch { layer: work.layer, spans: run.spans, q: &[] };
            let store = self.store.lock();
            // SAFETY: the views' rows are vouched for by who made them, and were checked to be those of the
            // batch.
            Ok(unsafe { self.attention.queue(&store, &batch, &tensors, run.scores) }?)
        });
        self.scratch.lock().push(runs);
        Ok(Attended { saturated: 0, noted: noted? })
    }

    fn copy_pages(&self, copies: &[(u32, u32)]) -> Result<(), CacheError> {
        Ok(self.store.lock().copy_pages(copies)?)
    }

    fn move_slots(&self, table: TablePages<'_>, moves: &[SlotMove]) -> Result<(), CacheError> {
        Ok(self.store.lock().move_slots(table, moves)?)
    }

    fn read_keys(&self, table: TablePages<'_>, keys: &mut [f32]) -> Result<(), CacheError> {
        Ok(self.store.lock().read_keys(table, 0, keys)?)
    }

    fn read_pages(&self, pages: &[u32], bytes: &mut [u8]) -> Result<(), CacheError> {
        Ok(self.store.lock().read_pages(pages, bytes)?)
    }

    fn write_pages(&self, pages: &[u32], bytes: &[u8]) -> Result<(), CacheError> {
        Ok(self.store.lock().write_pages(pages, bytes)?)
    }

    fn poison(&self, pages: &[u32]) -> Result<(), CacheError> {
        Ok(self.store.lock().poison(pages)?)
    }

    fn close(&self, step: StepId) -> Result<Option<StepId>, CacheError> {
        let mut fence = self.fence.lock();
        let closed = fence.record(step, &self.stream).and_then(|()| fence.poll());
        closed.map_err(|error| device(error.into()))
    }

    fn saturated(&self) -> Result<u64, CacheError> {
        let Work { staging, appenders } = &mut *self.work.lock();
        let mut saturated = 0;
        for appending in appenders.values() {
            let counted = appending.appender.saturated(staging, &self.stream).map_err(device)?;
            saturated += appending.counted + counted;
        }
        Ok(saturated)
    }
}

/// The format of what kernels read and write beside pages.
fn format(element: Element) -> SlotFormat {
    match element {
        Element::F32 => SlotFormat::F32,
        Element::F16 => SlotFormat::F16,
        Element::Bf16 => SlotFormat::Bf16,
    }
}

fn cuda(error: CudaError) -> CacheError {
    device(error.into())
}

fn device(error: DeviceError) -> CacheError {
    StoreError::Device(error.to_string()).into()
}
