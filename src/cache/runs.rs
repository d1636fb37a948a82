//! The sequences of a layer in batches: consecutive ones that ask for the same scores go in one.

use std::ops::Range;

use super::{
    error::CacheError,
    memory::{LayerWork, MemberWork},
    observe::{Buffers, Noted, Observed, ReadKeys, Wish},
};
use crate::attend::{Head, Reduce, SlotScores, Span};

/// Members that are attended to together.
pub(super) struct Run<'a> {
    /// One for each of them.
    pub spans: &'a [Span<'a>],
    /// Their tokens among those of the layer.
    pub tokens: Range<usize>,
    /// Scores to be filled, if they want some.
    pub scores: Option<&'a mut SlotScores>,
}

/// Buffers kept from layer to layer.
#[derive(Debug)]
pub(super) struct Runs {
    window: SlotScores,
    decode: SlotScores,
    buffers: Buffers,
}

impl Default for Runs {
    fn default() -> Self {
        Self {
            window: SlotScores::new(0, Reduce::PerQueryHead),
            decode: SlotScores::new(1, Reduce::Group),
            buffers: Buffers::default(),
        }
    }
}

impl Runs {
    /// Has `attend` attend run by run; returns what the scores of the layer's heads become. `read_keys`
    /// decodes the keys of a table.
    pub fn attend(
        &mut self,
        work: &LayerWork<'_>,
        read_keys: &ReadKeys<'_>,
        attend: &mut dyn FnMut(Run<'_>) -> Result<(), CacheError>,
    ) -> Result<Vec<Noted>, CacheError> {
        let (layer, members) = (work.layer, work.members);
        let mut noted = Vec::new();
        let mut heads: Vec<Head<'_>> = Vec::with_capacity(members.len() * layer.kv_heads());
        for member in members {
            heads.extend((work.first_head..work.first_head + layer.kv_heads()).map(|head| {
                let table = member.tables.head(head);
                Head { pages: table.pages, slots: table.slots, layout: member.layouts.of(head) }
            }));
        }
        let spans: Vec<Span<'_>> = (members.iter().zip(heads.chunks_exact(layer.kv_heads())))
            .map(|(member, heads)| Span { tokens: member.tokens, heads })
            .collect();
        let (mut first_token, mut start) = (0, 0);
        while start < members.len() {
            let wish = members[start].wish;
            let same = members[start..].iter().take_while(|member| member.wish == wish).count();
            let run = start..start + same;
            let count: usize = members[run.clone()].iter().map(|member| member.tokens).sum();
            let tokens = first_token..first_token + count;
            let mut scores = match wish {
                Wish::Nothing => None,
                Wish::Decode => Some(&mut self.decode),
                Wish::Window { queries, skip } => {
                    let window = &mut self.window;
                    if (window.window(), window.skip_newest()) != (queries, skip) {
                        *window = SlotScores::new(queries, Reduce::PerQueryHead).skipping(skip);
                    }
                    Some(window)
                }
            };
            let spans = &spans[run.clone()];
            attend(Run { spans, tokens: tokens.clone(), scores: scores.as_deref_mut() })?;
            if let Some(scores) = scores {
                for (span, member) in run.enumerate() {
                    let MemberWork { tables, layouts, tokens, watch, .. } = members[member];
                    let Some(watch) = watch else { continue };
                    let first_head = work.first_head;
                    let attention = Observed {
                        layer,
                        first_head,
                        member,
                        tokens,
                        span,
                        scores,
                        read_keys,
                        layouts,
                    };
                    attention.note(tables, watch, &mut self.buffers, &mut noted)?;
                }
            }
            (first_token, start) = (tokens.end, start + same);
        }
        Ok(noted)
    }
}
