//! The score of KV-Compress.

use std::any::Any;

use super::{HeadContext, Needs, Scorer};
use crate::{base::Positions, evict::error::EvictError};

/// Squared attention that a slot received from the newest queries ("L2-sum", arXiv 2410.00161,
/// section 4): per query head Σ p² over the window, the maximum over neighbouring positions, then
/// the sum over the query group. While decoding, each step adds its Σ p² unpooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCompress {
    window: usize,
    kernel: usize,
    skip: usize,
}

impl KvCompress {
    /// Its name.
    pub const NAME: &'static str = "kv-compress";

    /// Looks at the `window` newest queries of the prompt and pools over `kernel` neighbouring
    /// positions (1 does not pool).
    ///
    /// # Errors
    /// A `window` of no query; an even `kernel`.
    pub fn new(window: usize, kernel: usize) -> Result<Self, EvictError> {
        if window == 0 {
            return Err(EvictError::NoQueries);
        }
        if kernel.is_multiple_of(2) {
            return Err(EvictError::Kernel(kernel));
        }
        Ok(Self { window, kernel, skip: 0 })
    }

    /// The published settings: 32 queries, a kernel of 7, and everything counts.
    pub fn paper() -> Self {
        Self { window: 32, kernel: 7, skip: 0 }
    }

    /// Does not count what a query pays to the last `skip` slots it sees, and weighs every slot as if
    /// all queries that were looked at had seen it from farther away. The queries to come will.
    ///
    /// The paper counts everything. With a wide window that rewards the newest tokens for attention
    /// that they get only from their neighbours.
    pub fn from_afar(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// The sum over the group, for each slot.
    fn sum_group(attention: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        for row in attention.chunks_exact(out.len().max(1)) {
            out.iter_mut().zip(row).for_each(|(sum, p2)| *sum += p2);
        }
    }
}

impl KvCompress {
    /// Makes up for the queries that were too near to count. Like the attention, it goes by slots: the
    /// queries' own tokens are the last ones in any head, but its other slots may have lost their order.
    fn weigh(&self, ctx: &HeadContext<'_>, out: &mut [f32]) {
        if self.skip == 0 {
            return;
        }
        // A window longer than its chunk has no more queries than that.
        let (queries, counted) = (ctx.queries.max(1), out.len().saturating_sub(self.skip));
        for (slot, score) in out.iter_mut().enumerate() {
            let far = counted.saturating_sub(slot).clamp(1, queries);
            *score *= queries as f32 / far as f32;
        }
    }
}

impl Default for KvCompress {
    /// 256 queries, a kernel of 7, seen from 32 tokens afar: what measured best of what was tried
    /// (`docs/benchmarks.md`).
    fn default() -> Self {
        Self { window: 256, kernel: 7, skip: 32 }
    }
}

impl Scorer for KvCompress {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn needs(&self) -> Needs {
        Needs {
            keys: false,
            attention_window: Some(self.window),
            skip_newest: self.skip,
            decode_attention: true,
        }
    }

    fn is_like(&self, other: &dyn Scorer) -> bool {
        (other as &dyn Any).downcast_ref::<Self>() == Some(self)
    }

    fn score(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        let slots = out.len();
        ctx.check_positions(slots)?;
        let attention = ctx.checked_attention(Self::NAME, slots)?;
        if self.kernel == 1 {
            Self::sum_group(attention, out);
            self.weigh(ctx, out);
            return Ok(());
        }
        out.fill(0.0);
        let order = position_order(ctx.positions, slots);
        // A kernel that reaches beyond the last slot reaches all of them.
        let margin = (self.kernel / 2).min(slots);
        let kernel = 2 * margin + 1;
        // Zero is the identity of a maximum over squares: margins need no special case.
        let mut pooled = vec![0.0; slots + 2 * margin];
        for row in attention.chunks_exact(slots.max(1)) {
            pooled[..margin].fill(0.0);
            pooled[margin + slots..].fill(0.0);
            let middle = &mut pooled[margin..margin + slots];
            match &order {
                None => middle.copy_from_slice(row),
                Some(order) => {
                    middle.iter_mut().zip(order).for_each(|(x, &slot)| *x = row[slot as usize]);
                }
            }
            max_ahead(&mut pooled, kernel);
            match &order {
                None => out.iter_mut().zip(&pooled).for_each(|(sum, x)| *sum += x),
                Some(order) => {
                    order.iter().zip(&pooled).for_each(|(&slot, x)| out[slot as usize] += x);
                }
            }
        }
        self.weigh(ctx, out);
        Ok(())
    }

    fn increment(&self, ctx: &HeadContext<'_>, out: &mut [f32]) -> Result<(), EvictError> {
        Self::sum_group(ctx.checked_attention(Self::NAME, out.len())?, out);
        Ok(())
    }
}

/// The slots by position, unless they already are.
fn position_order(positions: Positions<'_>, slots: usize) -> Option<Vec<u32>> {
    let (list, run) = positions.split(slots);
    let newest = list.last().map_or(0, |&position| position as usize + 1);
    if list.is_sorted() && (run.is_empty() || newest <= run.start) {
        return None;
    }
    let mut order: Vec<u32> = (0..slots as u32).collect();
    order.sort_unstable_by_key(|&slot| positions.get(slot as usize));
    Some(order)
}

/// Makes each value the maximum of itself and the `kernel − 1` values behind it, as far as there
/// are that many, in log₂ `kernel` passes.
fn max_ahead(values: &mut [f32], kernel: usize) {
    let mut pass = |distance: usize| {
        for i in 0..values.len().saturating_sub(distance) {
            values[i] = values[i].max(values[i + distance]);
        }
    };
    let mut width = 1;
    while width * 2 <= kernel {
        pass(width);
        width *= 2;
    }
    if width < kernel {
        pass(kernel - width);
    }
}
