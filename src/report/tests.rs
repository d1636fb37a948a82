//! The report against a naive recount from the tables.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::{
    base::CacheShape,
    cache::{CacheConfig, CacheError, Capacity, Compression, FormatMap, KvCache, KvSequence},
    evict::{Budget, Policy, ScorerKind},
    format::{PageFormat, PageLayout, SlotFormat},
    plan::PlanError,
    store::PageStore,
};

fn shape() -> CacheShape {
    CacheShape::new(3, 2, 4, 32).unwrap()
}

/// i8 pages of this page size have bytes that no slot can use.
fn mixed() -> FormatMap {
    FormatMap::uniform(PageFormat::both(SlotFormat::F16))
        .with(1, PageFormat::both(SlotFormat::I8))
        .with(4, PageFormat { k: SlotFormat::F32, v: SlotFormat::I8 })
}

fn cache(shape: CacheShape, block_tokens: usize, formats: FormatMap, pages: usize) -> KvCache {
    let capacity = Capacity::Pages(pages);
    let rollback = 0;
    KvCache::new(&CacheConfig { shape, block_tokens, formats, rollback, capacity }).unwrap()
}

/// Appends `tokens` tokens whose keys differ from head to head and from token to token.
fn append(cache: &KvCache, sequence: &mut KvSequence, tokens: usize) -> Result<(), CacheError> {
    let shape = cache.shape().clone();
    let first = sequence.tokens();
    let mut step = cache.step([(sequence, tokens)])?;
    for layer in 0..shape.layers() {
        let value = |i: usize| ((first * 31 + layer * 7 + i * i) % 97) as f32 / 97.0 - 0.5;
        let q = vec![0.1; tokens * shape.layer(0).q_row()];
        let kv: Vec<f32> = (0..tokens * shape.layer(0).k_row()).map(value).collect();
        let mut out = vec![0.0; q.len()];
        step.attend(layer, &q, &kv, &kv, &mut out)?;
    }
    step.commit()?;
    Ok(())
}

fn compress(cache: &KvCache, sequence: &mut KvSequence, ratio: f64) -> Result<(), CacheError> {
    let policy = Policy { sinks: 2, window: 3, ..Policy::default() };
    let scorer = Arc::from(ScorerKind::KeyDiff.build());
    cache.compress(sequence, &Compression { scorer, policy, budget: Budget::Ratio(ratio) })?;
    Ok(())
}

/// Pages and slots of a head, by the plainest counting there is: the set of (page, slot) in use.
#[derive(Default)]
struct Recount {
    /// Sequences of different formats may meet in a head, each with pages of its own.
    pages: HashMap<u32, PageLayout>,
    slots: HashSet<(u32, usize)>,
}

impl Recount {
    fn count(&mut self, sequence: &KvSequence, head: usize) {
        let (table, layout) = (sequence.tables().head(head), *sequence.layouts().of(head));
        self.pages.extend(table.pages.iter().map(|&page| (page, layout)));
        let slots = (0..table.slots).map(|s| (table.pages[s / layout.slots], s % layout.slots));
        self.slots.extend(slots);
    }

    fn result(&self) -> MemoryUse {
        let sum = |of: fn(&PageLayout) -> usize| self.pages.values().map(of).sum::<usize>();
        let used_bytes = self.slots.iter().map(|(page, _)| self.pages[page].slot_bytes()).sum();
        let room = sum(|layout| layout.slots * layout.slot_bytes());
        MemoryUse {
            pages: self.pages.len(),
            slots: self.slots.len(),
            held_bytes: sum(|layout| layout.page_bytes),
            used_bytes,
            tail_waste_bytes: room - used_bytes,
            layout_waste_bytes: sum(|layout| layout.page_bytes) - room,
        }
    }
}

fn check(cache: &KvCache, live: &[KvSequence]) {
    let report = MemoryReport::of(cache, live).unwrap();
    let heads = shape().heads();
    let mut owners: HashMap<u32, usize> = HashMap::new();
    let mut by_layer: BTreeMap<usize, MemoryUse> = BTreeMap::new();
    let mut total = MemoryUse::default();
    for head in 0..heads {
        let mut all = Recount::default();
        for (sequence, reported) in live.iter().zip(&report.sequences) {
            all.count(sequence, head);
            let mut one = Recount::default();
            one.count(sequence, head);
            assert_eq!(reported.heads[head].memory, one.result());
            sequence
                .tables()
                .head(head)
                .pages
                .iter()
                .for_each(|&p| *owners.entry(p).or_default() += 1);
        }
        let counted = &report.heads[head];
        assert_eq!((counted.layer, counted.kv_head), (head / 2, head % 2));
        assert_eq!(counted.memory, all.result());
        *by_layer.entry(counted.layer).or_default() += all.result();
        total += all.result();
    }
    assert_eq!(report.layers, by_layer.into_values().collect::<Vec<_>>());
    assert_eq!(report.total, total);
    let parts = total.used_bytes + total.tail_waste_bytes + total.layout_waste_bytes;
    assert_eq!(total.held_bytes, parts);

    let page = cache.store().page_bytes();
    let pool = &report.pool;
    assert_eq!(pool.held, owners.len() * page);
    assert_eq!(pool.shared, owners.values().filter(|&&n| n > 1).count() * page);
    assert_eq!(pool.free + pool.held + pool.fenced, pool.total);
    assert_eq!(report.unlisted_pages, 0);
    let free = pool.free / page;
    let fits = (0..).take_while(|&t| cache.table_plan().pages_for(t) <= free).last().unwrap();
    assert_eq!(pool.beyond_whole_tokens, (free - cache.table_plan().pages_for(fits)) * page);

    let metadata: usize = live.iter().map(KvSequence::metadata_bytes).sum();
    assert_eq!(report.metadata.total, metadata + cache.manager().metadata_bytes());

    for (sequence, reported) in live.iter().zip(&report.sequences) {
        assert_eq!(reported.total, reported.layers.iter().copied().sum());
        let slots_per_page = |head: usize| sequence.layouts().of(head).slots;
        let lengths: Vec<usize> = sequence.tables().heads().map(|t| t.slots).collect();
        let bytes = |length: &dyn Fn(usize) -> usize| -> usize {
            (0..heads).map(|head| length(head).div_ceil(slots_per_page(head)) * page).sum()
        };
        let whole = bytes(&|_| sequence.tokens());
        let longest_in = |head: usize| lengths[head / 2 * 2].max(lengths[head / 2 * 2 + 1]);
        assert_eq!(reported.alternatives.unevicted, whole);
        let longest = *lengths.iter().max().unwrap();
        assert_eq!(reported.alternatives.table_per_sequence, bytes(&|_| longest));
        assert_eq!(reported.alternatives.table_per_layer, bytes(&longest_in));
        assert_eq!(reported.alternatives.contiguous_f16, sequence.tokens() * heads * 2 * 32 * 2);
        let held: usize = sequence.tables().heads().map(|t| t.pages.len() * page).sum();
        let kept: usize = lengths.iter().sum();
        let theory = (kept > 0).then(|| (sequence.tokens() * heads) as f64 / kept as f64);
        let practice = (held > 0).then(|| whole as f64 / held as f64);
        assert_eq!(reported.compression.theoretical, theory);
        assert_eq!(reported.compression.physical, practice);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Append, fork, compress and truncate in any order: every number equals the recount.
    #[test]
    fn the_report_equals_a_recount(
        ops in prop::collection::vec((0u8..6, 0usize..8, 1usize..24), 1..20),
    ) {
        let cache = cache(shape(), 5, mixed(), 300);
        let mut live: Vec<KvSequence> = Vec::new();
        for (op, which, amount) in ops {
            if op == 0 || live.is_empty() {
                let formats = FormatMap::uniform(PageFormat::both(SlotFormat::Bf16));
                let other = cache.sequence_with(&formats).unwrap();
                live.push(if amount % 3 == 0 { other } else { cache.sequence() });
            }
            let which = which % live.len();
            // Refusals (no pages left, nothing to evict) change nothing, which is checked too.
            match op {
                1 | 2 => drop(append(&cache, &mut live[which], amount)),
                3 => live.push(cache.fork(&live[which]).unwrap()),
                4 => drop(compress(&cache, &mut live[which], 1.0 + amount as f64 / 6.0)),
                _ => {
                    let keep = live[which].tokens().saturating_sub(amount / 4);
                    drop(cache.truncate(&mut live[which], keep));
                }
            }
            check(&cache, &live);
        }
    }
}

#[test]
fn shares_that_disagree_on_a_partial_page_count_its_fullest_view() {
    let cache = cache(shape(), 8, FormatMap::uniform(PageFormat::default()), 100);
    let mut long = cache.sequence();
    append(&cache, &mut long, 6).unwrap();
    let mut short = cache.fork(&long).unwrap();
    cache.truncate(&mut short, 2).unwrap();
    let both = [short, long];
    let report = MemoryReport::of(&cache, &both).unwrap();
    assert_eq!(report.sequences[0].total.slots, 2 * 6);
    assert_eq!(report.total.pages, 6);
    assert_eq!(report.total.slots, 6 * 6);
    check(&cache, &both);
}

#[test]
fn sequences_left_out_are_unlisted_and_foreign_ones_refused() {
    let uniform = || FormatMap::uniform(PageFormat::default());
    let small = cache(shape(), 8, uniform(), 10);
    let large = cache(shape(), 8, uniform(), 100);
    let mut sequence = large.sequence();
    append(&large, &mut sequence, 20).unwrap();
    let report = MemoryReport::of(&large, []).unwrap();
    assert_eq!(report.unlisted_pages, 18);
    let empty = CompressionRates { theoretical: None, physical: None, ratio: None };
    assert_eq!(report.compression, empty);
    let foreign = CacheError::Plan(PlanError::ForeignSequence);
    assert_eq!(MemoryReport::of(&small, [&sequence]).unwrap_err(), foreign);
    let other = cache(CacheShape::new(1, 1, 1, 32).unwrap(), 8, uniform(), 100);
    assert_eq!(MemoryReport::of(&other, [&sequence]).unwrap_err(), foreign);
    // Within the pool's ids, but the pool holds nothing.
    let mut first = small.sequence();
    append(&small, &mut first, 1).unwrap();
    let twin = cache(shape(), 8, uniform(), 10);
    assert_eq!(MemoryReport::of(&twin, [&first]).unwrap_err(), foreign);
    // Within the pool's ids, and the pool holds as many pages.
    let twin = twin;
    let mut second = twin.sequence();
    append(&twin, &mut second, 1).unwrap();
    assert_eq!(MemoryReport::of(&twin, [&first]).unwrap_err(), foreign);
    let twice = CacheError::Plan(PlanError::ListedTwice);
    assert_eq!(MemoryReport::of(&twin, [&second, &second]).unwrap_err(), twice);
    std::mem::forget(twin.step([(&mut second, 1)]).unwrap());
    let open = CacheError::Plan(PlanError::OpenGuard);
    assert_eq!(MemoryReport::of(&twin, [&second]).unwrap_err(), open);
    second.recover().unwrap();
    MemoryReport::of(&twin, [&second]).unwrap();
}

#[test]
fn metadata_is_within_two_percent_at_head_dim_128() {
    let shape = CacheShape::new(4, 2, 4, 128).unwrap();
    let pages = 8 * 2048 / 16;
    let cache = cache(shape, 16, FormatMap::uniform(PageFormat::default()), pages);
    let mut sequence = cache.sequence();
    sequence.observe(Arc::from(ScorerKind::KvCompress.build()));
    for _ in 0..8 {
        append(&cache, &mut sequence, 256).unwrap();
    }
    let full = MemoryReport::of(&cache, [&sequence]).unwrap();
    assert!(full.pool.free == 0 && full.metadata.scores > 0, "{full}");
    assert!(full.metadata.share_of_pool <= 0.02, "{full}");
    compress(&cache, &mut sequence, 4.0).unwrap();
    let compressed = MemoryReport::of(&cache, [&sequence]).unwrap();
    assert!(compressed.metadata.share_of_pool <= 0.02, "{compressed}");
}

#[test]
fn text_and_json_say_the_same() {
    let cache = cache(shape(), 16, mixed(), 200);
    let mut sequence = cache.sequence();
    append(&cache, &mut sequence, 200).unwrap();
    compress(&cache, &mut sequence, 4.0).unwrap();
    let report = MemoryReport::of(&cache, [&sequence]).unwrap();
    let text = report.to_string();
    let held = Bytes(report.total.held_bytes).to_string();
    assert!(text.lines().any(|l| l.starts_with("sequences hold") && l.contains(&held)), "{text}");
    let physical = format!("{:.3}x physical", report.compression.physical.unwrap());
    assert!(text.contains(&physical), "{text}");
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["total"]["held_bytes"], report.total.held_bytes);
    assert_eq!(json["heads"][5]["layer"], 2);
    assert_eq!(json["heads"][5]["slots"], report.heads[5].memory.slots);
    assert_eq!(json["sequences"][0]["formats"]["exceptions"]["1"]["k"], "i8");
}

#[test]
fn bytes_are_short() {
    for (bytes, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (12_288, "12.0 KiB"),
        (1_048_575, "1024 KiB"),
        (3 << 30, "3.00 GiB"),
        (5000 << 40, "5000 TiB"),
    ] {
        assert_eq!(Bytes(bytes).to_string(), text);
    }
    assert_eq!(format!("{:>9}", Bytes(10)), "     10 B");
}
