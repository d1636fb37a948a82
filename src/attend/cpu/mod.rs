//! Attention on host cores.
//!
//! A batch is cut into items (query tokens, KV head, piece of the head's slots) that threads take in
//! any order; each leaves an online-softmax state, and the states of a row are merged by their
//! log-sum-exp. Rows that f32 does not hold are computed once more in f64 ([`settle`]). Items with few query rows *stream* K and V from the pages ([`stream`]); items with
//! many *panel* them through matrix products ([`panel`]). `docs/attention.md` says why.

mod accumulate;
mod cap;
mod dispatch;
mod dot;
mod doubt;
mod exp;
mod item;
mod merge;
mod ops;
mod panel;
mod parallel;
mod plan;
mod queries;
mod side;
mod sides;
mod stream;
mod walk;
mod window;

use parking_lot::Mutex;

use self::{
    dispatch::SimdVisitor, item::Item, parallel::in_parallel, plan::Plan, sides::Sides,
    stream::State,
};
use super::{
    Attention,
    batch::Batch,
    error::AttendError,
    output::Output,
    settle::{self, Doubts, MOST_REPLAYED},
};
use crate::{
    base::simd::{Isa, Simd},
    store::{HostStore, StoreError},
};

/// Attention over a [`HostStore`], parallel over the current rayon pool.
///
/// Results do not depend on the number of threads, their scheduling, or what else is in the batch.
#[derive(Debug)]
pub struct CpuAttention {
    isa: Isa,
    /// Buffers for the items' states, kept from call to call.
    buffers: Mutex<Vec<Vec<f32>>>,
}

impl CpuAttention {
    /// With the widest instruction set of this machine.
    pub fn new() -> Self {
        Self { isa: Isa::detect(), buffers: Mutex::default() }
    }

    /// With this instruction set, if the machine has it.
    pub fn with_isa(isa: Isa) -> Result<Self, AttendError> {
        if !Isa::available().contains(&isa) {
            return Err(AttendError::NoSuchIsa(isa));
        }
        Ok(Self { isa, buffers: Mutex::default() })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl Default for CpuAttention {
    fn default() -> Self {
        Self::new()
    }
}

impl Attention<HostStore> for CpuAttention {
    fn attend(
        &self,
        store: &HostStore,
        batch: &Batch<'_>,
        output: Output<'_>,
    ) -> Result<(), AttendError> {
        batch.check(store, &output)?;
        let mut buffer = self.buffers.lock().pop().unwrap_or_default();
        let done = dispatch::visit(self.isa, Run { store, batch, output, buffer: &mut buffer });
        self.buffers.lock().push(buffer);
        Ok(done?)
    }
}

/// A checked call.
struct Run<'a, 'b> {
    store: &'a HostStore,
    batch: &'a Batch<'a>,
    output: Output<'a>,
    buffer: &'b mut Vec<f32>,
}

impl SimdVisitor for Run<'_, '_> {
    type Output = Result<(), StoreError>;

    fn visit<S: Simd>(self, simd: S) -> Self::Output {
        let Run { store, batch, output, buffer } = self;
        let plan = Plan::new(batch);
        let sides: Vec<Sides<'_, S>> = (batch.spans.iter())
            .flat_map(|span| span.heads)
            .map(|head| Sides::new(store.bytes(), head))
            .collect();
        let (group, dim) = (batch.layer.group(), batch.layer.v_dim());
        let state_len =
            |block: &plan::Block| State::row_len(dim) * group * block.tokens.len() * block.pieces;
        buffer.resize(plan.blocks.iter().map(state_len).sum(), 0.0);

        let mut rest = buffer.as_mut_slice();
        let mut items = Vec::new();
        for block in &plan.blocks {
            let (states, tail) = rest.split_at_mut(state_len(block));
            rest = tail;
            let pieces = states.chunks_exact_mut((state_len(block) / block.pieces.max(1)).max(1));
            let sides = &sides[block.span * batch.layer.kv_heads() + block.head];
            items.extend(pieces.take(block.pieces).enumerate().map(|(i, state)| {
                let slots = block.slots(i, &batch.spans[block.span]);
                let first_token = plan.first_token(block.span);
                Item { block, first_token, slots, sides, state }
            }));
        }
        in_parallel(items, |item| item.run(simd, batch));

        merge::merge(simd, batch, &plan, buffer, output.out, output.lse);
        let doubts = Doubts::of(output.lse);
        doubts.settle(store, batch, output.out, output.lse)?;
        if let Some(scores) = output.scores {
            let mut unsure = doubts.unsure_heads(batch, output.lse, scores, MOST_REPLAYED);
            window::score(simd, batch, &plan, &sides, output.lse, scores, &mut unsure);
            settle::rescore(store, batch, &unsure, scores)?;
        }
        Ok(())
    }
}
