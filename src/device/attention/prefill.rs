//! Prefill attention: chunks of query tokens, cut into the rows that one block takes.

use std::{cmp::Reverse, sync::Arc};

use super::{args::PrefillItem, decode::Tensors};
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

/// One (sequence, KV head) and the chunk that reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillHead {
    /// Row of the chunk's first token, first query head of this KV head.
    pub query: u32,
    /// Index of its first page in the page ids.
    pub pages: u32,
    /// Slots in use, the chunk's included.
    pub slots: u32,
    /// Query tokens of the chunk, at most `slots`.
    pub tokens: u32,
}

/// Items of at most `most_rows` rows, those that see most slots first: blocks start in order, so the
/// longest work does not come last.
pub fn prefill_items(heads: &[PrefillHead], group: u32, most_rows: u32) -> Vec<PrefillItem> {
    let most_rows = most_rows.max(1);
    let mut items = Vec::new();
    for head in heads {
        let rows = head.tokens * group;
        for first_row in (0..rows).step_by(most_rows as usize) {
            items.push(PrefillItem {
                query: head.query,
                pages: head.pages,
                slots: head.slots,
                before: head.slots.saturating_sub(head.tokens),
                first_row,
                rows: most_rows.min(rows - first_row),
            });
        }
    }
    items.sort_by_key(|item| Reverse(item.before + (item.first_row + item.rows).div_ceil(group)));
    items
}

/// Prefill attention for one specialisation, on device addresses.
#[derive(Debug)]
pub struct Prefiller {
    kernel: Arc<Loaded>,
    terms: Terms,
    group: u32,
    items: Growing,
    planned: (u64, u32),
}

impl Prefiller {
    /// Compiles the kernel.
    pub fn new(
        kernels: &Kernels,
        specialisation: &Specialisation,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let kernel = kernels.get(KernelFile::Prefill, specialisation, stream)?;
        let group = specialisation.group as u32;
        let (terms, items) = (specialisation.terms, Growing::default());
        Ok(Self { kernel, terms, group, items, planned: (0, 0) })
    }

    /// Cuts the chunks of the next launches into items and queues their copy to the device. Memory grows
    /// to what is asked, so a launch that was captured ends with its plan.
    pub fn plan(
        &mut self,
        heads: &[PrefillHead],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let items = prefill_items(heads, self.group, self.kernel.rows().unwrap_or(1));
        self.planned.1 = 0;
        let context = staging.context().clone();
        let at = self.items.upload(&context, staging, stream, &items)?;
        self.planned = (at, items.len() as u32);
        Ok(())
    }

    /// Queues the launch. `row_stride` is the distance from a token's rows to the next token's, in rows:
    /// all query heads of a token. The chunks' own slots are in the pages already; logits are not
    /// written.
    ///
    /// # Errors
    /// [`DeviceError::OtherTerms`] for scoring that the kernel was not compiled for.
    ///
    /// # Safety
    /// The last [`plan`](Self::plan) succeeded and was queued in `stream` or before it, and every
    /// address of `tensors` covers what its heads name, until the stream is done with it.
    pub unsafe fn launch(
        &self,
        tensors: &Tensors,
        row_stride: u32,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let (items, count) = self.planned;
        let Tensors { pages, page_ids, queries, out, lse, scoring, .. } = *tensors;
        scoring.check(self.terms)?;
        let addresses = [pages, page_ids, items, queries, out, lse].map(Argument::U64);
        let arguments: Vec<Argument> = (addresses.into_iter())
            .chain([Argument::U32(row_stride), Argument::F32(scoring.scale)])
            .chain(scoring.window_arguments())
            .chain(scoring.softcap_argument())
            .chain(scoring.sink_arguments())
            .collect();
        // SAFETY: the arguments are those of `headwise_prefill`; the caller vouches for the tensors.
        unsafe { self.kernel.launch(stream, [count, 1, 1], &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_is_in_one_item_and_the_longest_come_first(
            chunks in prop::collection::vec((1u32..300, 0u32..500), 1..8),
            group in 1u32..9,
            most_rows in 1u32..130,
        ) {
            let heads: Vec<PrefillHead> = (0u32..).zip(&chunks).map(|(i, &(tokens, before))| {
                PrefillHead { query: 1000 * i, pages: 10 * i, slots: before + tokens, tokens }
            }).collect();
            let items = prefill_items(&heads, group, most_rows);
            let seen = |item: &PrefillItem| {
                item.before + (item.first_row + item.rows).div_ceil(group)
            };
            prop_assert!(items.windows(2).all(|pair| seen(&pair[0]) >= seen(&pair[1])));
            for (head, &(tokens, before)) in heads.iter().zip(&chunks) {
                let mut rows = vec![0; (tokens * group) as usize];
                for item in items.iter().filter(|item| item.query == head.query) {
                    prop_assert!(item.rows <= most_rows && seen(item) <= head.slots);
                    prop_assert_eq!((item.before, item.pages), (before, head.pages));
                    let (first, count) = (item.first_row as usize, item.rows as usize);
                    rows[first..first + count].iter_mut().for_each(|row| *row += 1);
                }
                prop_assert!(rows.iter().all(|&count| count == 1));
            }
        }
    }
}
