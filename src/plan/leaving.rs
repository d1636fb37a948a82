//! Pages leave the windows of a sequence.

use super::{
    error::PlanError, member::Member, pool::Page, sequence::Sequence, step::StepOf,
    window::Windowed,
};

/// Pages that leave a head's table when the step is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The head, among all heads of its sequence.
    pub head: usize,
    /// Place of the first of them in the head's table. Those behind them move up.
    pub index: usize,
    /// How many.
    pub pages: usize,
}

impl<M: Member> StepOf<M> {
    /// Pages that leave the tables of heads with a window when the step is committed, each with its
    /// sequence's place in the step: no later query sees what they hold. Where no page leaves, as in most
    /// decode steps, this costs nothing.
    pub fn leaving(&self) -> impl Iterator<Item = (usize, Leaving)> {
        self.sequences().enumerate().flat_map(|(member, (sequence, _))| {
            sequence.leaving().map(move |leaving| (member, leaving))
        })
    }
}

impl Sequence {
    /// Pages that leave at the commit of a step after which there are as many tokens as now.
    pub(super) fn leaving(&self) -> impl Iterator<Item = Leaving> {
        let some = if self.tokens < self.next_leaving { &[][..] } else { self.plan.windows() };
        some.iter().filter_map(|windowed| {
            let head = usize::from(windowed.head);
            let pages = windowed.due(self.heads[head].lost, self.tokens) as usize;
            (pages > 0).then_some(Leaving { head, index: windowed.sink_pages as usize, pages })
        })
    }

    /// Lets pages leave that no query will see again; they go to `dropped`.
    pub(super) fn leave(&mut self, dropped: &mut Vec<Page>) {
        let leaving: Vec<Leaving> = self.leaving().collect();
        for Leaving { head, index, pages } in leaving {
            let slots = self.plan.slots_per_page(head);
            self.tables.remove(head, index..index + pages, dropped);
            let state = &mut self.heads[head];
            if index > 0 && state.listed.is_empty() {
                state.listed = (0..(index * slots) as u32).collect();
            }
            state.lost += (pages * slots) as u32;
        }
        if self.tokens >= self.next_leaving {
            self.note_windows();
        }
    }

    /// Pages that leave at each of the steps to come, if each brings one token.
    pub(super) fn leaving_after(&self, steps: usize) -> usize {
        let tokens =
            |steps: usize| self.tokens.saturating_add(u32::try_from(steps).unwrap_or(u32::MAX));
        let due = |windowed: &Windowed| {
            let lost = self.heads[usize::from(windowed.head)].lost;
            windowed.due(lost, tokens(steps + 1)) - windowed.due(lost, tokens(steps))
        };
        self.plan.windows().iter().map(|windowed| due(windowed) as usize).sum()
    }

    /// Finds out anew when the next page leaves.
    pub(super) fn note_windows(&mut self) {
        let next = |windowed: &Windowed| windowed.next(self.heads[usize::from(windowed.head)].lost);
        self.next_leaving = self.plan.windows().iter().map(next).min().unwrap_or(u32::MAX);
    }

    /// Refuses to cut the sequence to `tokens` tokens where the next query would then see positions that
    /// have left.
    pub(super) fn check_margin(&self, tokens: usize) -> Result<(), PlanError> {
        for windowed in self.plan.windows() {
            let head = usize::from(windowed.head);
            let state = &self.heads[head];
            let first = state.lost as usize + state.listed.len();
            let seen = tokens.saturating_sub(windowed.window as usize - 1);
            // What lies within the sinks' pages is all there.
            if state.lost > 0 && seen < first && tokens > state.listed.len() {
                let least = first + windowed.window as usize - 1;
                return Err(PlanError::PastMargin {
                    head,
                    tokens: self.tokens(),
                    to: tokens,
                    least,
                });
            }
        }
        Ok(())
    }
}
