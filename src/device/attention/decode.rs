//! Decode attention: one query token per sequence, in buffers of fixed size.

use std::sync::Arc;

use super::{
    args::{ItemPlace, MergeItem, WorkItem},
    scoring::Scoring,
};
use crate::{
    cuda::{
        Staging,
        driver::{Argument, DeviceBuffer, Stream},
    },
    device::{
        error::DeviceError,
        kernels::{KernelFile, Specialisation},
        loader::{Kernels, Loaded},
        work::{NO_PARTIAL, WorkCost, WorkLimits, WorkPlan},
    },
};

/// What reading a page costs besides its bytes, in bytes: its id and the latency of its first access,
/// spread over the pages that are under way together.
const PAGE_COST: u32 = 128;
/// What an item costs, in bytes that its block could have read meanwhile: filling its ring, staging the
/// queries, merging the warps, writing the result. Some three microseconds of the 15 KB that a block
/// reads in each (docs/gpu-log.md).
const ITEM_COST: u32 = 48 << 10;
/// The fewest slots worth an item of their own.
const MIN_SLOTS: u32 = 128;

/// One (sequence, KV head) and the query group that reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeHead {
    /// First of the group's rows in queries, outputs and log-sum-exps.
    pub query: u32,
    /// Index of its first page in the page ids.
    pub pages: u32,
    /// Slots in use.
    pub slots: u32,
    /// Index of its first slot in the logits; only looked at by kernels that write them.
    pub logits: u32,
}

/// The work of one decode launch, as the kernels read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodePlan {
    /// All items, list after list.
    pub items: Vec<WorkItem>,
    /// Block `i` does `items[lists[i]..lists[i + 1]]`.
    pub lists: Vec<u32>,
    /// Query groups whose heads were cut.
    pub merges: Vec<MergeItem>,
    /// Partial results that the items write.
    pub partials: u32,
    /// The item that holds the end of each head, in the order of the heads: where it grows.
    pub ends: Vec<u32>,
    /// Where each item lies in its table, for layers with windows; else none.
    pub places: Vec<ItemPlace>,
}

impl DecodePlan {
    /// Divides `heads` over `blocks` blocks.
    pub fn new(heads: &[DecodeHead], specialisation: &Specialisation, blocks: u32) -> Self {
        let layout = &specialisation.layout;
        let page_slots = layout.slots as u32;
        // Each sixteen query heads read the pages again, from cache: the weights stay in proportion.
        let cost = WorkCost {
            page_slots,
            slot_bytes: layout.slot_bytes() as u32,
            page: PAGE_COST,
            range: ITEM_COST,
        };
        let limits = WorkLimits { lists: blocks, min_slots: MIN_SLOTS };
        let slots: Vec<u32> = heads.iter().map(|head| head.slots).collect();
        let plan = WorkPlan::new(&slots, &cost, &limits);
        let item = |range: &crate::device::work::WorkRange| {
            let head = heads[range.head as usize];
            debug_assert!(range.partial == NO_PARTIAL || range.partial < plan.partials);
            WorkItem {
                query: head.query,
                pages: head.pages + range.first_page,
                slots: range.slots,
                partial: range.partial,
                logits: head.logits + range.first_page * page_slots,
                reserved: 0,
            }
        };
        let mut ends = vec![0; heads.len()];
        let mut last = vec![0; heads.len()];
        for (item, range) in (0..).zip(&plan.ranges) {
            let head = range.head as usize;
            if range.first_page >= last[head] {
                (last[head], ends[head]) = (range.first_page, item);
            }
        }
        let merge = |merge: &crate::device::work::WorkMerge| {
            let query = heads[merge.head as usize].query;
            MergeItem { query, first: merge.first, count: merge.count }
        };
        let place = |range: &crate::device::work::WorkRange| ItemPlace {
            first: range.first_page * page_slots,
            last: ends[range.head as usize],
        };
        let placed = if specialisation.terms.window { &plan.ranges[..] } else { &[] };
        Self {
            places: placed.iter().map(place).collect(),
            items: plan.ranges.iter().map(item).collect(),
            merges: plan.merges.iter().map(merge).collect(),
            lists: plan.lists,
            partials: plan.partials,
            ends,
        }
    }
}

/// Device addresses that a launch works on.
#[derive(Clone, Copy, Debug)]
pub struct Tensors {
    /// The page arena.
    pub pages: u64,
    /// Page ids, u32.
    pub page_ids: u64,
    /// Query rows of the IO format.
    pub queries: u64,
    /// Output rows of the IO format.
    pub out: u64,
    /// Log-sum-exps, f32, one per row.
    pub lse: u64,
    /// Scaled scores `[slots, group]`, f32, of a specialisation that has them; 0 writes none.
    pub logits: u64,
    /// What is done to scores.
    pub scoring: Scoring,
}

/// Decode attention for one specialisation, up to a number of (sequence, KV head) pairs.
///
/// All of its memory is allocated at once and never moves; a launch has always the same blocks, and
/// the merges are padded to a power of two. A captured graph stays valid while
/// [`merge_blocks`](Self::merge_blocks) does not change.
#[derive(Debug)]
pub struct Decoder {
    specialisation: Specialisation,
    decode: Arc<Loaded>,
    /// The same without logits, where the specialisation has them.
    plain: Arc<Loaded>,
    merge: Arc<Loaded>,
    blocks: u32,
    most_heads: usize,
    items: DeviceBuffer,
    lists: DeviceBuffer,
    /// Of layers with windows.
    places: Option<DeviceBuffer>,
    merges: DeviceBuffer,
    partial_out: DeviceBuffer,
    partial_lse: DeviceBuffer,
    merge_blocks: u32,
}

impl Decoder {
    /// Compiles the kernels and allocates for `most_heads` pairs.
    pub fn new(
        kernels: &Kernels,
        specialisation: Specialisation,
        most_heads: usize,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let decode = kernels.get(KernelFile::Decode, &specialisation, stream)?;
        let without = Specialisation { logits: false, ..specialisation };
        let plain = kernels.get(KernelFile::Decode, &without, stream)?;
        let merge = kernels.get(KernelFile::Merge, &specialisation.of_merge(), stream)?;
        let blocks = kernels.multiprocessors() * decode.blocks_per_multiprocessor();
        let most_items = WorkPlan::most_ranges(most_heads, blocks);
        let buffer = |bytes: usize| DeviceBuffer::new(kernels.context(), bytes);
        let rows = most_items * specialisation.group;
        let placed = specialisation.terms.window.then_some(most_items * size_of::<ItemPlace>());
        Ok(Self {
            decode,
            plain,
            merge,
            blocks,
            most_heads,
            items: buffer(most_items * size_of::<WorkItem>())?,
            places: placed.map(buffer).transpose()?,
            lists: buffer((blocks as usize + 1) * size_of::<u32>())?,
            merges: buffer(most_heads.next_power_of_two() * size_of::<MergeItem>())?,
            partial_out: buffer(rows * specialisation.layout.channels.v * size_of::<f32>())?,
            partial_lse: buffer(rows * size_of::<f32>())?,
            specialisation,
            merge_blocks: 0,
        })
    }

    /// What the kernels were compiled for.
    pub fn specialisation(&self) -> &Specialisation {
        &self.specialisation
    }

    /// The most pairs that [`plan`](Self::plan) takes.
    pub fn most_heads(&self) -> usize {
        self.most_heads
    }

    /// Blocks of the decode launch: what a [`DecodePlan`] is divided over.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Where the items are on the device, for [`StepAppender`](super::StepAppender) to count; it never
    /// changes.
    pub fn items(&self) -> u64 {
        self.items.address()
    }

    /// Blocks of the merge's launch, which a captured graph has fixed. Never falls.
    pub fn merge_blocks(&self) -> u32 {
        self.merge_blocks
    }

    /// Divides the work of the next launches and queues its copy to the device.
    ///
    /// # Errors
    /// [`DeviceError::TooManyHeads`] beyond [`most_heads`](Self::most_heads).
    pub fn plan(
        &mut self,
        heads: &[DecodeHead],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let plan = DecodePlan::new(heads, &self.specialisation, self.blocks);
        self.upload(plan, staging, stream)
    }

    /// Queues the copy of a plan that was made for this decoder's [`blocks`](Self::blocks).
    ///
    /// # Errors
    /// [`DeviceError::TooManyHeads`] for a plan of more heads than the decoder was made for,
    /// [`DeviceError::OtherPlan`] for one that was divided over other blocks or leads outside its own
    /// items and partial results. The last plan stays then.
    pub fn upload(
        &mut self,
        mut plan: DecodePlan,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        if plan.ends.len() > self.most_heads {
            let (heads, most) = (plan.ends.len(), self.most_heads);
            return Err(DeviceError::TooManyHeads { heads, most });
        }
        if let Some(problem) = self.unfit(&plan) {
            let (items, lists) = (plan.items.len(), plan.lists.len().saturating_sub(1));
            return Err(DeviceError::OtherPlan { items, lists, blocks: self.blocks, problem });
        }
        let needed = match plan.merges.len() {
            0 => 0,
            merges => merges.next_power_of_two() as u32,
        };
        self.merge_blocks = self.merge_blocks.max(needed);
        plan.merges.resize(self.merge_blocks as usize, MergeItem::NONE);
        let mut upload =
            |to: &mut DeviceBuffer, bytes: &[u8]| staging.upload(stream, to, [(0, bytes)]);
        upload(&mut self.items, bytemuck::cast_slice(&plan.items))?;
        upload(&mut self.lists, bytemuck::cast_slice(&plan.lists))?;
        if let Some(places) = &mut self.places {
            upload(places, bytemuck::cast_slice(&plan.places))?;
        }
        Ok(upload(&mut self.merges, bytemuck::cast_slice(&plan.merges))?)
    }

    /// Why a launch could not follow `plan`: what it would read of the lists and write of the partial
    /// results, which are the decoder's own.
    fn unfit(&self, plan: &DecodePlan) -> Option<&'static str> {
        let most_items = self.items.bytes() / size_of::<WorkItem>();
        let row = self.specialisation.group * size_of::<f32>();
        let most_partials = (self.partial_lse.bytes() / row.max(1)) as u64;
        let partials = u64::from(plan.partials);
        let ascending = plan.lists.is_sorted() && plan.lists.first() == Some(&0);
        if plan.lists.len() != self.blocks as usize + 1 {
            return Some("it was divided over other blocks");
        }
        if !ascending || plan.lists.last().copied() != u32::try_from(plan.items.len()).ok() {
            return Some("its lists are not those of its items");
        }
        if plan.items.len() > most_items || partials > most_partials {
            return Some("there is no room for all items or partial results");
        }
        let written = |item: &WorkItem| item.partial == NO_PARTIAL || item.partial < plan.partials;
        let read = |merge: &MergeItem| {
            *merge == MergeItem::NONE || u64::from(merge.first) + u64::from(merge.count) <= partials
        };
        if !plan.items.iter().all(written) || !plan.merges.iter().all(read) {
            return Some("an item or a merge names a partial result that is none of its own");
        }
        let placed = plan.places.iter().all(|place| (place.last as usize) < plan.items.len());
        if self.places.is_some() && !(placed && plan.places.len() == plan.items.len()) {
            return Some("its items have no places in their tables, or those of others");
        }
        (plan.merges.len() > self.most_heads).then_some("there is no room for all merges")
    }

    /// Queues the planned launches.
    ///
    /// # Errors
    /// [`DeviceError::OtherTerms`] for scoring that the kernels were not compiled for.
    ///
    /// # Safety
    /// The last [`plan`](Self::plan) or [`upload`](Self::upload) succeeded and was queued in `stream` or
    /// before it, and every address of `tensors` covers what the plan's items name, until the stream is
    /// done with it.
    pub unsafe fn launch(&self, tensors: &Tensors, stream: &Stream) -> Result<(), DeviceError> {
        let scoring = &tensors.scoring;
        scoring.check(self.specialisation.terms)?;
        let group = self.specialisation.group as u32;
        let [items, lists, merges, partial_out, partial_lse] =
            [&self.items, &self.lists, &self.merges, &self.partial_out, &self.partial_lse]
                .map(|buffer| Argument::U64(buffer.address()));
        let [pages, page_ids, queries, out, lse, logits] = [
            tensors.pages,
            tensors.page_ids,
            tensors.queries,
            tensors.out,
            tensors.lse,
            tensors.logits,
        ]
        .map(Argument::U64);
        let addresses =
            [pages, page_ids, items, lists, queries, out, lse, partial_out, partial_lse, logits];
        let places = self.places.iter().map(|places| Argument::U64(places.address()));
        let arguments: Vec<Argument> = (addresses.into_iter())
            .chain([Argument::F32(scoring.scale)])
            .chain(places)
            .chain(scoring.window_arguments())
            .chain(scoring.softcap_argument())
            .chain(scoring.sink_arguments())
            .collect();
        let decode = if tensors.logits == 0 { &self.plain } else { &self.decode };
        // SAFETY: the arguments are those of `headwise_decode`; lists and partial results of the plan
        // were checked against the buffers; the caller vouches for the tensors.
        unsafe { decode.launch(stream, [self.blocks, group.div_ceil(16), 1], &arguments) }?;
        let arguments: Vec<Argument> = [merges, partial_out, partial_lse, out, lse]
            .into_iter()
            .chain(scoring.sink_arguments())
            .collect();
        // SAFETY: the arguments are those of `headwise_merge`; the items are of the same plan.
        unsafe { self.merge.launch(stream, [self.merge_blocks, group, 1], &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::{PageFormat, PageLayout};

    proptest! {
        /// Items name each slot of each head once, at its page and its logit.
        #[test]
        fn items_cover_each_slot_once(
            slots in prop::collection::vec(0u32..5000, 1..20), blocks in 1u32..200,
        ) {
            let layout = PageLayout::new(PageFormat::default(), 64, 8192).unwrap();
            let page_slots = layout.slots as u32;
            let specialisation = Specialisation::new(layout, 4);
            let (mut pages, mut logits) = (7, 0);
            let heads: Vec<DecodeHead> = (0u32..).zip(&slots).map(|(i, &slots)| {
                let head = DecodeHead { query: 4 * i, pages, slots, logits };
                pages += slots.div_ceil(page_slots) + 1;
                logits += slots;
                head
            }).collect();
            let plan = DecodePlan::new(&heads, &specialisation, blocks);
            prop_assert_eq!(plan.lists.len(), blocks as usize + 1);
            for (index, head) in heads.iter().enumerate() {
                let mut items: Vec<&WorkItem> =
                    plan.items.iter().filter(|item| item.query == head.query).collect();
                items.sort_by_key(|item| item.pages);
                prop_assert_eq!(items.last(), Some(&&plan.items[plan.ends[index] as usize]));
                let mut covered = 0;
                for item in &items {
                    prop_assert_eq!(item.pages, head.pages + covered / page_slots);
                    prop_assert_eq!(item.logits, head.logits + covered);
                    covered += item.slots;
                }
                prop_assert_eq!(covered, head.slots);
                let merge: Vec<_> =
                    plan.merges.iter().filter(|merge| merge.query == head.query).collect();
                prop_assert_eq!(merge.len(), usize::from(items.len() > 1));
                for (i, item) in items.iter().enumerate() {
                    let partial = merge.first().map_or(NO_PARTIAL, |m| m.first + i as u32);
                    prop_assert_eq!(item.partial, partial);
                }
            }
        }
    }
}
