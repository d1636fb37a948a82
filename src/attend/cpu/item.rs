//! One work item: query tokens of a span against a piece of one head.

use std::{cell::RefCell, f32::consts::LOG2_E, ops::Range};

use super::{
    panel::{self, Workspace},
    plan::Block,
    stream::{Sides, State, stream},
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
    limits: Vec<usize>,
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
        let (block, dim, group) = (self.block, batch.shape.head_dim(), batch.shape.group());
        let tokens = self.first_token + block.tokens.start..self.first_token + block.tokens.end;
        gather(batch, tokens, block.head, &mut buffers.q);
        let q = (buffers.q.as_slice(), dim);
        let rows = group * block.tokens.len();
        let mut state = State::new(self.state, rows);
        state.clear();

        // All rows of a panel see the slots that its first token sees; the few more that each later
        // token sees are streamed to that token's rows, so that no row touches a slot it must not.
        let span = &batch.spans[block.span];
        let visible = |row: usize| span.visible(block.head, block.tokens.start + row / group);
        let width = if block.panels { panel::width::<S>() } else { rows };
        buffers.limits.clear();
        buffers.limits.extend(
            (0..rows)
                .step_by(width)
                .map(|row| visible(row).clamp(self.slots.start, self.slots.end)),
        );
        if block.panels {
            let (limits, work) = (&buffers.limits, &mut buffers.panels);
            panel::attend_panels(simd, self.sides, self.slots.clone(), q, limits, &mut state, work);
        } else {
            let common = self.slots.start..buffers.limits[0];
            stream(simd, self.sides, common, q, 0..rows, &mut state);
        }
        let mut row = 0;
        while row < rows {
            // Rows of one token within one panel.
            let next = ((row / group + 1) * group).min((row / width + 1) * width).min(rows);
            let more = buffers.limits[row / width]..visible(row).min(self.slots.end);
            if !more.is_empty() {
                stream(simd, self.sides, more, q, row..next, &mut state);
            }
            row = next;
        }
    }
}

/// The queries of `tokens` of the batch that read KV head `head`, `[token][group][head_dim]`, scaled so
/// that their scores are in base 2.
pub(super) fn gather(batch: &Batch<'_>, tokens: Range<usize>, head: usize, q: &mut Vec<f32>) {
    let (group, dim) = (batch.shape.group(), batch.shape.head_dim());
    let scale = LOG2_E / (dim as f32).sqrt();
    q.clear();
    for token in tokens {
        let first = (token * batch.shape.query_heads() + head * group) * dim;
        q.extend(batch.q[first..first + group * dim].iter().map(|q| q * scale));
    }
}
