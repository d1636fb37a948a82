//! A schedule from costs that another machine computed.

use super::{
    error::EvictError,
    histogram::Histogram,
    policy::Cost,
    score::Score,
    select::{Kept, cheapest},
};

/// How many pages each head gives up so that `pages_to_free` go at the least cost, from the costs of
/// its pages in the order it would give them up: ascending, under [`Cost::MaxVictim`]. Equal costs go
/// as [`schedule`](super::schedule) has it: by their place in the head, then by head.
///
/// A device that holds the scores lists these costs
/// (`device::eviction::Evictor::costs`, feature `cuda`) and never sends the scores.
///
/// # Errors
/// [`EvictError::TooFewCosts`] if the heads list fewer pages together.
pub fn cheapest_pages<I>(
    costs: impl IntoIterator<Item = I>,
    pages_to_free: usize,
) -> Result<Vec<u32>, EvictError>
where
    I: IntoIterator<Item = Score>,
{
    let (mut keys, mut ends) = (Vec::new(), Vec::new());
    for head in costs {
        keys.extend(head.into_iter().map(|score| u32::from(score.to_bits())));
        ends.push(keys.len());
    }
    let (heads, possible) = (ends.len(), keys.len());
    if pages_to_free > possible {
        return Err(EvictError::TooFewCosts { asked: pages_to_free, possible });
    }
    if pages_to_free == 0 {
        return Ok(vec![0; heads]);
    }
    let mut source = Kept::of(keys, ends);
    let histogram = Histogram::new();
    Ok(cheapest(&mut source, heads, pages_to_free, Cost::MaxVictim, histogram).pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(codes: &[u16]) -> Vec<Score> {
        codes.iter().map(|&code| Score::from_bits(code)).collect()
    }

    #[test]
    fn the_cheapest_go_and_ties_go_by_place() {
        let costs = [scores(&[5, 5, 9]), scores(&[]), scores(&[5, 40_000]), scores(&[1, 5])];
        let free = |n| cheapest_pages(costs.iter().map(|c| c.iter().copied()), n);
        assert_eq!(free(0).unwrap(), [0, 0, 0, 0]);
        assert_eq!(free(1).unwrap(), [0, 0, 0, 1]);
        assert_eq!(free(3).unwrap(), [1, 0, 1, 1]);
        assert_eq!(free(4).unwrap(), [2, 0, 1, 1]);
        assert_eq!(free(7).unwrap(), [3, 0, 2, 2]);
        assert_eq!(free(8), Err(EvictError::TooFewCosts { asked: 8, possible: 7 }));
    }
}
