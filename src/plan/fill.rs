//! Which heads of a sequence are full at which token.
//!
//! Every token of a step goes to every head, so a head that has lost `lost` of `t` tokens has `t - lost`
//! slots in use, and no room in its last page whenever `t ≡ lost` modulo the slots of a page. Only an
//! eviction or a truncation changes that residue. So heads are kept sorted by it, and a step visits those
//! that need a page and no others.

use std::ops::Range;

use super::class::Class;

/// The heads of a sequence in the order in which they fill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FillOrder {
    /// Class by class of the plan, in each by residue, then by head.
    heads: Box<[Fill]>,
    /// The first number of tokens, from those there are on, at which a head is full.
    next: u32,
}

/// When a head is full: at every number of tokens with this residue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fill {
    residue: u16,
    head: u16,
}

impl FillOrder {
    /// The order of heads that lost nothing, which `by_slots` names class by class.
    pub fn new(by_slots: &[u16]) -> Self {
        let heads = by_slots.iter().map(|&head| Fill { residue: 0, head }).collect();
        Self { heads, next: 0 }
    }

    /// Whether `more` tokens after `tokens` fit into the pages that there are.
    pub fn fits(&self, tokens: u32, more: usize) -> bool {
        (tokens as usize).saturating_add(more) <= self.next as usize
    }

    /// The heads that need pages for `more` tokens after `tokens`, and how many.
    pub fn due<'a>(
        &'a self,
        classes: &'a [Class],
        tokens: usize,
        more: usize,
    ) -> impl Iterator<Item = (usize, usize)> + 'a {
        classes.iter().flat_map(move |class| {
            let heads = &self.heads[class.heads.clone()];
            let parts = split(heads, class, tokens, more).into_iter();
            parts.filter(|(_, pages)| *pages > 0).flat_map(move |(range, pages)| {
                heads[range].iter().map(move |fill| (usize::from(fill.head), pages))
            })
        })
    }

    /// Pages that all heads need together, saturated.
    pub fn count(&self, classes: &[Class], tokens: usize, more: usize) -> usize {
        let parts = classes
            .iter()
            .flat_map(|class| split(&self.heads[class.heads.clone()], class, tokens, more));
        let pages = parts.map(|(range, pages)| pages.saturating_mul(range.len()));
        pages.fold(0, usize::saturating_add)
    }

    /// Takes note of how many tokens there are now.
    pub fn move_to(&mut self, classes: &[Class], tokens: u32) {
        let next = classes.iter().filter_map(|class| {
            let heads = &self.heads[class.heads.clone()];
            let at = tokens % class.slots;
            let next = heads.get(below(heads, at)).or(heads.first())?;
            let wait = (u32::from(next.residue) + class.slots - at) % class.slots;
            // A sequence never has more tokens than that.
            Some(tokens.saturating_add(wait))
        });
        self.next = next.min().unwrap_or(u32::MAX);
    }

    /// Sorts the heads anew, after some of them lost tokens.
    pub fn sort(&mut self, classes: &[Class], lost: impl Fn(usize) -> u32) {
        for class in classes {
            let heads = &mut self.heads[class.heads.clone()];
            for fill in &mut *heads {
                fill.residue = (lost(usize::from(fill.head)) % class.slots) as u16;
            }
            heads.sort_unstable();
        }
    }

    /// Bytes of bookkeeping.
    pub fn metadata_bytes(&self) -> usize {
        size_of_val(&*self.heads)
    }
}

/// How many heads have a residue below `residue`.
fn below(heads: &[Fill], residue: u32) -> usize {
    heads.partition_point(|fill| u32::from(fill.residue) < residue)
}

/// The heads of a class in four stretches, with the pages that each of them needs.
fn split(heads: &[Fill], class: &Class, tokens: usize, more: usize) -> [(Range<usize>, usize); 4] {
    let slots = class.slots as usize;
    let (each, rest) = (more / slots, (more % slots) as u32);
    let one_more = each.saturating_add(1);
    let at = (tokens % slots) as u32;
    // Every head fills once in as many tokens as a page has slots; those whose residue is one of the
    // `rest` from `at` on, round and round, do so once more.
    let (start, end) = (below(heads, at), below(heads, at + rest));
    let wrapped = below(heads, (at + rest).saturating_sub(class.slots));
    [
        (0..wrapped, one_more),
        (wrapped..start, each),
        (start..end, one_more),
        (end..heads.len(), each),
    ]
}
