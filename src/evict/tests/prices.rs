//! Prices of shards against one process that has all scores.

use proptest::prelude::*;

use super::cases::{Case, case};
use super::oracle;
use crate::evict::{
    Allocation, Cost, EvictError, HeadExtent, HeadPrices, HeadSlots, PageCost, PagePrices, Policy,
    Score, cheapest_pages, plan, plan_pages, schedule,
};

/// The heads of each of `ranks` ranks, in an order of their own: head `i` is on rank `places[i].0`.
fn shards(case: &Case, ranks: usize, places: &[(usize, u8)]) -> Vec<Vec<usize>> {
    let mut shards = vec![Vec::new(); ranks];
    for head in 0..case.heads.len() {
        shards[places[head].0 % ranks].push(head);
    }
    for shard in &mut shards {
        shard.sort_by_key(|&head| places[head].1);
    }
    shards
}

fn of<T: Copy>(all: &[T], shard: &[usize]) -> Vec<T> {
    shard.iter().map(|&head| all[head]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// However heads are divided among ranks, they evict what one process would: schedule, cost, slots,
    /// moves, and what is refused.
    #[test]
    fn ranks_evict_as_one_process_does(
        case in case(),
        ranks in 1usize..5,
        places in prop::collection::vec((0usize..5, any::<u8>()), 6),
        cut in any::<bool>(),
        over in prop::sample::select(vec![0usize, 0, 0, 3]),
    ) {
        let (views, len, policy) = (case.views(), case.logical_len, &case.policy);
        let possible: usize =
            views.iter().map(|head| oracle::page_costs(head, len, policy).len()).sum();
        let asked = (case.share * possible as f64).round() as usize + over;
        let whole = schedule(&views, len, policy, asked);

        let most = if cut { asked } else { usize::MAX };
        let shards = shards(&case, ranks, &places);
        let mut prices: Vec<PagePrices> = shards
            .iter()
            .map(|shard| PagePrices::new(&of(&views, shard), len, policy, most).unwrap())
            .zip(&shards)
            .map(|(prices, shard)| prices.numbered(shard.iter().copied()).unwrap())
            .collect();
        prices.rotate_left(places[0].0 % ranks);
        let all = PagePrices::merge(&prices).unwrap();
        prop_assert_eq!(all.policy(), policy);
        prop_assert_eq!(all.logical_len(), len);
        let extents: Vec<HeadExtent> = views.iter().map(HeadSlots::extent).collect();
        prop_assert_eq!(all.extents(), extents);

        let merged = all.schedule(asked);
        let (Ok(whole), Ok(merged)) = (&whole, &merged) else {
            prop_assert_eq!(merged.map(|_| ()), whole.map(|_| ()));
            return Ok(());
        };
        prop_assert_eq!(merged.pages(), whole.pages());
        prop_assert_eq!((merged.total(), merged.cost()), (whole.total(), whole.cost()));
        let plan = plan(&views, len, policy, asked).unwrap();
        for shard in &shards {
            let share = of(merged.pages(), shard);
            let own = plan_pages(&of(&views, shard), len, policy, &share).unwrap();
            for (head, own) in shard.iter().zip(own.heads()) {
                prop_assert_eq!(own, &plan.heads()[*head]);
            }
        }
    }

    #[test]
    fn prices_are_what_pages_cost(case in case()) {
        let (views, len) = (case.views(), case.logical_len);
        let prices = PagePrices::new(&views, len, &case.policy, usize::MAX).unwrap();
        prop_assert_eq!(prices.heads().len(), views.len());
        for (index, (list, head)) in prices.heads().zip(&views).enumerate() {
            let costs = oracle::page_costs(head, len, &case.policy);
            prop_assert_eq!((list.head, list.possible), (index, costs.len()));
            let expected = costs.iter().map(|&cost| match cost {
                u128::MAX => f64::INFINITY,
                cost => oracle::significant(cost) as f64 / 57f64.exp2(),
            });
            prop_assert_eq!(
                list.costs.iter().map(|cost| cost.to_f64()).collect::<Vec<_>>(),
                expected.collect::<Vec<_>>()
            );
            let few = PagePrices::new(&views, len, &case.policy, 2).unwrap();
            let few = few.heads().nth(index).unwrap();
            prop_assert_eq!(few.possible, list.possible);
            prop_assert_eq!(few.costs, &list.costs[..list.costs.len().min(2)]);
        }
    }

    /// Lists that were cut give the right schedule or none.
    #[test]
    fn short_lists_never_mislead(case in case(), most in 0usize..6) {
        let (views, len) = (case.views(), case.logical_len);
        let policy = &Policy { allocation: Allocation::Global, ..case.policy };
        let full = PagePrices::new(&views, len, policy, usize::MAX).unwrap();
        let short = PagePrices::new(&views, len, policy, most).unwrap();
        let possible: usize = full.heads().map(|list| list.possible).sum();
        let listed: usize = full.heads().map(|list| list.possible.min(most)).sum();
        for asked in 0..=possible {
            let right = full.schedule(asked).unwrap();
            match short.schedule(asked) {
                Ok(found) => prop_assert_eq!(found.pages(), right.pages()),
                Err(EvictError::TooFewCosts { possible, .. }) => {
                    prop_assert!(possible == listed && asked > listed);
                }
                Err(EvictError::CostsCut { head, listed, asked: named }) => {
                    prop_assert_eq!((listed, named), (most, asked));
                    prop_assert!(full.heads().nth(head).unwrap().possible > most);
                    // Some list was too short, or ended exactly where its head did.
                    prop_assert!(right.pages().iter().any(|&pages| pages as usize >= most));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn scores_are_costs_in_the_same_order(a: u16, b: u16, bits: u32) {
        let [x, y] = [a, b].map(Score::from_bits);
        prop_assert_eq!(PageCost::from(x).cmp(&PageCost::from(y)), x.cmp(&y));
        prop_assert_eq!(PageCost::from(x).to_f64(), f64::from(x.to_f32()));
        let cost = PageCost::from_bits(bits);
        prop_assert_eq!(cost.to_bits(), bits);
        prop_assert!(bits == 0 || cost.to_f64() > PageCost::from_bits(bits - 1).to_f64());
    }
}

#[test]
fn the_ends_of_the_costs() {
    assert_eq!(PageCost::from(Score::ZERO), PageCost::ZERO);
    assert_eq!(PageCost::from(Score::INFINITY), PageCost::INFINITY);
    assert_eq!((PageCost::ZERO.to_f64(), PageCost::INFINITY.to_f64()), (0.0, f64::INFINITY));
    assert_eq!(PageCost::of_steps(1).to_f64(), (-57f64).exp2());
    assert_eq!(PageCost::of_steps((1 << 25) + 1), PageCost::of_steps(1 << 25));
    assert!(PageCost::of_steps((1 << 25) + 2) > PageCost::of_steps(1 << 25));
    assert!(PageCost::of_steps(u128::MAX) < PageCost::INFINITY);
}

fn scores(codes: &[u16]) -> Vec<Score> {
    codes.iter().map(|&code| Score::from_bits(code)).collect()
}

/// A head of as many one-slot pages as it lists costs.
fn list(head: usize, costs: &[PageCost]) -> HeadPrices<'_> {
    let extent = HeadExtent { slots: costs.len(), slots_per_page: 1 };
    HeadPrices { head, extent, possible: costs.len(), costs }
}

/// What a device lists under [`Cost::MaxVictim`] are prices too.
#[test]
fn lists_of_scores_choose_as_prices_do() {
    let policy = Policy { cost: Cost::MaxVictim, ..Policy::default() };
    let codes = [scores(&[5, 5, 9]), scores(&[]), scores(&[5, 40_000]), scores(&[1, 5])];
    let costs = codes.each_ref().map(|head| head.iter().map(|&s| s.into()).collect::<Vec<_>>());
    let lists = costs.iter().enumerate().map(|(head, costs)| list(head, costs));
    let prices = PagePrices::from_heads(&policy, 9, lists).unwrap();
    for asked in 0..=7 {
        let expected = cheapest_pages(codes.iter().map(|head| head.iter().copied()), asked);
        assert_eq!(prices.schedule(asked).unwrap().pages(), expected.unwrap());
    }
}

#[test]
fn prices_that_do_not_fit_are_refused() {
    let policy = Policy::default();
    let costs: Vec<PageCost> = [1, 2, 3].map(PageCost::from_bits).to_vec();
    let prices =
        |lists: &[HeadPrices<'_>]| PagePrices::from_heads(&policy, 100, lists.iter().copied());
    let good = prices(&[list(1, &costs), list(0, &costs)]).unwrap();
    assert_eq!(good.heads().map(|list| list.head).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(prices(&[list(1, &costs), list(1, &costs)]), Err(EvictError::PricedTwice(1)));
    let bad = |list| match prices(&[list]).unwrap_err() {
        EvictError::BadCosts { head: 0, problem } => problem,
        error => panic!("{error}"),
    };
    let descending = [costs[1], costs[0], costs[2]];
    assert_eq!(bad(list(0, &descending)), "costs do not ascend");
    let three = list(0, &costs);
    let over = HeadPrices { possible: 4, ..three };
    assert_eq!(bad(over), "more pages may go than it holds");
    let short = HeadPrices { possible: 2, ..three };
    assert_eq!(bad(short), "more costs than pages that may go");
    let nothing = HeadExtent { slots: 3, slots_per_page: 0 };
    let empty = HeadPrices { extent: nothing, ..three };
    assert_eq!(prices(&[empty]), Err(EvictError::EmptyPages(0)));
    let vast = HeadExtent { slots: u32::MAX as usize, slots_per_page: 1 };
    let many = [0, 1].map(|head| HeadPrices { head, extent: vast, possible: 0, costs: &[] });
    assert_eq!(prices(&many), Err(EvictError::TooManyPages(2 * u32::MAX as usize)));
    assert!(prices(&many[..1]).is_ok());

    // A rank that is missing, or one alone.
    let second = prices(&[list(1, &costs)]).unwrap();
    assert_eq!(second.schedule(1), Err(EvictError::NotPriced(0)));
    let gap = PagePrices::merge([&prices(&[list(0, &costs), list(2, &costs)]).unwrap()]).unwrap();
    assert_eq!(gap.schedule(1), Err(EvictError::NotPriced(1)));
    assert_eq!(PagePrices::merge([]), Err(EvictError::UnlikePrices("no rank")));
    assert_eq!(PagePrices::merge([&good, &second]), Err(EvictError::PricedTwice(1)));
    let longer = PagePrices::from_heads(&policy, 101, []).unwrap();
    let unlike = EvictError::UnlikePrices("different lengths");
    assert_eq!(PagePrices::merge([&good, &longer]), Err(unlike));
    let wider = PagePrices::from_heads(&Policy { window: 33, ..policy }, 100, []).unwrap();
    let unlike = EvictError::UnlikePrices("different policies");
    assert_eq!(PagePrices::merge([&good, &wider]), Err(unlike));
    let wrong = EvictError::Length { what: "the numbers of all heads", got: 1, expected: 2 };
    assert_eq!(good.clone().numbered([4]), Err(wrong));
    assert_eq!(good.clone().numbered([4, 4]), Err(EvictError::PricedTwice(4)));

    let numbered = good.numbered([1, 0]).unwrap();
    let more = EvictError::Infeasible { asked: 7, possible: 6, held: 6, floor: 0 };
    assert_eq!(numbered.schedule(7), Err(more));
}

#[test]
fn a_schedule_says_what_it_held() {
    let scores = vec![Score::MAX; 320];
    let positions = crate::base::Positions::Identity;
    let heads = [HeadSlots { scores: &scores, positions, slots_per_page: 16 }; 3];
    let held = |allocation, asked| {
        let policy = Policy { allocation, ..Policy::default() };
        let prices = PagePrices::new(&heads, 320, &policy, usize::MAX).unwrap();
        prices.schedule(asked).unwrap().scratch_bytes()
    };
    // The limits and the result; the extents; the shares and the histogram.
    let own = 3 * 2 * size_of::<u32>();
    assert_eq!(held(Allocation::Global, 0), own);
    assert_eq!(held(Allocation::PerHead, 9), own + 3 * size_of::<HeadExtent>());
    assert_eq!(held(Allocation::Global, 9), own + 3 * 8 + 65_536 * size_of::<u32>());
}

#[test]
fn shares_that_heads_cannot_give_are_refused() {
    let scores = vec![Score::ZERO; 40];
    let positions = crate::base::Positions::Identity;
    let head = HeadSlots { scores: &scores, positions, slots_per_page: 16 };
    let policy = Policy { sinks: 4, window: 8, ..Policy::default() };
    let plan = |pages: &[u32]| plan_pages(&[head, head], 40, &policy, pages);
    assert_eq!(plan(&[2, 0]).unwrap().pages_freed(), 2);
    let wrong = EvictError::Length { what: "the pages of all heads", got: 1, expected: 2 };
    assert_eq!(plan(&[1]), Err(wrong));
    let over = EvictError::InfeasibleHead { head: 1, asked: 3, possible: 2, held: 3 };
    assert_eq!(plan(&[2, 3]), Err(over));
}
