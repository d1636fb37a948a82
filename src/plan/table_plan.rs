//! What the planner must know of page formats.

use std::ops::Range;

use super::{error::PlanError, fill::FillOrder};

/// How many slots a page of each head holds: what the planner must know of page formats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePlan {
    slots_per_page: Box<[u32]>,
    /// Heads by the slots of their pages.
    classes: Box<[Class]>,
    /// The order of a sequence that never evicted.
    order: FillOrder,
}

/// Heads whose pages hold equally many slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub slots: u32,
    /// Their places in a [`FillOrder`].
    pub heads: Range<usize>,
}

impl TablePlan {
    /// A plan from the slots per page of each (layer, KV head), layer by layer.
    pub fn new(slots_per_page: impl IntoIterator<Item = usize>) -> Result<Self, PlanError> {
        let slots: Vec<usize> = slots_per_page.into_iter().collect();
        let sizes = 1..=1usize << 16;
        let heads = slots.len();
        if !sizes.contains(&heads) {
            return Err(PlanError::BadTablePlan { heads });
        }
        if let Some(head) = slots.iter().position(|slots| !sizes.contains(slots)) {
            return Err(PlanError::BadPageSlots { head, slots: slots[head] });
        }
        let slots_per_page: Box<[u32]> = slots.into_iter().map(|s| s as u32).collect();
        let mut by_slots: Vec<u16> = (0..heads).map(|head| head as u16).collect();
        by_slots.sort_by_key(|&head| slots_per_page[usize::from(head)]);
        let mut classes: Vec<Class> = Vec::new();
        for (place, &head) in by_slots.iter().enumerate() {
            let slots = slots_per_page[usize::from(head)];
            match classes.last_mut() {
                Some(class) if class.slots == slots => class.heads.end = place + 1,
                _ => classes.push(Class { slots, heads: place..place + 1 }),
            }
        }
        Ok(Self { slots_per_page, classes: classes.into(), order: FillOrder::new(&by_slots) })
    }

    /// Head tables of a sequence.
    pub fn heads(&self) -> usize {
        self.slots_per_page.len()
    }

    /// Slots of a page of `head`.
    pub fn slots_per_page(&self, head: usize) -> usize {
        self.slots_per_page[head] as usize
    }

    /// Pages of a sequence of `tokens` tokens that never evicted, saturated.
    pub fn pages_for(&self, tokens: usize) -> usize {
        let pages = self.classes.iter().map(|class| {
            let pages = tokens.div_ceil(class.slots as usize);
            pages.saturating_mul(class.heads.len())
        });
        pages.fold(0, usize::saturating_add)
    }

    pub(super) fn classes(&self) -> &[Class] {
        &self.classes
    }

    pub(super) fn order(&self) -> &FillOrder {
        &self.order
    }
}
