//! A batch of the attention contract as launches take it.

use std::ops::Range;

use super::{decode::DecodeHead, prefill::PrefillHead, window::WindowHead};
use crate::{
    attend::{AttendError, Batch, SlotScores},
    base::LayerShape,
    device::kernels::{Specialisation, Terms},
    format::{PageLayout, SlotFormat},
};

/// The heads of a batch that share a layout, and so a launch.
pub(super) struct Uniform {
    pub(super) specialisation: Specialisation,
    pub(super) decode: Vec<DecodeHead>,
    pub(super) prefill: Vec<PrefillHead>,
    pub(super) score: Vec<WindowHead>,
}

/// A batch taken apart.
pub(super) struct Parts {
    pub(super) page_ids: Vec<u32>,
    pub(super) uniform: Vec<Uniform>,
    /// Slots over all heads, each of which has a sum per query head of its group.
    pub(super) slots: usize,
    /// Rows whose query sees no slot and that no kernel writes.
    pub(super) blind: Vec<Range<usize>>,
    /// Slots that no query of the window counts and that no kernel writes a sum for.
    pub(super) unscored: Vec<Range<usize>>,
}

impl Parts {
    /// `row_stride` is the distance from a token's rows of queries to the next token's, in rows.
    pub(super) fn new(
        batch: &Batch<'_>,
        row_stride: usize,
        io: SlotFormat,
        scores: Option<&SlotScores>,
    ) -> Result<Self, AttendError> {
        let group = batch.layer.group();
        let tokens = batch.tokens();
        let too_large = || AttendError::TooLarge { tokens };
        let index = |value: usize| u32::try_from(value).map_err(|_| too_large());
        let mut parts = Self {
            page_ids: Vec::new(),
            uniform: Vec::new(),
            slots: 0,
            blind: Vec::new(),
            unscored: Vec::new(),
        };
        let mut first_row = 0;
        for span in batch.spans {
            for (h, head) in span.heads.iter().enumerate() {
                let pages = index(parts.page_ids.len())?;
                parts.page_ids.extend_from_slice(&head.pages[..head.used_pages()]);
                let at = parts.slots;
                parts.slots += head.slots;
                if span.tokens == 0 {
                    parts.unscored.push(at..parts.slots);
                    continue;
                }
                // Tokens older than every slot see nothing.
                let blind = span.tokens.saturating_sub(head.slots).min(span.tokens - 1);
                for token in 0..blind {
                    let row = first_row + token * row_stride + h * group;
                    parts.blind.push(row..row + group);
                }
                let query = index(first_row + blind * row_stride + h * group)?;
                let slots = index(head.slots)?;
                let uniform = Self::of(&mut parts.uniform, head.layout, batch.layer, io);
                if span.tokens - blind == 1 {
                    uniform.decode.push(DecodeHead { query, pages, slots, logits: 0 });
                } else {
                    let tokens = index(span.tokens - blind)?;
                    uniform.prefill.push(PrefillHead { query, pages, slots, tokens });
                }
                if let Some(scores) = scores {
                    // The first token of the window that sees a slot that counts.
                    let skip = scores.skip_newest();
                    let first = span.tokens.saturating_add(skip).saturating_sub(head.slots);
                    let window = scores.tokens(span).start.max(first);
                    if window >= span.tokens {
                        parts.unscored.push(at..parts.slots);
                        continue;
                    }
                    index(parts.slots)?;
                    uniform.score.push(WindowHead {
                        query: index(first_row + window * row_stride + h * group)?,
                        pages,
                        slots,
                        before: index(head.slots - skip - (span.tokens - window))?,
                        window: index(span.tokens - window)?,
                        skip: index(skip)?,
                        sums: index(at)?,
                    });
                }
            }
            first_row += span.tokens * row_stride;
        }
        index(first_row)?;
        Ok(parts)
    }

    /// Whether a kernel writes sums: without one there is no memory for them, and all are zero.
    pub(super) fn scored(&self) -> bool {
        self.uniform.iter().any(|uniform| !uniform.score.is_empty())
    }

    fn of<'a>(
        all: &'a mut Vec<Uniform>,
        layout: &PageLayout,
        layer: &LayerShape,
        io: SlotFormat,
    ) -> &'a mut Uniform {
        let found = all.iter().position(|uniform| uniform.specialisation.layout == *layout);
        let at = found.unwrap_or_else(|| {
            let plain = Specialisation::new(*layout, layer.group());
            let specialisation = Specialisation { terms: Terms::of(layer), io, ..plain };
            let (decode, prefill, score) = Default::default();
            all.push(Uniform { specialisation, decode, prefill, score });
            all.len() - 1
        });
        &mut all[at]
    }
}
