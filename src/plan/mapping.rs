//! What an engine with kernels of its own needs of a granted step: where each new token goes, and what
//! changed in the tables.

use std::ops::Range;

use super::{
    entry::TableEntry, error::PlanError, member::Member, rewrite::Moving, sequence::Sequence,
    step::StepOf,
};

impl<M: Member> StepOf<M> {
    /// The table entries that the step changed, each with its sequence's place in the step: private
    /// copies of shared pages, and pages for tokens that found no room. Of a step without needs there
    /// are none, and listing them costs what changed, not what there is.
    ///
    /// A mirror that applies them and what is [leaving](Self::leaving) on every [`commit`](Self::commit), and
    /// on every rewrite those of [`Moving::entries`] and the new lengths, has the tables.
    pub fn entries(&self) -> impl Iterator<Item = (usize, TableEntry)> {
        self.sequences().enumerate().flat_map(|(member, (sequence, tokens))| {
            sequence.entries(tokens).map(move |entry| (member, entry))
        })
    }

    /// Where the K and V of the step's tokens go in some heads (those of one layer, or all): `out` is
    /// `[Σ tokens][heads]`, sequences one after another in the order of the step, as rows of K and V are.
    /// Slot `s` of page `p` of a head is `p * slots_per_page + s`: what the `slot_mapping` of a paged
    /// attention is, for each head.
    ///
    /// A decoding token costs an addition per head. Of a chunk, so does each token, besides looking up who
    /// fills a page with it.
    ///
    /// # Errors
    /// `heads` that a member does not have, or `out` of another length; it is then unchanged.
    pub fn slot_mapping(&self, heads: Range<usize>, out: &mut [i64]) -> Result<(), PlanError> {
        let mut tokens = 0;
        for (sequence, new) in self.sequences() {
            let known = sequence.plan().heads();
            if heads.end > known {
                return Err(PlanError::NoSuchHead { head: heads.end - 1, heads: known });
            }
            tokens += new;
        }
        let expected = tokens.saturating_mul(heads.len());
        if out.len() != expected {
            return Err(PlanError::MappingLength { got: out.len(), expected });
        }
        let mut rest = out;
        for (sequence, new) in self.sequences() {
            let rows;
            (rows, rest) = rest.split_at_mut(new * heads.len());
            sequence.map_slots(heads.clone(), new, rows);
        }
        Ok(())
    }
}

impl Moving<'_> {
    /// The table entries that name another page once the rewrite is [committed](Self::commit): private
    /// copies of shared pages, and pages that took another's place. The tables of its heads get as short
    /// as their [`slots_after`](super::HeadMoves::slots_after) need; all else stays.
    pub fn entries(&self) -> impl Iterator<Item = TableEntry> {
        self.work().flat_map(|(sequence, work)| work.entries(sequence))
    }
}

impl Sequence {
    /// Entries that an open guard replaced, and those that the newest `tokens` tokens brought.
    fn entries(&self, tokens: usize) -> impl Iterator<Item = TableEntry> {
        let replaced = self.replaced.iter().map(|replaced| (replaced.head, replaced.index));
        let grown = self.fills.due(self.plan.classes(), self.tokens() - tokens, tokens);
        let grown = grown.flat_map(|(head, pages)| {
            let len = self.tables.len(head);
            (len - pages..len).map(move |index| (head, index))
        });
        replaced.chain(grown).map(|(head, index)| {
            let page = self.tables.page(head, index).id;
            TableEntry { head, index, page }
        })
    }

    /// Fills `rows`, which are `[tokens][heads]`, with the slots of the newest `tokens` tokens.
    fn map_slots(&self, heads: Range<usize>, tokens: usize, rows: &mut [i64]) {
        if heads.is_empty() || tokens == 0 {
            return;
        }
        let end = self.tokens();
        if tokens == 1 {
            return place(rows, &self.origins[heads], end - 1);
        }
        let first = end - tokens;
        let index = |head: usize, token: usize| {
            let slot = token - self.heads[head].lost as usize;
            slot / self.plan.slots_per_page(head)
        };
        let mut origins: Vec<i64> =
            heads.clone().map(|head| self.origin(head, index(head, first))).collect();
        for (row, token) in rows.chunks_exact_mut(heads.len()).zip(first..end) {
            if token > first {
                for (head, _) in self.fills.due(self.plan.classes(), token, 1) {
                    if heads.contains(&head) {
                        origins[head - heads.start] = self.origin(head, index(head, token));
                    }
                }
            }
            place(row, &origins, token);
        }
    }

    /// The slot that token 0 would have if the page at `index` of a head went on in both directions:
    /// that of a token in the page is as far from it as the token is from token 0.
    pub(super) fn origin(&self, head: usize, index: usize) -> i64 {
        let slots = self.plan.slots_per_page(head) as i64;
        let page = i64::from(self.tables.ids(head)[index]);
        (page - index as i64) * slots - i64::from(self.heads[head].lost)
    }

    /// Takes note of a head's last page, which may be another one.
    pub(super) fn update_origin(&mut self, head: usize) {
        if let Some(last) = self.tables.len(head).checked_sub(1) {
            self.origins[head] = self.origin(head, last);
        }
    }
}

/// One row: the token's slot in each head.
fn place(row: &mut [i64], origins: &[i64], token: usize) {
    for (slot, origin) in row.iter_mut().zip(origins) {
        *slot = origin + token as i64;
    }
}
