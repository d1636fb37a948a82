//! One work item: query tokens of a span against a piece of one head.

use std::{cell::RefCell, f32::consts::LOG2_E, ops::Range};

use super::{
    panel::{self, Workspace},
    plan::Block,
    queries::Queries,
    sides::Sides,
    stream::{State, stream},
};
use crate::{attend::batch::Batch, base::simd::Simd};

/// See the module.
pub(super) struct Item<'a, 's, S: Simd> {
    pub block: &'a Block,
    /// The span's first token in the batch.
    pub first_token: usize,
    pub slots: Range<usize>,
    pub sides: &'a Sides<'a, S>,
    /// Where the rows' [`State`] is left; rows are `[token][query head of the group]`.
    pub state: &'s mut [f32],
}

/// Buffers of one thread, kept from item to item.
#[derive(Default)]
struct Buffers {
    q: Vec<f32>,
    /// What all rows of each panel see.
    common: Vec<Range<usize>>,
    panels: Workspace,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl<S: Simd> Item<'_, '_, S> {
    pub fn run(self, simd: S, batch: &Batch<'_>) {
        BUFFERS.with_borrow_mut(|buffers| self.run_with(simd, batch, buffers));
    }

    fn run_with(self, simd: S, batch: &Batch<'_>, buffers: &mut Buffers) {
        let (block, group) = (self.block, batch.layer.group());
        let tokens = self.first_token + block.tokens.start..self.first_token + block.tokens.end;
        gather(batch, tokens, block.head, &mut buffers.q);
        let q = Queries::new(batch.layer, &buffers.q);
        let rows = group * block.tokens.len();
        let mut state = State::new(self.state, rows);
        state.clear();

        // All rows of a panel see the slots that its first token and its last one see; the few more that
        // each token sees, before those and after, are streamed to its rows, so that no row touches a slot
        // it must not.
        let span = &batch.spans[block.span];
        let seen =
            |row: usize| block.seen(batch, span, block.tokens.start + row / group, &self.slots);
        let width = if block.panels { panel::width::<S>() } else { rows };
        buffers.common.clear();
        buffers.common.extend((0..rows).step_by(width).map(|row| {
            let (first, last) = (seen(row), seen((row + width).min(rows) - 1));
            if last.start < first.end { last.start..first.end } else { first.start..first.start }
        }));
        if block.panels {
            let (common, work) = (&buffers.common, &mut buffers.panels);
            panel::attend_panels(simd, self.sides, q, common, &mut state, work);
        } else {
            stream(simd, self.sides, buffers.common[0].clone(), q, 0..rows, &mut state);
        }
        let mut row = 0;
        while row < rows {
            // Rows of one token within one panel.
            let next = ((row / group + 1) * group).min((row / width + 1) * width).min(rows);
            let (seen, common) = (seen(row), &buffers.common[row / width]);
            let before = seen.start..common.start.min(seen.end);
            let after = common.end.max(seen.start)..seen.end;
            for more in [before, after] {
                if !more.is_empty() {
                    stream(simd, self.sides, more, q, row..next, &mut state);
                }
            }
            row = next;
        }
    }
}

/// The queries of `tokens` of the batch that read KV head `head`, `[token][group][k_dim]`, scaled so
/// that their scores are in base 2.
pub(super) fn gather(batch: &Batch<'_>, tokens: Range<usize>, head: usize, q: &mut Vec<f32>) {
    let (group, dim) = (batch.layer.group(), batch.layer.k_dim());
    let scale = LOG2_E * batch.layer.scale();
    q.clear();
    for token in tokens {
        let first = (token * batch.layer.query_heads() + head * group) * dim;
        q.extend(batch.q[first..first + group * dim].iter().map(|q| q * scale));
    }
}
