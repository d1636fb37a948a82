//! Prefill in chunks.

use std::{collections::VecDeque, ops::Range};

use super::{
    error::EngineError,
    kv::{LogitRows, Logits, Span},
    runner::Runner,
};
use crate::cache::{KvCache, KvSequence};

/// Cuts `tokens` tokens into as few chunks of at most `chunk` (at least one) as can be, all of nearly
/// the same size, so that the last one is not left with too few queries to score by.
pub fn chunks(tokens: usize, chunk: usize) -> VecDeque<Range<usize>> {
    let count = tokens.div_ceil(chunk.max(1));
    (0..count).map(|i| bound(tokens, i, count)..bound(tokens, i + 1, count)).collect()
}

/// Tokens of the first of the [`chunks`].
pub fn first_chunk(tokens: usize, chunk: usize) -> usize {
    match tokens.div_ceil(chunk.max(1)) {
        0 => 0,
        count => bound(tokens, 1, count),
    }
}

/// Where the `i`-th of `count` even parts begins.
fn bound(tokens: usize, i: usize, count: usize) -> usize {
    (tokens as u128 * i as u128 / count as u128) as usize
}

/// Runs `tokens` through the model as the next tokens of `sequence`, in chunks; returns the logits
/// asked for, chunk by chunk, through `each`.
///
/// # Errors
/// [`EngineError::OutOfRange`] for a chunk of no token; what the cache, the model or `each` refuses.
pub fn feed<R: Runner>(
    model: &R,
    cache: &KvCache<R::Memory>,
    sequence: &mut KvSequence,
    tokens: &[u32],
    chunk: usize,
    logits: Logits,
    mut each: impl FnMut(Range<usize>, LogitRows) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    EngineError::unless(chunk > 0, "chunk", chunk, "at least one token")?;
    for range in chunks(tokens.len(), chunk) {
        let last = range.end == tokens.len();
        let logits = if logits == Logits::Last && !last { Logits::None } else { logits };
        let position = sequence.tokens();
        let span = Span { tokens: &tokens[range.clone()], position, logits };
        let mut step = cache.step([(&mut *sequence, range.len())])?;
        let rows = model.run(&[span], &mut step)?;
        step.commit()?;
        each(range, rows)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_at_the_ends_of_their_range_do_not_overflow() {
        assert_eq!((first_chunk(0, 0), first_chunk(0, usize::MAX)), (0, 0));
        let whole = chunks(usize::MAX, usize::MAX);
        assert_eq!((whole.len(), &whole[0]), (1, &(0..usize::MAX)));
        let halves = chunks(usize::MAX, usize::MAX - 1);
        assert_eq!(halves, [0..usize::MAX / 2, usize::MAX / 2..usize::MAX]);
        assert_eq!(first_chunk(usize::MAX, 1), 1);
        assert_eq!(first_chunk(usize::MAX, usize::MAX), usize::MAX);
    }

    #[test]
    fn chunks_are_even_and_cover_everything() {
        assert!(chunks(0, 256).is_empty());
        for (tokens, chunk) in [(1, 256), (256, 256), (257, 256), (2048, 512), (1000, 300), (5, 1)]
        {
            let parts = chunks(tokens, chunk);
            assert_eq!(parts.len(), tokens.div_ceil(chunk));
            let mut next = 0;
            for part in &parts {
                assert_eq!(part.start, next);
                assert!(part.len() <= chunk && part.len() + 1 >= tokens / parts.len());
                next = part.end;
            }
            assert_eq!(next, tokens);
            assert_eq!(first_chunk(tokens, chunk), parts[0].len());
        }
    }
}
