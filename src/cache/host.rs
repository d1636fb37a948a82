//! Caches in host memory.

use std::sync::OnceLock;

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{
    error::CacheError,
    memory::{Attended, LayerWork, Memory},
    rows::{HostOut, HostRows},
    runs::Runs,
};
use crate::{
    attend::{Attention, Batch, CpuAttention, Output},
    base::SlotMove,
    plan::StepId,
    store::{HostStore, PageStore, Rows, StoreError, TablePages},
};

/// Pages in host memory, and attention on host cores.
///
/// Rows are [`HostRows`] in f32, f16 or bf16, one after another without gaps; attention computes in f32.
/// The store is behind a lock that a step holds while it appends or attends, not between layers and not
/// while it asks a scorer. Attention runs on threads that do nothing else, shared by all caches, and it is
/// they who hold the lock meanwhile: a thread of another rayon pool takes up jobs of that pool while it
/// waits for attention, any of which may change this cache or another.
#[derive(Debug)]
pub struct HostMemory {
    store: RwLock<HostStore>,
    attention: CpuAttention,
    /// Buffers of steps that are between layers.
    scratch: Mutex<Vec<Scratch>>,
}

/// Buffers kept from layer to layer.
#[derive(Debug, Default)]
struct Scratch {
    lse: Vec<f32>,
    runs: Runs,
    /// Q, K, V and outputs in f32.
    wide: [Vec<f32>; 4],
}

impl HostMemory {
    pub(super) fn new(pages: usize, page_bytes: usize) -> Result<Self, CacheError> {
        let store = RwLock::new(HostStore::new(pages, page_bytes)?);
        Ok(Self { store, attention: CpuAttention::new(), scratch: Mutex::default() })
    }

    /// The page bytes. Steps wait while they are looked at.
    pub(super) fn store(&self) -> MappedRwLockReadGuard<'_, HostStore> {
        RwLockReadGuard::map(self.read(), |store| store)
    }

    /// Behind a writer that writes, not behind one that waits: a thread that attends may take up another
    /// step's attention while it waits for its helpers, and so have this twice.
    fn read(&self) -> RwLockReadGuard<'_, HostStore> {
        self.store.read_recursive()
    }

    fn write(&self) -> RwLockWriteGuard<'_, HostStore> {
        self.store.write()
    }

    /// Attends on the threads for that, which do nothing that waits for a writer.
    fn compute(&self, batch: &Batch<'_>, output: Output<'_>) -> Result<(), CacheError> {
        static THREADS: OnceLock<ThreadPool> = OnceLock::new();
        let threads = THREADS.get_or_init(|| {
            let named = ThreadPoolBuilder::new().thread_name(|i| format!("headwise-attend-{i}"));
            named.build().expect("threads for attention")
        });
        // The lock is theirs, not this thread's, which may do other work until they are done.
        Ok(threads.install(|| self.attention.attend(&*self.read(), batch, output))?)
    }

    /// Encodes the rows of a layer; returns how many values were saturated.
    fn append(&self, work: &LayerWork<'_>, k: &[f32], v: &[f32]) -> Result<u64, CacheError> {
        let layer = work.layer;
        let mut store = self.write();
        let (mut first_token, mut saturated) = (0, 0);
        for (index, member) in work.members.iter().enumerate() {
            let (count, overflow) = (member.tokens, member.layouts.formats().overflow());
            for kv_head in 0..layer.kv_heads() {
                let head = work.first_head + kv_head;
                let table = member.tables.head(head);
                let rows = |values, stride, dim| {
                    let start = first_token * stride + kv_head * dim;
                    Rows { values: tail(values, start), stride, count }
                };
                let k = rows(k, layer.k_row(), layer.k_dim());
                let v = match layer.v_row() {
                    0 => Rows::none(),
                    stride => rows(v, stride, layer.v_dim()),
                };
                let pages = TablePages { pages: table.pages, layout: member.layouts.of(head) };
                let first = table.slots - count;
                let stored = store.append_with(pages, first, k, v, overflow);
                saturated += stored.map_err(|error| match error {
                    StoreError::OutOfRange { row, cause } => {
                        let token = member.tables.tokens() - count + row;
                        let layer = work.index;
                        CacheError::OutOfRange { member: index, layer, kv_head, token, cause }
                    }
                    other => other.into(),
                })? as u64;
            }
            first_token += count;
        }
        Ok(saturated)
    }
}

impl Memory for HostMemory {
    type Rows<'a> = HostRows<'a>;
    type Out<'a> = HostOut<'a>;

    fn pages(&self) -> usize {
        self.read().pages()
    }

    fn page_bytes(&self) -> usize {
        self.read().page_bytes()
    }

    fn check(
        &self,
        work: &LayerWork<'_>,
        q: HostRows<'_>,
        k: HostRows<'_>,
        v: HostRows<'_>,
        out: &HostOut<'_>,
    ) -> Result<(), CacheError> {
        let given = [q.len(), k.len(), v.len(), out.len()];
        let wrong = work.lengths().into_iter().zip(given).find(|((_, n), got)| n != got);
        match wrong {
            Some(((what, expected), got)) => Err(CacheError::WrongLength { what, got, expected }),
            None => Ok(()),
        }
    }

    fn attend(
        &self,
        work: &LayerWork<'_>,
        q: HostRows<'_>,
        k: HostRows<'_>,
        v: HostRows<'_>,
        out: HostOut<'_>,
    ) -> Result<Attended, CacheError> {
        let mut scratch = self.scratch.lock().pop().unwrap_or_default();
        let [wide_q, wide_k, wide_v, wide_out] = &mut std::mem::take(&mut scratch.wide);
        let done = (|| {
            let saturated = self.append(work, k.widen(wide_k), v.widen(wide_v))?;
            let q = q.widen(wide_q);
            let noted = out.fill(wide_out, |out| {
                let read_keys =
                    |table: TablePages<'_>, keys: &mut [f32]| self.read_keys(table, keys);
                let Scratch { lse, runs, .. } = &mut scratch;
                runs.attend(work, &read_keys, &mut |run| {
                    let (layer, tokens) = (work.layer, run.tokens.clone());
                    let values = |row: usize| tokens.start * row..tokens.end * row;
                    let (q, out) = (&q[values(layer.q_row())], &mut out[values(layer.out_row())]);
                    lse.resize(tokens.len() * layer.query_heads(), 0.0);
                    let batch = Batch { layer, spans: run.spans, q };
                    self.compute(&batch, Output { out, lse, scores: run.scores })
                })
            })?;
            Ok(Attended { saturated, noted })
        })();
        scratch.wide = [wide_q, wide_k, wide_v, wide_out].map(std::mem::take);
        self.scratch.lock().push(scratch);
        done
    }

    fn copy_pages(&self, copies: &[(u32, u32)]) -> Result<(), CacheError> {
        if copies.is_empty() {
            return Ok(());
        }
        Ok(self.write().copy_pages(copies)?)
    }

    fn move_slots(&self, table: TablePages<'_>, moves: &[SlotMove]) -> Result<(), CacheError> {
        Ok(self.write().move_slots(table, moves)?)
    }

    fn read_keys(&self, table: TablePages<'_>, keys: &mut [f32]) -> Result<(), CacheError> {
        Ok(self.read().read_keys(table, 0, keys)?)
    }

    fn read_pages(&self, pages: &[u32], bytes: &mut [u8]) -> Result<(), CacheError> {
        let store = self.read();
        for (&page, bytes) in pages.iter().zip(bytes.chunks_exact_mut(store.page_bytes())) {
            bytes.copy_from_slice(store.page(page)?);
        }
        Ok(())
    }

    fn write_pages(&self, pages: &[u32], bytes: &[u8]) -> Result<(), CacheError> {
        let mut store = self.write();
        let size = store.page_bytes();
        pages
            .iter()
            .zip(bytes.chunks_exact(size))
            .try_for_each(|(&page, bytes)| Ok(store.write_page(page, bytes)?))
    }

    fn poison(&self, pages: &[u32]) -> Result<(), CacheError> {
        if pages.is_empty() {
            return Ok(());
        }
        Ok(self.write().poison(pages)?)
    }

    /// On a host nothing runs behind the caller's back.
    fn close(&self, step: StepId) -> Result<Option<StepId>, CacheError> {
        Ok(Some(step))
    }
}

/// `values[start..]`, empty where that is past the end.
fn tail(values: &[f32], start: usize) -> &[f32] {
    values.get(start..).unwrap_or(&[])
}
