//! Scores of slots from the newest queries: ranges of tables, one a block.

use std::sync::Arc;

use super::{args::ScoreItem, decode::Tensors};
use crate::{
    cuda::{
        Growing, Staging,
        driver::{Argument, Stream},
    },
    device::{
        error::DeviceError,
        kernels::{KernelFile, Specialisation, Terms},
        loader::{Kernels, Loaded},
    },
};

/// Slots that one block scores, at least; rounded up to whole pages.
const BLOCK_SLOTS: u32 = 1024;

/// One (sequence, KV head) whose slots are scored, and the query tokens that score them: a window of
/// consecutive tokens, of which token `t` sees the first `before + t + 1` slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowHead {
    /// Row of the window's first token, first query head of this KV head.
    pub query: u32,
    /// Index of its first page in the page ids.
    pub pages: u32,
    /// Slots in use.
    pub slots: u32,
    /// Slots of the table before the window's first token.
    pub before: u32,
    /// Query tokens of the window, at least one.
    pub window: u32,
    /// Newest slots that a token sees and that do not count; `before` is short of them. Looked at in
    /// layers with windows alone, which are counted from what a token sees.
    pub skip: u32,
    /// Where its slot 0 stands in the sums.
    pub sums: u32,
}

/// Items of consecutive slots, cut at pages; together they are each slot once.
pub fn window_items(heads: &[WindowHead], page_slots: u32) -> Vec<ScoreItem> {
    let page_slots = page_slots.max(1);
    let block = BLOCK_SLOTS.next_multiple_of(page_slots);
    let of_head = |head: &WindowHead| {
        let WindowHead { query, pages, slots, before, window, skip, sums } = *head;
        (0..slots).step_by(block as usize).map(move |first_slot| ScoreItem {
            query,
            pages: pages + first_slot / page_slots,
            slots: block.min(slots - first_slot),
            first_slot,
            before,
            window,
            sums: sums + first_slot,
            skip,
        })
    };
    heads.iter().flat_map(of_head).collect()
}

/// Squared attention probabilities of the newest queries for one specialisation, on device addresses:
/// what [`pool_scores`](crate::device::eviction::pool_scores) makes scores at rest of.
#[derive(Debug)]
pub struct WindowScorer {
    kernel: Arc<Loaded>,
    terms: Terms,
    group: u32,
    page_slots: u32,
    items: Growing,
    planned: (u64, u32),
}

impl WindowScorer {
    /// Compiles the kernel.
    pub fn new(
        kernels: &Kernels,
        specialisation: &Specialisation,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let kernel = kernels.get(KernelFile::Score, &specialisation.of_score(), stream)?;
        let (group, page_slots) = (specialisation.group as u32, specialisation.layout.slots as u32);
        let (terms, items) = (specialisation.terms, Growing::default());
        Ok(Self { kernel, terms, group, page_slots, items, planned: (0, 0) })
    }

    /// Cuts the heads of the next launches into items and queues their copy to the device. Memory grows
    /// to what is asked, so a launch that was captured ends with its plan.
    pub fn plan(
        &mut self,
        heads: &[WindowHead],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let items = window_items(heads, self.page_slots);
        self.planned.1 = 0;
        let context = staging.context().clone();
        let at = self.items.upload(&context, staging, stream, &items)?;
        self.planned = (at, items.len() as u32);
        Ok(())
    }

    /// Queues the launch: `[slots, group]` f32 at `sums`, from the queries and log-sum-exps that
    /// attention left. `row_stride` as for [`Prefiller`](super::Prefiller); outputs and logits are not
    /// looked at.
    ///
    /// # Errors
    /// [`DeviceError::OtherTerms`] for scoring that the kernel was not compiled for.
    ///
    /// # Safety
    /// The last [`plan`](Self::plan) succeeded and was queued in `stream` or before it, and `sums` and
    /// every address of `tensors` cover what its heads name, until the stream is done with it.
    pub unsafe fn launch(
        &self,
        tensors: &Tensors,
        sums: u64,
        row_stride: u32,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let (items, count) = self.planned;
        let Tensors { pages, page_ids, queries, lse, scoring, .. } = *tensors;
        scoring.check(self.terms)?;
        let addresses = [pages, page_ids, items, queries, lse, sums].map(Argument::U64);
        let arguments: Vec<Argument> = (addresses.into_iter())
            .chain([Argument::U32(row_stride), Argument::F32(scoring.scale)])
            .chain(scoring.window_arguments())
            .chain(scoring.softcap_argument())
            .collect();
        // SAFETY: the arguments are those of `headwise_score`; the caller vouches for the tensors.
        unsafe { self.kernel.launch(stream, [count, self.group, 1], &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_slot_is_in_one_item_that_starts_at_a_page(
            lengths in prop::collection::vec(0u32..5000, 0..8), page_slots in 1u32..3000,
        ) {
            let mut sums = 0;
            let heads: Vec<WindowHead> = (0u32..).zip(&lengths).map(|(i, &slots)| {
                let head = WindowHead {
                    query: i, pages: 10_000 * i, slots, before: slots / 2, window: 3, skip: i, sums,
                };
                sums += slots;
                head
            }).collect();
            let items = window_items(&heads, page_slots);
            for head in &heads {
                let mut next = 0;
                for item in items.iter().filter(|item| item.query == head.query) {
                    prop_assert_eq!((item.first_slot, item.sums), (next, head.sums + next));
                    prop_assert_eq!(item.pages, head.pages + next / page_slots);
                    prop_assert!(next % page_slots == 0 && item.slots > 0);
                    prop_assert_eq!((item.before, item.window), (head.before, head.window));
                    prop_assert_eq!(item.skip, head.skip);
                    next += item.slots;
                }
                prop_assert_eq!(next, head.slots);
            }
        }
    }
}
