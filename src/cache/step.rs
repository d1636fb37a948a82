//! A step: append and attend, layer by layer.

use std::sync::Arc;

use super::{
    error::CacheError,
    host::HostMemory,
    kv_cache::KvCache,
    layouts::HeadLayouts,
    member::{KvMember, SequenceGuard, SharedSequence},
    memory::{Attended, LayerWork, MemberWork, Memory},
    observe::{Noted, Wish},
    sequence::KvSequence,
};
use crate::plan::{self, Member, Sequence};

/// A cache as a step holds it: borrowed, or by a handle.
pub trait CacheRef {
    /// The cache's memory.
    type Memory: Memory;
    /// The cache.
    fn cache(&self) -> &KvCache<Self::Memory>;
}

impl<M: Memory> CacheRef for &KvCache<M> {
    type Memory = M;
    fn cache(&self) -> &KvCache<M> {
        self
    }
}

impl<M: Memory> CacheRef for Arc<KvCache<M>> {
    type Memory = M;
    fn cache(&self) -> &KvCache<M> {
        self
    }
}

/// One iteration of the engine over some sequences, whose pages are reserved.
///
/// Dropped without [`commit`](Self::commit), it leaves the sequences as they were, scores included.
#[derive(Debug)]
#[must_use = "a step that is dropped is rolled back"]
pub struct StepOf<C: CacheRef, S: KvMember> {
    cache: C,
    step: Option<plan::StepOf<Held<S>>>,
    noted: Vec<Noted>,
    next_layer: usize,
    saturated: u64,
}

/// A step that borrows its cache and its sequences for as long as it lasts.
pub type CacheStep<'a, M = HostMemory> = StepOf<&'a KvCache<M>, &'a mut KvSequence>;

/// A step that borrows nothing: it keeps its cache alive and its sequences locked, can be stored in a
/// struct, sent to another thread, and held across layers while other sequences are opened, stepped,
/// forked and dropped. Forgotten (`mem::forget`), it takes its sequences along: they stay locked, with their
/// pages.
pub type SharedStep<M = HostMemory> = StepOf<Arc<KvCache<M>>, SequenceGuard>;

/// A member of a step, and what the step needs of it beside its tables.
#[derive(Debug)]
struct Held<S> {
    sequence: S,
    layouts: Arc<HeadLayouts>,
    wish: Wish,
}

impl<S: KvMember> Member for Held<S> {
    fn tables(&self) -> &Sequence {
        &self.sequence.sequence().tables
    }

    fn tables_mut(&mut self) -> &mut Sequence {
        &mut self.sequence.sequence_mut().tables
    }
}

impl<M: Memory> KvCache<M> {
    /// Reserves pages for the new tokens of all `members`: all or nothing. What a forgotten step of a
    /// member left (`mem::forget`) is taken back first.
    pub fn step<'a>(
        &'a self,
        members: impl IntoIterator<Item = (&'a mut KvSequence, usize)>,
    ) -> Result<CacheStep<'a, M>, CacheError> {
        begin(self, members)
    }

    /// As [`step`](Self::step), for sequences by handle.
    ///
    /// # Errors
    /// [`CacheError::Busy`] for a sequence that another step has, or a thread, or this step already.
    ///
    /// ```
    /// use std::{collections::HashMap, sync::Arc, thread};
    /// use headwise::{
    ///     base::CacheShape,
    ///     cache::{CacheConfig, KvCache, SharedSequence, SharedStep},
    /// };
    ///
    /// /// What a server's step takes along to wherever its model runs.
    /// struct Job {
    ///     requests: Vec<u64>,
    ///     step: SharedStep,
    /// }
    ///
    /// let shape = CacheShape::new(2, 1, 1, 16)?;
    /// let cache = Arc::new(KvCache::new(&CacheConfig::new(shape, 64))?);
    /// let mut sequences: HashMap<u64, SharedSequence> =
    ///     (0..3).map(|request| (request, cache.sequence().into())).collect();
    /// let requests: Vec<u64> = sequences.keys().copied().collect();
    /// let step = cache.step_shared(requests.iter().map(|request| (&sequences[request], 1)))?;
    /// let job = Job { requests, step };
    /// let worker = thread::spawn(move || {
    ///     let Job { requests, mut step } = job;
    ///     for layer in 0..2 {
    ///         let (rows, mut out) = (vec![0.5; requests.len() * 16], vec![0.0; requests.len() * 16]);
    ///         step.attend(layer, &rows, &rows, &rows, &mut out).unwrap();
    ///     }
    ///     step.commit().unwrap();
    /// });
    /// // Meanwhile requests come and go.
    /// sequences.insert(3, cache.sequence().into());
    /// sequences.remove(&0);
    /// worker.join().unwrap();
    /// assert_eq!((sequences[&1].lock().tokens(), sequences[&3].lock().tokens()), (1, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn step_shared<'s>(
        self: &Arc<Self>,
        members: impl IntoIterator<Item = (&'s SharedSequence, usize)>,
    ) -> Result<SharedStep<M>, CacheError> {
        let lock = |(member, (sequence, tokens)): (usize, (&SharedSequence, usize))| {
            let guard = sequence.try_lock().ok_or(CacheError::Busy { member })?;
            Ok((guard, tokens))
        };
        let members = members.into_iter().enumerate().map(lock);
        begin(Arc::clone(self), members.collect::<Result<Vec<_>, CacheError>>()?)
    }
}

fn begin<C: CacheRef, S: KvMember>(
    cache: C,
    members: impl IntoIterator<Item = (S, usize)>,
) -> Result<StepOf<C, S>, CacheError> {
    let mut held: Vec<(Held<S>, usize)> = Vec::new();
    for (mut sequence, tokens) in members {
        cache.cache().check_owner(sequence.sequence())?;
        // What forgotten steps give back is behind the fence that is opened next.
        sequence.sequence_mut().recover()?;
        let watched = sequence.sequence();
        let (layouts, wish) =
            (Arc::clone(&watched.layouts), Wish::of(watched.watch.as_ref(), tokens));
        held.push((Held { sequence, layouts, wish }, tokens));
    }
    let step = cache.cache().settled(|manager| manager.reserve_members(held))?;
    let step = step.map_err(|refused| refused.error)?;
    let copies: Vec<(u32, u32)> = step.copies().iter().map(|c| (c.from, c.to)).collect();
    cache.cache().memory.copy_pages(&copies)?;
    let (noted, next_layer, saturated) = (Vec::new(), 0, 0);
    Ok(StepOf { cache, step: Some(step), noted, next_layer, saturated })
}

impl<C: CacheRef, S: KvMember> StepOf<C, S> {
    /// The memory of the cache.
    pub fn memory(&self) -> &C::Memory {
        self.cache.cache().memory()
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.step.iter().flat_map(plan::StepOf::sequences).map(|(_, tokens)| tokens).sum()
    }

    /// The sequences of the step in the order they were given, with their new tokens, which they count
    /// already.
    pub fn sequences(&self) -> impl Iterator<Item = (&KvSequence, usize)> {
        let members = self.step.iter().flat_map(plan::StepOf::members);
        members.map(|(held, tokens)| (held.sequence.sequence(), tokens))
    }

    /// Keys and values of the layers so far that their formats could not hold, and that were saturated:
    /// the sequence's formats asked for that ([`FormatMap::on_overflow`](super::FormatMap::on_overflow)).
    /// Devices count for themselves ([`KvCache::saturated`]).
    pub fn saturated(&self) -> u64 {
        self.saturated
    }

    /// Appends `k` and `v` of `layer` to every sequence, then attends causally with `q`.
    ///
    /// `q` is `[Σ tokens][query_heads][k_dim]` and `out` `[Σ tokens][query_heads][v_dim]`, `k` is
    /// `[Σ tokens][kv_heads][k_dim]` and `v` `[Σ tokens][kv_heads][v_dim]` of the [layer's
    /// shape](crate::base::LayerShape), sequences one after another in the order of the step. Where V is a
    /// part of K, `v` is empty. Layers come in order, each once. In host memory these are slices or vectors
    /// of f32, f16 or bf16 ([`HostRows`](super::HostRows), [`HostOut`](super::HostOut)).
    ///
    /// # Errors
    /// [`CacheError::OutOfRange`] for a key or value that its page format cannot hold, NaN and the
    /// infinities included (devices saturate and count instead); besides bad input. The layer can then be
    /// attempted again, with other rows or the same, or the step be dropped: nothing of the attempt is
    /// counted, and no slot that a sequence had before the step is touched.
    pub fn attend<'r>(
        &mut self,
        layer: usize,
        q: impl Into<<C::Memory as Memory>::Rows<'r>>,
        k: impl Into<<C::Memory as Memory>::Rows<'r>>,
        v: impl Into<<C::Memory as Memory>::Rows<'r>>,
        out: impl Into<<C::Memory as Memory>::Out<'r>>,
    ) -> Result<(), CacheError> {
        let cache = self.cache.cache();
        let (expected, layers) = (self.next_layer, cache.shape().layers());
        if layer != expected || layer >= layers {
            return Err(CacheError::LayerOrder { got: layer, expected, layers });
        }
        let of = cache.shape().layer(layer);
        let members: Vec<MemberWork<'_>> = (self.step.iter().flat_map(plan::StepOf::members))
            .map(|(held, tokens)| MemberWork {
                tables: held.tables(),
                layouts: &held.layouts,
                tokens,
                // Nothing is evicted from heads with a window.
                wish: if of.window().is_some() { Wish::Nothing } else { held.wish },
                watch: held.sequence.sequence().watch.as_ref(),
            })
            .collect();
        let first_head = cache.shape().head_index(layer, 0);
        let work = LayerWork { index: layer, layer: of, first_head, members: &members };
        let (q, k, v, out) = (q.into(), k.into(), v.into(), out.into());
        cache.memory.check(&work, q, k, v, &out)?;
        let Attended { saturated, noted } = cache.memory.attend(&work, q, k, v, out)?;
        self.noted.extend(noted);
        self.next_layer += 1;
        self.saturated += saturated;
        Ok(())
    }

    /// Keeps the new tokens.
    ///
    /// # Errors
    /// A layer is missing; the step is then rolled back.
    pub fn commit(mut self) -> Result<(), CacheError> {
        let layers = self.cache.cache().shape().layers();
        if self.next_layer != layers {
            return Err(CacheError::MissingLayers { given: self.next_layer, layers });
        }
        if let Some(step) = self.step.take() {
            let mut members = step.commit();
            for Noted { member, head, scores } in self.noted.drain(..) {
                if let Some(watch) = &mut members[member].sequence.sequence_mut().watch {
                    watch.scores[head] = scores;
                }
            }
            for held in &mut members {
                let KvSequence { tables, watch, .. } = held.sequence.sequence_mut();
                if let Some(watch) = watch {
                    watch.grow(tables);
                }
            }
            self.cache.cache().count_saturated(self.saturated);
        }
        self.cache.cache().settle_if_it_can();
        Ok(())
    }
}

impl<C: CacheRef, S: KvMember> Drop for StepOf<C, S> {
    fn drop(&mut self) {
        if let Some(step) = self.step.take() {
            drop(step);
            self.cache.cache().settle_if_it_can();
        }
    }
}
