//! The same number of slots for every head.

use super::heads::HeadExtent;

/// Frees `n` pages from the fullest heads first, so that the heads keep as nearly as possible the
/// same number of slots; equally full heads give in their order. Head `i` gives at most
/// `limits[i]`, and together they can give `n`.
pub(super) fn level(heads: &[HeadExtent], limits: &[u32], n: usize) -> Vec<u32> {
    // Pages that a head gives while it holds more than `slots` slots: the partial last page, then
    // whole ones.
    let given = |head: &HeadExtent, limit: u32, slots: usize| match head.pages() {
        pages if head.slots > slots => {
            let given = pages - (slots / head.slots_per_page).min(pages - 1);
            given.min(limit as usize) as u32
        }
        _ => 0,
    };
    let total = |slots: usize| -> usize {
        heads.iter().zip(limits).map(|(head, &limit)| given(head, limit, slots) as usize).sum()
    };

    // The lowest level that frees no more than `n`.
    let (mut low, mut high) = (0, heads.iter().map(|head| head.slots).max().unwrap_or(0));
    while low < high {
        let middle = low + (high - low) / 2;
        if total(middle) <= n { high = middle } else { low = middle + 1 }
    }
    let mut left = n - total(high);
    let mut pages = Vec::with_capacity(heads.len());
    for (head, &limit) in heads.iter().zip(limits) {
        let here = given(head, limit, high);
        let next = high.checked_sub(1).map_or(here, |below| given(head, limit, below));
        let more = u32::from(left > 0 && next > here);
        left -= more as usize;
        pages.push(here + more);
    }
    pages
}
