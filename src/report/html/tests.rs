//! Pages with hostile text and awkward numbers.

use proptest::prelude::*;

use super::*;
use crate::report::ReportError;

const HOSTILE: &str = "</title></style><script>alert('x')</script> \"&amp;\0 onload=\"";

fn everything(text: &str, values: &[f64], scale: Scale) -> Page {
    let mut page = Page::new(text);
    let unit = Unit::Named(text.into());
    let pairs = values.chunks(2).map(|pair| (pair[0], pair[pair.len() - 1]));
    let points = pairs.map(|(x, y)| Point { x, y, label: text.into() }).collect();
    page.heading(text)
        .text(text)
        .quote(text)
        .tiles(vec![Tile::new(text, text, text)])
        .table(Table {
            title: text.into(),
            columns: vec![Column::new(text, Align::Text), Column::new(text, Align::Number)],
            rows: vec![vec![text.into()], vec![text.into(), text.into(), "beyond".into()]],
        })
        .heat_maps(HeatMaps {
            title: text.into(),
            row_name: text.into(),
            column_name: text.into(),
            value_name: text.into(),
            scale,
            maps: vec![HeatMap { title: text.into(), columns: 3, values: values.to_vec() }],
        })
        .stacked_bars(StackedBars {
            title: text.into(),
            unit: Unit::Bytes,
            parts: vec![text.into(); 3],
            last_is_rest: true,
            bars: vec![Bar { name: text.into(), values: values.to_vec() }],
        })
        .line_chart(LineChart {
            title: text.into(),
            x: Axis::new(text, scale, Unit::Bytes),
            y: Axis::new(text, scale, unit),
            series: vec![Series { name: text.into(), points }],
        });
    page
}

/// Elements in the order they open; panics where markup is not balanced or not quoted.
fn elements(html: &str) -> Vec<String> {
    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
    let (mut open, mut seen): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        let end = at + rest[at..].find('>').expect("a tag ends");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = tag.split([' ', '/']).next().unwrap().to_owned();
        if !VOID.contains(&name.as_str()) && !tag.ends_with('/') {
            open.push(name.clone());
        }
        seen.push(name);
    }
    assert_eq!(open, Vec::<String>::new());
    seen
}

#[test]
fn markup_in_text_stays_text() {
    let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let plain = everything("plain", &values, Scale::Log).to_html();
    let hostile = everything(HOSTILE, &values, Scale::Log).to_html();
    assert_eq!(elements(&plain), elements(&hostile));
    assert!(!hostile.contains("<script") && !hostile.contains('\0'));
    assert!(hostile.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &quot;&amp;amp;"));
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let html = everything("text", &[1.0, 2.0], Scale::Linear).to_html();
    for foreign in ["http", "//", "url(", "@import", "src=", "href=", "<link", "<script"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
}

#[test]
fn cells_beyond_the_columns_are_left_out() {
    let html = everything("text", &[1.0], Scale::Linear).to_html();
    assert_eq!(html.matches("<td").count(), 4);
    assert!(!html.contains("beyond"));
}

#[test]
fn one_cell_per_value_and_one_marker_per_point_that_can_be_shown() {
    let values = [8.0, 0.0, f64::NAN, 4.0, 2.0, 1.0];
    let html = everything("text", &values, Scale::Log).to_html();
    assert_eq!(html.matches("layer").count(), 0);
    assert_eq!(html.matches("text 0, text").count(), 3);
    assert_eq!(html.matches("text 1, text").count(), 3);
    assert_eq!(html.matches("class=\"none\"").count(), 2);
    assert_eq!(html.matches("<circle").count(), 1);
}

#[test]
fn a_page_replaces_what_was_there_and_leaves_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    std::fs::write(&path, "before").unwrap();
    let page = everything("text", &[1.0, 2.0], Scale::Linear);
    page.write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), page.to_html());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_path_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no such folder/report.html");
    let error = Page::new("title").write(&missing).unwrap_err();
    assert!(matches!(&error, ReportError::Write { path, .. } if *path == missing));
    assert!(error.to_string().contains("no such folder/report.html"), "{error}");
    // A folder in the file's place: the temporary file must not stay behind.
    let taken = folder.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    assert!(Page::new("title").write(&taken).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_whole_beyond_all_numbers_leaves_the_other_bars_readable() {
    let bar = |name: &str, values: &[f64]| Bar { name: name.into(), values: values.to_vec() };
    let bars = StackedBars {
        title: "title".into(),
        unit: Unit::NONE,
        parts: vec!["a".into(), "b".into()],
        last_is_rest: false,
        bars: vec![bar("two", &[1.0, 1.0]), bar("endless", &[f64::MAX, f64::MAX])],
    };
    let html = bars.render();
    for attribute in [" x=\"", " width=\""] {
        for value in html.split(attribute).skip(1) {
            let number: f64 = value.split('"').next().unwrap().parse().unwrap();
            assert!((0.0..=1000.0).contains(&number), "{attribute}{number}");
        }
    }
    assert!(html.contains("width=\"243.00\""), "half of the room is half of the bar: {html}");
}

#[test]
fn numbers_read_well() {
    let show = |value| Unit::NONE.show(value);
    for (value, text) in [
        (0.0, "0"),
        (19.02, "19.02"),
        (2048.0, "2048"),
        (123_456.0, "123456"),
        (0.000_61, "0.00061"),
        (1.0 / 3.0, "0.3333"),
        (-0.5, "-0.5"),
        (1e-9, "1.00e-9"),
        (5e12, "5.00e12"),
    ] {
        assert_eq!(show(value), text);
    }
    assert_eq!(Unit::Named("tokens/s".into()).show(31.25), "31.25 tokens/s");
    assert_eq!(Unit::Bytes.show(1536.0), "1.50 KiB");
}

#[test]
fn ticks_are_round_and_few() {
    let ticks =
        |scale, low, high, unit: &Unit| axis::Domain::tight(scale, [low, high]).ticks(unit, 6);
    assert_eq!(ticks(Scale::Linear, 0.0, 100.0, &Unit::NONE), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
    assert_eq!(ticks(Scale::Log, 1.0, 100.0, &Unit::NONE), [1., 2., 5., 10., 20., 50., 100.]);
    let mib = f64::from(1 << 20);
    let powers = [1.0, 2.0, 4.0, 8.0, 16.0].map(|n| n * mib);
    assert_eq!(ticks(Scale::Log, mib, 16.0 * mib, &Unit::Bytes), powers);
}

/// The widths of a container, in rem, at which its only table's rows become cards.
fn cards_up_to(html: &str) -> f64 {
    let table = html.split("<table").nth(1).expect("a table");
    let class = table.split('"').nth(1).filter(|class| class.starts_with("fit-"));
    let class = class.expect("a table says what it needs");
    let as_cards = format!(".{class} tr {{ display: grid;");
    let before = html.split(&as_cards).next().filter(|before| before.len() < html.len());
    let before = before.expect("the page has the rules of its table");
    match before.rsplit_once("@container (max-width: ") {
        Some((_, query)) if query.matches('{').count() > query.matches('}').count() => {
            query.split("rem").next().unwrap().parse().unwrap()
        }
        _ => f64::INFINITY,
    }
}

/// The room that a table needs in the letters of Liberation Sans and Segoe UI, where digits are 0.556
/// em wide and no other letter of these headers is wider on average, in rem.
fn room(table: &Table) -> f64 {
    let columns = table.columns.iter().enumerate().map(|(index, column)| {
        let cells = table.rows.iter().filter_map(|row| row.get(index));
        let cell = cells.map(|cell| cell.chars().count()).max().unwrap_or(0) as f64 * 0.9;
        let word = column.name.split(' ').map(|word| word.chars().count()).max();
        let header = word.unwrap_or(0) as f64 * 0.8;
        1.1 + 0.556 * cell.max(header)
    });
    columns.sum()
}

/// Requires that the cells of a table stand beside each other in every page of 1200 pixels and more.
pub(crate) fn assert_fits_1200_pixels(table: &Table) {
    let html = Page::new("page").table(table.clone()).to_html();
    let cards = cards_up_to(&html);
    assert!(room(table) <= cards, "{} rem of cells beside each other in {cards}", room(table));
    // The page's own margins are 2.5 rem, and a rem is 16 pixels, as many as a scroll bar takes.
    let (_, css) = html.split_once("main { max-width: ").unwrap();
    let most: f64 = css.split("rem").next().unwrap().parse().unwrap();
    let container = f64::min(1200.0 / 16.0 - 1.0, most) - 2.5;
    assert!(cards < container, "at 1200 pixels it is still a table: {cards} < {container}");
}

proptest! {
    /// Where a table's cells do not fit beside each other, its rows are cards.
    #[test]
    fn a_table_fits_its_page(
        cells in prop::collection::vec(("[a-z]{1,14}( [a-z/,]{1,14})?", "[0-9.,%+x ]{0,18}"), 1..20),
    ) {
        let columns = cells.iter().map(|(name, _)| Column::new(name, Align::Number)).collect();
        let rows = vec![cells.iter().map(|(_, cell)| cell.clone()).collect()];
        let table = Table { title: String::new(), columns, rows };
        let cards = cards_up_to(&Page::new("page").table(table.clone()).to_html());
        prop_assert!(room(&table) <= cards, "{} rem in {cards}", room(&table));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the numbers: balanced markup, numbers that SVG can read, ticks inside the chart.
    #[test]
    fn any_numbers_make_a_page(
        values in prop::collection::vec(prop_oneof![
            any::<f64>(),
            -10.0..10.0f64,
            Just(0.0),
            Just(f64::MAX),
            Just(f64::MIN_POSITIVE),
        ], 0..30),
        log in any::<bool>(),
        text in "\\PC{0,40}",
    ) {
        let scale = if log { Scale::Log } else { Scale::Linear };
        let html = everything(&text, &values, scale).to_html();
        elements(&html);
        for attribute in [" x=\"", " y=\"", " cx=\"", " cy=\"", " x1=\"", " y1=\"", " width=\""] {
            for value in html.split(attribute).skip(1) {
                let number = value.split('"').next().unwrap();
                let finite = number.parse::<f64>().is_ok_and(f64::is_finite) || number == "100%";
                // Text given may itself look like an attribute, but never with real quotes.
                prop_assert!(finite, "{attribute}{number}");
            }
        }
        let domain = axis::Domain::roomy(scale, values.iter().copied());
        let ticks = domain.ticks(&Unit::NONE, 6);
        prop_assert!(ticks.len() <= 20, "{ticks:?} in {domain:?}");
        prop_assert!(ticks.iter().all(|&t| domain.low <= t && t <= domain.high), "{ticks:?} in {domain:?}");
    }
}
