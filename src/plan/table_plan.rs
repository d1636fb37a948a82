//! What the planner must know of page formats.

use super::{class::Class, error::PlanError, fill::FillOrder, window::Windowed};
use crate::base::Window;

/// How many slots a page of each head holds: what the planner must know of page formats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePlan {
    slots_per_page: Box<[u32]>,
    /// Heads by the slots of their pages.
    classes: Box<[Class]>,
    /// The order of a sequence that never evicted.
    order: FillOrder,
    /// Heads that forget.
    windows: Box<[Windowed]>,
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
        let (classes, order) = (classes.into(), FillOrder::new(&by_slots));
        Ok(Self { slots_per_page, classes, order, windows: Box::default() })
    }

    /// The same plan, where heads with a window give pages back as tokens leave it; `None` are heads that
    /// see all tokens. Rollbacks of up to `margin` tokens stay possible ([`BlockManager::truncate`]).
    ///
    /// # Errors
    /// [`PlanError::BadWindows`]: not one entry for each head, or a window that is empty, smaller than its
    /// sinks, or too long to count.
    ///
    /// [`BlockManager::truncate`]: super::BlockManager::truncate
    pub fn with_windows(
        self,
        windows: impl IntoIterator<Item = Option<Window>>,
        margin: usize,
    ) -> Result<Self, PlanError> {
        let windows: Vec<Option<Window>> = windows.into_iter().collect();
        let bad = PlanError::BadWindows { windows: windows.len(), heads: self.heads(), margin };
        if windows.len() != self.heads() {
            return Err(bad);
        }
        let mut heads = Vec::new();
        for (head, window) in windows.into_iter().enumerate() {
            let Some(window) = window else { continue };
            let sound = window.tokens > 0 && window.sinks <= window.tokens;
            let slots = self.slots_per_page(head) as u32;
            match Windowed::new(head, slots, window, margin) {
                Some(windowed) if sound => heads.push(windowed),
                _ => return Err(bad),
            }
        }
        Ok(Self { windows: heads.into(), ..self })
    }

    /// Head tables of a sequence.
    pub fn heads(&self) -> usize {
        self.slots_per_page.len()
    }

    /// Slots of a page of `head`.
    pub fn slots_per_page(&self, head: usize) -> usize {
        self.slots_per_page[head] as usize
    }

    /// Pages of a sequence of `tokens` tokens that never evicted and that came in one step, saturated: no
    /// head has forgotten any.
    pub fn pages_for(&self, tokens: usize) -> usize {
        let pages = self.classes.iter().map(|class| {
            let pages = tokens.div_ceil(class.slots as usize);
            pages.saturating_mul(class.heads.len())
        });
        pages.fold(0, usize::saturating_add)
    }

    /// The most pages that a sequence holds while it grows to `tokens` tokens by at most `chunk` a step and
    /// never evicts, saturated: heads with a window hold no more than it, the margin, a chunk and a page.
    pub fn peak_pages(&self, tokens: usize, chunk: usize) -> usize {
        let spared = self.windows.iter().map(|windowed| {
            let slots = windowed.slots_per_page as usize;
            let held = windowed.most_slots(tokens, chunk.min(tokens));
            tokens.div_ceil(slots) - held.div_ceil(slots)
        });
        self.pages_for(tokens).saturating_sub(spared.fold(0, usize::saturating_add))
    }

    /// Slots that a head has in a sequence of `tokens` tokens that never evicted: all of them, or what its
    /// window and the margin leave.
    pub fn unevicted_slots(&self, head: usize, tokens: usize) -> usize {
        let windowed = self.windows.binary_search_by_key(&head, |w| usize::from(w.head));
        let given = windowed.map_or(0, |index| {
            let windowed = &self.windows[index];
            let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
            windowed.due(0, tokens) as usize * windowed.slots_per_page as usize
        });
        tokens - given
    }

    /// Whether a head gives pages back as tokens leave its window; such heads are not evicted from.
    pub fn is_windowed(&self, head: usize) -> bool {
        self.windows.binary_search_by_key(&head, |windowed| usize::from(windowed.head)).is_ok()
    }

    /// Heads that forget, ascending.
    pub(super) fn windows(&self) -> &[Windowed] {
        &self.windows
    }

    pub(super) fn classes(&self) -> &[Class] {
        &self.classes
    }

    pub(super) fn order(&self) -> &FillOrder {
        &self.order
    }
}
