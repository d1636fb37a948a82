//! Which pages of a head stay in a rewrite.
//!
//! A page that others share must be copied before a slot of it is overwritten. Which slots survive is
//! given; which pages they end up in is not, since a table is a list of pages and compaction keeps no
//! order anyway. So the pages that would have to be copied leave first, and what survives in them moves
//! into pages that the sequence owns alone.

use crate::base::{SlotMove, close_gaps};

/// One head and what a rewrite makes of it.
pub(super) struct Pages<'a> {
    pub slots_per_page: usize,
    /// Slots that survive.
    pub kept: usize,
    /// How the survivors would move if the first pages stayed: says which slots die.
    pub moves: &'a [SlotMove],
    /// For each page whether another sequence holds it too.
    pub shared: &'a [bool],
}

/// The head's pages in an order in which the first ones stay, and the moves within it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub pages: Vec<u32>,
    pub moves: Vec<SlotMove>,
}

/// What keeping a page costs. Pages stay in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// Shared and full of survivors: it is not written, and giving it up would free nothing.
    None,
    /// Owned alone: giving it up would free it.
    Page,
    /// Shared with holes in it: a copy.
    Copy,
}

impl Pages<'_> {
    /// The order of pages that copies the fewest and, among those, frees the most. `None`: the order
    /// they have is one.
    pub fn sparing(&self) -> Option<Order> {
        let (all, width) = (self.shared.len(), self.slots_per_page);
        let stay = self.kept.div_ceil(width);
        let last_fill = self.kept - stay.checked_sub(1)? * width;
        let dead = self.dead();
        let of_page = |page: usize| &dead[page * width..][..width];
        let holes: Vec<usize> =
            (0..all).map(|page| of_page(page).iter().filter(|&&dead| dead).count()).collect();
        let cost = |page: usize| match (self.shared[page], holes[page]) {
            (true, 0) => Cost::None,
            (false, _) => Cost::Page,
            (true, _) => Cost::Copy,
        };
        let mut pages: Vec<usize> = (0..all).collect();
        pages.sort_by_key(|&page| (cost(page), holes[page], page));

        // The last page may end in holes: a shared one that has no others is not written there. It takes
        // the place of one that would be copied, or freed.
        let fits_last =
            |&page: &usize| cost(page) == Cost::Copy && !of_page(page)[..last_fill].contains(&true);
        let fitting = pages.iter().position(fits_last);
        match fitting.filter(|_| cost(pages[stay - 1]) != Cost::None) {
            Some(fitting) => {
                pages.swap(fitting, stay - 1);
                pages[..stay - 1].sort_unstable();
            }
            None => pages[..stay].sort_unstable(),
        }
        pages[stay..].sort_unstable();
        if pages.is_sorted() {
            return None;
        }
        let moved = |slot: usize| dead[pages[slot / width] * width + slot % width];
        let moves = close_gaps(all * width, self.kept, moved);
        Some(Order { pages: pages.into_iter().map(|page| page as u32).collect(), moves })
    }

    /// For each slot of the pages whether nothing in it survives.
    fn dead(&self) -> Vec<bool> {
        let mut dead = vec![true; self.shared.len() * self.slots_per_page];
        dead[..self.kept].fill(false);
        for m in self.moves {
            dead[m.to as usize] = true;
            dead[m.from as usize] = false;
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::compact;

    /// Shared pages that are written when the pages of `order` stay.
    fn copies(order: &[usize], kept: usize, width: usize, dead: &[bool], shared: &[bool]) -> usize {
        let page = |(i, &page): (usize, &usize)| {
            let filled = (kept - i * width).min(width);
            shared[page] && dead[page * width..][..filled].contains(&true)
        };
        order.iter().enumerate().filter(|&at| page(at)).count()
    }

    /// Every choice of `count` of the pages, in every order.
    fn choices(pages: usize, count: usize) -> Vec<Vec<usize>> {
        let mut all = vec![Vec::new()];
        for _ in 0..count {
            all = (all.iter())
                .flat_map(|some: &Vec<usize>| {
                    let rest = (0..pages).filter(|page| !some.contains(page));
                    rest.map(|page| [&some[..], &[page]].concat()).collect::<Vec<_>>()
                })
                .collect();
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// No choice of pages copies fewer, none that copies as few frees more, and the moves bring
        /// every survivor into the pages that stay.
        #[test]
        fn no_choice_copies_fewer(
            shared in prop::collection::vec(any::<bool>(), 1..5),
            width in 1usize..4,
            fill in 1usize..4,
            dies in prop::collection::vec(any::<bool>(), 16),
        ) {
            let all = shared.len();
            let slots = (all - 1) * width + fill.min(width);
            let (kept, moves) = compact(slots, |slot| dies[slot]);
            let stay = kept.div_ceil(width);
            let head = Pages { slots_per_page: width, kept, moves: &moves, shared: &shared };
            let dead: Vec<bool> = (0..all * width).map(|s| s >= slots || dies[s]).collect();
            prop_assert_eq!(&head.dead(), &dead);
            let (order, moves) = match head.sparing() {
                Some(Order { pages, moves }) => (pages, moves),
                None => ((0..all as u32).collect(), moves.clone()),
            };
            let order: Vec<usize> = order.into_iter().map(|page| page as usize).collect();
            let freed = |stay: &[usize]| (0..all).filter(|p| !shared[*p] && !stay.contains(p)).count();
            let copied = |order: &[usize]| copies(order, kept, width, &dead, &shared);
            let (got, stays) = ((copied(&order[..stay]), freed(&order[..stay])), &order[..stay]);
            for other in choices(all, stay) {
                let other = (copied(&other), freed(&other));
                prop_assert!(got.0 < other.0 || got.0 == other.0 && (got.0 > 0 || got.1 >= other.1));
            }
            // The pages that are written are those counted, and the survivors are all there.
            let at = |slot: u32| order[slot as usize / width] * width + slot as usize % width;
            let mut held: Vec<usize> = (0..kept as u32).map(at).collect();
            for m in &moves {
                prop_assert!(dead[at(m.to)] && !dead[at(m.from)] && m.from as usize >= kept);
                held[m.to as usize] = at(m.from);
            }
            held.sort_unstable();
            let survivors: Vec<usize> = (0..slots).filter(|&slot| !dies[slot]).collect();
            prop_assert_eq!(held, survivors);
            let mut written: Vec<usize> = moves.iter().map(|m| m.to as usize / width).collect();
            written.dedup();
            let written = written.iter().filter(|&&page| shared[stays[page]]).count();
            prop_assert_eq!(written, got.0);
        }
    }
}
