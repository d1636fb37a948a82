//! The demo's report page.

use super::{
    outcome::Outcome,
    rates::{Rates, times},
    serving::Serving,
};
use crate::report::{
    Bytes,
    html::{
        Align, Axis, Bar, Column, HeatMap, HeatMaps, LineChart, Page, Point, Scale, Series,
        StackedBars, Table, Tile, Unit,
    },
};

pub(super) fn page(outcome: &Outcome) -> Page {
    let Outcome { model, format, rates, serving, seconds } = outcome;
    let mut page = Page::new("headwise demo");
    page.text(&format!(
        "{model} read {} tokens into a cache in which every (layer, KV head) has its own page table. \
         The cache was then compressed at several rates by evicting whole {format} pages, head by \
         head, where the attention of the newest queries says they matter least. The memory is \
         really freed. {seconds:.0} seconds in all.",
        rates.context_tokens,
    ));
    tiles(&mut page, rates, serving);
    page.heading("One context, every rate");
    page.table(rate_table(rates));
    page.line_chart(quality_chart(rates));
    page.heading("What each head keeps");
    page.text(
        "Heads differ in how much of the context they use, so they keep different lengths. A single \
         table for all heads would have to keep the longest of them everywhere.",
    );
    page.heat_maps(heat_maps(rates));
    page.heading("Where the memory is");
    page.stacked_bars(memory_bars(rates));
    page.table(alternatives(rates));
    page.heading("The same requests in the same memory");
    page.table(serving_table(serving));
    page.heading("How the text goes on");
    for row in &rates.rows {
        page.text(&format!("{}x", row.ratio));
        page.quote(&row.text);
    }
    page
}

fn tiles(page: &mut Page, rates: &Rates, serving: &Serving) {
    let mut tiles = Vec::new();
    if let Some(row) = rates.rows.iter().max_by(|a, b| a.ratio.total_cmp(&b.ratio)) {
        let memory = &row.memory;
        let freed = memory.alternatives.unevicted.saturating_sub(memory.total.held_bytes);
        tiles.push(Tile::new(
            format!("freed at {}x", row.ratio),
            Bytes(freed).to_string(),
            format!("of {}", Bytes(memory.alternatives.unevicted)),
        ));
        tiles.push(Tile::new(
            format!("perplexity at {}x", row.ratio),
            format!("{:+.1}%", 100.0 * row.perplexity_change),
            "against the full cache".to_owned(),
        ));
        tiles.push(Tile::new(
            "physical by theoretical",
            memory.compression.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}")),
            "how much of the eviction became free pages".to_owned(),
        ));
    }
    tiles.push(Tile::new(
        "requests at once",
        format!("{} → {}", serving.plain.stats.peak_running, serving.compressed.stats.peak_running),
        format!("in {} of KV memory", Bytes(serving.pages * serving.page_bytes)),
    ));
    let speedup = serving.compressed.tokens_per_second / serving.plain.tokens_per_second;
    tiles.push(Tile::new(
        "throughput",
        format!("{speedup:.2}x"),
        format!("at {}x compression, prefill included", serving.ratio),
    ));
    page.tiles(tiles);
}

fn rate_table(rates: &Rates) -> Table {
    let columns = [
        "held",
        "used",
        "physical",
        "theoretical",
        "ratio of both",
        "pages freed",
        "metadata",
        "decode, tokens/s",
        "perplexity",
        "change",
        "KL, nats",
        "top-1",
    ];
    let mut header = vec![Column::new("rate", Align::Text)];
    header.extend(columns.map(|name| Column::new(name, Align::Number)));
    let rows = rates.rows.iter().map(|row| {
        let memory = &row.memory;
        vec![
            format!("{}x", row.ratio),
            Bytes(memory.total.held_bytes).to_string(),
            Bytes(memory.total.used_bytes).to_string(),
            times(memory.compression.physical),
            times(memory.compression.theoretical),
            memory.compression.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}")),
            row.pages_freed.to_string(),
            Bytes(memory.sequences.iter().map(|s| s.metadata.total).sum()).to_string(),
            format!("{:.1}", row.decode_tokens_per_second),
            format!("{:.3}", row.perplexity),
            format!("{:+.2}%", 100.0 * row.perplexity_change),
            format!("{:.4}", row.quality.kl),
            format!("{:.1}%", 100.0 * row.quality.top1),
        ]
    });
    let title = format!("{} tokens that follow the context", rates.following_tokens);
    Table { title, columns: header, rows: rows.collect() }
}

fn quality_chart(rates: &Rates) -> LineChart {
    let points = rates.rows.iter().map(|row| Point {
        x: row.memory.total.held_bytes as f64,
        y: 100.0 * row.perplexity_change,
        label: format!("{}x", row.ratio),
    });
    LineChart {
        title: "Quality against memory".to_owned(),
        x: Axis::new("KV memory held", Scale::Log, Unit::Bytes),
        y: Axis::new("perplexity change", Scale::Linear, Unit::Named("%".to_owned())),
        series: vec![Series { name: "kv-compress".to_owned(), points: points.collect() }],
    }
}

fn heat_maps(rates: &Rates) -> HeatMaps {
    let columns = |row: &super::rates::Rate| {
        row.memory.shape.iter().map(crate::base::LayerShape::kv_heads).max().unwrap_or(1)
    };
    let maps = rates.rows.iter().filter(|row| row.ratio > 1.0).map(|row| HeatMap {
        title: format!("{}x", row.ratio),
        columns: columns(row),
        values: row.slots.iter().map(|&slots| slots as f64).collect(),
    });
    HeatMaps {
        title: "Slots kept".to_owned(),
        row_name: "layer".to_owned(),
        column_name: "KV head".to_owned(),
        value_name: "slots".to_owned(),
        scale: Scale::Log,
        maps: maps.collect(),
    }
}

fn memory_bars(rates: &Rates) -> StackedBars {
    let bars = rates.rows.iter().map(|row| {
        let (memory, total) = (&row.memory, &row.memory.total);
        let metadata: usize = memory.sequences.iter().map(|s| s.metadata.total).sum();
        let freed = memory.alternatives.unevicted.saturating_sub(total.held_bytes);
        let parts =
            [total.used_bytes, total.tail_waste_bytes, total.layout_waste_bytes, metadata, freed];
        Bar { name: format!("{}x", row.ratio), values: parts.map(|bytes| bytes as f64).to_vec() }
    });
    let parts = ["slots in use", "free slots of last pages", "unusable bytes", "metadata", "freed"];
    StackedBars {
        title: "Memory of the context".to_owned(),
        unit: Unit::Bytes,
        parts: parts.map(str::to_owned).to_vec(),
        last_is_rest: true,
        bars: bars.collect(),
    }
}

fn alternatives(rates: &Rates) -> Table {
    let columns = ["a table per head (here)", "a table per layer", "one table", "contiguous f16"];
    let mut header = vec![Column::new("rate", Align::Text)];
    header.extend(columns.map(|name| Column::new(name, Align::Number)));
    let rows = rates.rows.iter().map(|row| {
        let other = &row.memory.alternatives;
        let bytes = [
            row.memory.total.held_bytes,
            other.table_per_layer,
            other.table_per_sequence,
            other.contiguous_f16,
        ];
        let cells = bytes.map(|bytes| Bytes(bytes).to_string());
        std::iter::once(format!("{}x", row.ratio)).chain(cells).collect()
    });
    let title = "What the same kept slots would hold elsewhere".to_owned();
    Table { title, columns: header, rows: rows.collect() }
}

fn serving_table(serving: &Serving) -> Table {
    let columns = [
        "at once",
        "peak KV",
        "tokens/s",
        "decode, tokens/s",
        "mean batch",
        "pages evicted",
        "preempted",
        "seconds",
    ];
    let mut header = vec![Column::new("cache", Align::Text)];
    header.extend(columns.map(|name| Column::new(name, Align::Number)));
    let rows = serving.runs().map(|(name, run)| {
        vec![
            name,
            run.stats.peak_running.to_string(),
            Bytes(run.stats.peak_pages * serving.page_bytes).to_string(),
            format!("{:.1}", run.tokens_per_second),
            format!("{:.1}", run.decode_tokens_per_second),
            format!("{:.1}", run.mean_running),
            run.stats.pages_evicted.to_string(),
            run.stats.preemptions.to_string(),
            format!("{:.1}", run.seconds),
        ]
    });
    let title = format!(
        "{} requests of {} + {} tokens in {} of KV memory",
        serving.requests,
        serving.prompt_tokens,
        serving.generated_tokens,
        Bytes(serving.pages * serving.page_bytes),
    );
    Table { title, columns: header, rows: rows.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::{super::rates::Rate, *};
    use crate::{
        base::CacheShape,
        cache::{CacheConfig, KvCache},
        engine::eval::Quality,
        report::{MemoryReport, html::tests::assert_fits_1200_pixels},
    };

    /// A rate with the longest cells that a run has shown.
    fn widest() -> Rates {
        let bytes = |units: f64, unit: u32| (units * f64::from(unit)) as usize;
        let shape = CacheShape::new(1, 1, 1, 16).unwrap();
        let cache = KvCache::new(&CacheConfig::new(shape, 16)).unwrap();
        let mut memory = MemoryReport::of(&cache, [&cache.sequence()]).unwrap();
        memory.total.held_bytes = bytes(45.02, 1 << 20);
        memory.total.used_bytes = bytes(44.97, 1 << 20);
        memory.compression.physical = Some(16.0);
        memory.compression.theoretical = Some(16.02);
        memory.compression.ratio = Some(0.998);
        memory.sequences[0].metadata.total = bytes(796.24, 1 << 10);
        let row = Rate {
            ratio: 16.0,
            quality: Quality { kl: 0.1234, top1: 1.0, ..Quality::default() },
            perplexity: 19.021,
            perplexity_change: 0.1234,
            pages_freed: 10_800,
            decode_tokens_per_second: 103.4,
            text: String::new(),
            memory,
            slots: Vec::new(),
        };
        Rates {
            context_tokens: 2048,
            following_tokens: 128,
            prefill_tokens_per_second: 1.0,
            saturated: 0,
            rows: vec![row],
        }
    }

    #[test]
    fn the_widest_table_fits_a_page_of_1200_pixels_and_every_other() {
        let table = rate_table(&widest());
        let longest = [
            "16x", "45.0 MiB", "45.0 MiB", "16.00x", "16.02x", "0.998", "10800", "796 KiB",
            "103.4", "19.021", "+12.34%", "0.1234", "100.0%",
        ];
        assert_eq!(table.rows, [longest]);
        assert_eq!(table.columns.len(), longest.len());
        assert_fits_1200_pixels(&table);
        let html = Page::new("page").table(table).to_html();
        assert!(html.contains("<td class=\"n\" data-name=\"held\">45.0 MiB</td>"), "{html}");
    }
}
