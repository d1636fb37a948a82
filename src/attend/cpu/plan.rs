//! How a batch is cut into work items.
//!
//! Every cut depends on one head alone (its slots, its format, the tokens of its span), never on the
//! batch around it nor on the number of threads. Results are therefore the same bit for bit whatever
//! a sequence is batched with and however many threads there are.

use std::ops::Range;

use super::stream::CHUNK;
use crate::{
    attend::batch::{Batch, Head, Span},
    base::Channels,
};

/// Page bytes of a piece of a head that is streamed: many chunks, since the first ones of a piece are
/// not prefetched, yet small enough that a long head of a single sequence feeds many cores.
const PIECE_BYTES: usize = 1 << 20;
/// Multiply-adds of a piece of a head that is attended to by panels: some 2 ms of one core.
const PIECE_WORK: usize = 64 << 20;
/// Query rows up to which a head is streamed; above it, panels do.
const STREAM_ROWS: usize = 16;
/// Query rows of a block of panels: they share the widening of K and V.
const PANEL_ROWS: usize = 128;

/// Query tokens of a span that are attended together in one head, and the pieces of that head.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub span: usize,
    pub head: usize,
    /// Tokens of the span.
    pub tokens: Range<usize>,
    /// By panels, or by streaming.
    pub panels: bool,
    /// First slots that a window leaves in sight, apart from the rest; they are the first piece, if any.
    pub sinks: usize,
    /// Where the other pieces begin.
    start: usize,
    /// Slots of each of those; the last one may be shorter.
    piece: usize,
    /// All pieces; none where no token sees a slot.
    pub pieces: usize,
}

/// The blocks of a batch, and how to find the block of a token.
pub(super) struct Plan {
    /// Span after span, KV head after KV head, tokens in order.
    pub blocks: Vec<Block>,
    spans: Vec<SpanPlan>,
}

struct SpanPlan {
    /// Query tokens of the spans before.
    first_token: usize,
    first_block: usize,
    /// Tokens of a block; the last one may have fewer.
    block_tokens: usize,
    blocks_per_head: usize,
}

impl Plan {
    pub fn new(batch: &Batch<'_>) -> Self {
        let mut plan = Self { blocks: Vec::new(), spans: Vec::with_capacity(batch.spans.len()) };
        let group = batch.layer.group();
        let mut first_token = 0;
        for (index, span) in batch.spans.iter().enumerate() {
            let panels = span.tokens.saturating_mul(group) > STREAM_ROWS;
            let most = if panels { (PANEL_ROWS / group).max(1) } else { span.tokens.max(1) };
            // Blocks of almost equal size.
            let blocks_per_head = span.tokens.div_ceil(most);
            let block_tokens = span.tokens.div_ceil(blocks_per_head.max(1)).max(1);
            let blocks_per_head = span.tokens.div_ceil(block_tokens);
            plan.spans.push(SpanPlan {
                first_token,
                first_block: plan.blocks.len(),
                block_tokens,
                blocks_per_head,
            });
            for head in 0..span.heads.len() {
                for block in 0..blocks_per_head {
                    let start = block * block_tokens;
                    let tokens = start..(start + block_tokens).min(span.tokens);
                    plan.blocks.push(cut(batch, span, index, head, tokens, panels));
                }
            }
            first_token += span.tokens;
        }
        plan
    }

    /// The span of a token of the batch, and its place in that span.
    pub fn locate(&self, token: usize) -> (usize, usize) {
        // Spans without tokens share their first token with the span after them.
        let span = self.spans.partition_point(|span| span.first_token <= token) - 1;
        (span, token - self.spans[span].first_token)
    }

    /// The first token of a span in the batch.
    pub fn first_token(&self, span: usize) -> usize {
        self.spans[span].first_token
    }

    /// The block of a token of a span, as an index into `blocks`.
    pub fn block(&self, span: usize, head: usize, token: usize) -> usize {
        let span = &self.spans[span];
        span.first_block + head * span.blocks_per_head + token / span.block_tokens
    }
}

impl Block {
    /// Slots of piece `index`.
    pub fn slots(&self, index: usize, span: &Span<'_>) -> Range<usize> {
        let index = match (self.sinks, index) {
            (0, _) => index,
            (sinks, 0) => return 0..sinks,
            _ => index - 1,
        };
        let end = span.up_to(self.head, self.tokens.end - 1);
        let start = self.start + index * self.piece;
        start..(start + self.piece).min(end)
    }

    /// What token `token` of the span sees of the slots of a piece.
    pub fn seen(
        &self,
        batch: &Batch<'_>,
        span: &Span<'_>,
        token: usize,
        slots: &Range<usize>,
    ) -> Range<usize> {
        let visible = batch.visible(span, self.head, token);
        // Whoever sees no sinks apart sees all from the first slot on.
        let part = match slots.end <= self.sinks {
            true => 0..self.sinks.min(visible.recent.end),
            false => visible.recent,
        };
        part.start.clamp(slots.start, slots.end)..part.end.clamp(slots.start, slots.end)
    }
}

fn cut(
    batch: &Batch<'_>,
    span: &Span<'_>,
    index: usize,
    head: usize,
    tokens: Range<usize>,
    panels: bool,
) -> Block {
    let table = &span.heads[head];
    let (first, last) =
        (batch.visible(span, head, tokens.start), batch.visible(span, head, tokens.end - 1));
    let most = if panels {
        let Channels { k, v, .. } = batch.layer.channels();
        PIECE_WORK / (tokens.len() * batch.layer.group() * (k + v))
    } else {
        PIECE_BYTES / table.layout.slot_bytes()
    };
    // The first token sees furthest back; if that is to the first slot, so does it beyond the sinks.
    let start = (first.recent.start / unit(table) * unit(table)).max(last.sinks);
    let (piece, pieces) = pieces(table, last.recent.end - start.min(last.recent.end), most);
    let pieces = pieces + usize::from(last.sinks > 0);
    Block { span: index, head, tokens, panels, sinks: last.sinks, start, piece, pieces }
}

/// Cuts `slots` slots into almost equal pieces of about `most` slots that start on page boundaries
/// where pages are small: `(slots of a piece, pieces)`.
pub(super) fn pieces(table: &Head<'_>, slots: usize, most: usize) -> (usize, usize) {
    let pieces = slots.div_ceil(most.max(CHUNK));
    let piece = slots.div_ceil(pieces.max(1)).next_multiple_of(unit(table)).max(1);
    (piece, slots.div_ceil(piece))
}

/// Slots at whose multiples pieces begin.
fn unit(table: &Head<'_>) -> usize {
    table.layout.slots.min(CHUNK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        base::{LayerShape, Window},
        format::{PageFormat, PageLayout, SlotFormat},
    };

    /// A page of so many bytes that it has about `page_slots` slots.
    fn layout(page_slots: usize) -> PageLayout {
        let format = PageFormat::both(SlotFormat::F16);
        let bytes = PageLayout::page_bytes_for(format, 64, page_slots).unwrap();
        PageLayout::new(format, 64, bytes).unwrap()
    }

    proptest! {
        /// Every piece has slots, and together they have all: a piece of none would be a state to clear,
        /// merge and carry about for nothing.
        #[test]
        fn pieces_have_slots_and_cover_a_head(
            page_slots in 1usize..600,
            slots in 0usize..20_000,
            most in 0usize..5_000,
        ) {
            let layout = layout(page_slots);
            let head = Head { pages: &[], slots, layout: &layout };
            let (piece, pieces) = pieces(&head, slots, most);
            prop_assert!(piece * pieces >= slots);
            prop_assert!(pieces == 0 || piece * (pieces - 1) < slots);
            let unit = layout.slots.min(CHUNK);
            prop_assert!(pieces == 0 || piece < most.max(CHUNK) + unit);
            let aligned = layout.slots >= CHUNK || piece % layout.slots == 0;
            prop_assert!(aligned, "a small page is cut: {piece} of {}", layout.slots);
        }

        /// Every token of every head is in the one block that is found for it, and of a block's pieces each
        /// token sees what it is to see, every slot once.
        #[test]
        fn blocks_are_found_again(
            group in 1usize..20,
            spans in prop::collection::vec((0usize..300, 0usize..3_000), 0..4),
            window in prop::option::of((1usize..1_000, 0usize..40)),
        ) {
            let layout = layout(16);
            let heads: Vec<[Head<'_>; 2]> = spans
                .iter()
                .map(|&(_, slots)| [slots, slots / 7].map(|slots| Head { pages: &[], slots, layout: &layout }))
                .collect();
            let spans: Vec<Span<'_>> = (spans.iter().zip(&heads))
                .map(|(&(tokens, _), heads)| Span { tokens, heads })
                .collect();
            let mut layer = LayerShape::new(2, 2 * group, 64).unwrap();
            if let Some((tokens, sinks)) = window {
                layer = layer.windowed(Window { tokens, sinks: sinks.min(tokens) }).unwrap();
            }
            let batch = Batch { layer: &layer, spans: &spans, q: &[] };
            let plan = Plan::new(&batch);
            let mut found = vec![0usize; plan.blocks.len()];
            for token in 0..batch.tokens() {
                let (span, token) = plan.locate(token);
                prop_assert!(token < spans[span].tokens);
                for head in 0..2 {
                    let at = plan.block(span, head, token);
                    let block = &plan.blocks[at];
                    prop_assert_eq!((block.span, block.head), (span, head));
                    prop_assert!(block.tokens.contains(&token));
                    found[at] += 1;
                    let span = &spans[span];
                    let pieces = (0..block.pieces).map(|i| block.slots(i, span));
                    let seen = pieces.flat_map(|slots| block.seen(&batch, span, token, &slots));
                    let visible = batch.visible(span, head, token);
                    let want = visible.parts().into_iter().flatten();
                    prop_assert!(seen.eq(want), "token {token} of {block:?}");
                }
            }
            for (block, found) in plan.blocks.iter().zip(found) {
                prop_assert_eq!(found, block.tokens.len());
                prop_assert_eq!(block.panels, spans[block.span].tokens * group > STREAM_ROWS);
                prop_assert!(!block.panels || found == 1 || found * group <= PANEL_ROWS);
                let slots = (0..block.pieces).map(|i| block.slots(i, &spans[block.span]));
                let end = slots.fold(0, |end, slots| {
                    assert!(slots.start >= end && slots.end > slots.start);
                    slots.end
                });
                prop_assert_eq!(end, spans[block.span].up_to(block.head, block.tokens.end - 1));
            }
        }
    }
}
