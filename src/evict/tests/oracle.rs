//! The model: sorts, and loops over everything.

use crate::evict::{Allocation, Cost, HeadSlots, Policy, Score};

/// What each page of a head costs in units of 2⁻⁵⁷ (infinity: the largest), as far as pages may go.
pub fn page_costs(head: &HeadSlots<'_>, logical_len: usize, policy: &Policy) -> Vec<u128> {
    let mut evictable = evictable(head, logical_len, policy);
    let may_die = head.scores.len().saturating_sub(policy.floor_slots).min(evictable.len());
    evictable.truncate(may_die);

    let page = head.slots_per_page;
    let mut dying = match head.scores.len() % page {
        0 => page,
        partial => partial,
    };
    let mut from = 0;
    let mut costs = Vec::new();
    while dying <= evictable.len() && !evictable.is_empty() {
        let steps = evictable[from..dying].iter().map(|&(score, ..)| steps(score));
        costs.push(match policy.cost {
            Cost::MaxVictim => steps.max().unwrap(),
            Cost::SumVictims => steps.fold(0u128, u128::saturating_add),
        });
        (from, dying) = (dying, dying + page);
    }
    costs
}

/// (score, position, slot) of the slots that may die, the first to die first.
pub fn evictable(
    head: &HeadSlots<'_>,
    logical_len: usize,
    policy: &Policy,
) -> Vec<(Score, u32, usize)> {
    let mut evictable: Vec<_> = (0..head.scores.len())
        .map(|slot| (head.scores[slot], head.positions.get(slot).unwrap(), slot))
        .filter(|&(_, position, _)| {
            let position = position as usize;
            position >= policy.sinks && position + policy.window < logical_len
        })
        .collect();
    evictable.sort();
    evictable
}

/// Pages per head, or how many pages could go if that is fewer than asked for.
pub fn schedule(
    heads: &[HeadSlots<'_>],
    logical_len: usize,
    policy: &Policy,
    asked: usize,
) -> Result<Vec<u32>, usize> {
    let costs: Vec<_> = heads.iter().map(|head| page_costs(head, logical_len, policy)).collect();
    let possible = costs.iter().map(Vec::len).sum();
    if asked > possible {
        return Err(possible);
    }
    let mut pages = vec![0; heads.len()];
    match policy.allocation {
        Allocation::Global => {
            let mut all: Vec<_> = costs
                .iter()
                .enumerate()
                .flat_map(|(head, costs)| {
                    costs
                        .iter()
                        .enumerate()
                        .map(move |(ordinal, &cost)| (significant(cost), ordinal, head))
                })
                .collect();
            all.sort();
            all[..asked].iter().for_each(|&(_, _, head)| pages[head] += 1);
        }
        Allocation::PerHead => {
            for _ in 0..asked {
                let (_, head) = (0..heads.len())
                    .filter(|&head| (pages[head] as usize) < costs[head].len())
                    .map(|head| {
                        (
                            heads[head].extent().slots
                                - heads[head].extent().victims(pages[head] as usize),
                            head,
                        )
                    })
                    .max_by_key(|&(slots, head)| (slots, usize::MAX - head))
                    .unwrap();
                pages[head] += 1;
            }
        }
    }
    Ok(pages)
}

/// The value in units of 2⁻⁵⁷, by way of its floating-point value.
fn steps(score: Score) -> u128 {
    match score {
        Score::INFINITY => u128::MAX,
        score => (f64::from(score.to_f32()) * 57f64.exp2()) as u128,
    }
}

/// The 25 leading bits: how finely costs are told apart.
pub fn significant(cost: u128) -> u128 {
    let dropped = (128 - cost.leading_zeros()).saturating_sub(25);
    cost >> dropped << dropped
}
