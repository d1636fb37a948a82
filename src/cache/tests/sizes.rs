//! Sizes of caches, from nothing to more than there is.

use proptest::prelude::*;

use crate::{
    base::CacheShape,
    cache::{CacheConfig, Capacity, FormatMap, KvCache},
    format::{PageFormat, SlotFormat},
};

/// Counts that are small enough for a test, or that no machine has.
fn count() -> impl Strategy<Value = usize> {
    let most = [usize::MAX, usize::MAX - 1, usize::MAX / 2, isize::MAX as usize, 1 << 62];
    prop_oneof![0..40usize, prop::sample::select(most.to_vec())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A cache of the size asked for, or an error.
    #[test]
    fn any_sizes_make_a_cache_or_an_error(
        block_tokens in count(),
        amount in count(),
        kind in 0..3usize,
        format in prop::sample::select(SlotFormat::ALL.to_vec()),
    ) {
        let shape = CacheShape::new(2, 2, 4, 16).unwrap();
        let capacity = [Capacity::Pages(amount), Capacity::Bytes(amount), Capacity::Tokens(amount)];
        let config = CacheConfig {
            rollback: 0,
            shape: shape.clone(),
            block_tokens,
            formats: FormatMap::uniform(PageFormat::both(format)),
            capacity: capacity[kind],
        };
        if let Ok(cache) = KvCache::new(&config) {
            prop_assert!((1..40).contains(&block_tokens) && (1..40).contains(&amount));
            prop_assert!(cache.stats().free >= shape.heads());
        }
    }
}
