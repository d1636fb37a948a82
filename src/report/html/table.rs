//! Tables.

use super::escape::Escaped;

/// A table with one header row.
#[derive(Clone, Debug)]
pub struct Table {
    /// What it shows; empty for none.
    pub title: String,
    /// Header and alignment of each column.
    pub columns: Vec<Column>,
    /// Cells, row by row. Missing cells stay empty, cells beyond the columns are not shown.
    pub rows: Vec<Vec<String>>,
}

/// A column of a [`Table`].
#[derive(Clone, Debug)]
pub struct Column {
    /// Header, with the unit.
    pub name: String,
    /// How its cells stand.
    pub align: Align,
}

/// How the cells of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words, from the left.
    Text,
    /// Numbers, to the right with digits of one width.
    Number,
}

impl Column {
    /// A column.
    pub fn new(name: impl Into<String>, align: Align) -> Self {
        Self { name: name.into(), align }
    }
}

/// Widths in rem. A table has the first that holds its cells as a class; where there is less room, each
/// of its rows becomes a card.
const WIDTHS: [u32; 14] = [16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68];

/// The rules of a table whose rows are cards: each cell carries the name of its column.
const CARDS: &str = "\
    TABLE, TABLE tbody { display: block; }\n\
    TABLE thead { display: none; }\n\
    TABLE tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); \
    gap: 0.4rem 1rem; padding: 0.7rem 0; border-bottom: 1px solid var(--hair); }\n\
    TABLE td { display: block; min-width: 0; padding: 0; border: 0; text-align: left; white-space: normal; }\n\
    TABLE td:first-child { grid-column: 1 / -1; font-weight: 600; }\n\
    TABLE td::before { content: attr(data-name); display: block; color: var(--quiet); font-size: 0.8rem; \
    font-weight: 400; }\n";

/// The rules that make every table fit the room it has.
pub(super) fn style() -> String {
    let narrower = WIDTHS.iter().map(|width| {
        let cards = CARDS.replace("TABLE", &format!(".fit-{width}"));
        format!("@container (max-width: {width}rem) {{\n{cards}}}\n")
    });
    narrower.chain([CARDS.replace("TABLE", ".fit-none")]).collect()
}

impl Table {
    pub(super) fn render(&self) -> String {
        let mut html = String::from("<figure class=\"table\">");
        if !self.title.is_empty() {
            html += &format!("<figcaption>{}</figcaption>", Escaped(&self.title));
        }
        html += &format!("<div class=\"scroll\"><table class=\"{}\"><thead><tr>", self.fit());
        for column in &self.columns {
            html += &format!("<th scope=\"col\"{}>{}</th>", column.class(), Escaped(&column.name));
        }
        html += "</tr></thead><tbody>";
        for row in &self.rows {
            html += "<tr>";
            let cells = row.iter().map(String::as_str).chain(std::iter::repeat(""));
            for (column, cell) in self.columns.iter().zip(cells) {
                let (class, name) = (column.class(), Escaped(&column.name));
                html += &format!("<td{class} data-name=\"{name}\">{}</td>", Escaped(cell));
            }
            html += "</tr>\n";
        }
        html += "</tbody></table></div></figure>\n";
        html
    }

    /// The class of the first width that holds the cells beside each other.
    fn fit(&self) -> String {
        let cells = |index| self.rows.iter().filter_map(move |row| row.get(index));
        let columns = self.columns.iter().enumerate();
        let needed: f64 =
            columns.map(|(index, column)| column.width(cells(index).map(String::as_str))).sum();
        match WIDTHS.iter().find(|&&width| needed <= f64::from(width)) {
            Some(width) => format!("fit-{width}"),
            None => "fit-none".to_owned(),
        }
    }
}

impl Column {
    /// The room that the column takes at least, in rem, in any font that is not unusually wide. Sizes
    /// and gaps are those of `page.css`.
    fn width<'a>(&self, cells: impl Iterator<Item = &'a str>) -> f64 {
        let (em_per_letter, cell_size, header_size) = (0.62, 0.9, 0.8);
        let (gap, least) = (1.1, 2.4);
        let word = |text: &str| text.split_whitespace().map(letters).max().unwrap_or(0);
        // Numbers do not break; words are not broken where they fit.
        let cell = cells.map(|cell| match self.align {
            Align::Text => word(cell),
            Align::Number => letters(cell),
        });
        let cell = cell.max().unwrap_or(0) as f64 * cell_size * em_per_letter;
        let header = word(&self.name) as f64 * header_size * em_per_letter;
        gap + cell.max(header).max(least)
    }

    fn class(&self) -> &'static str {
        match self.align {
            Align::Text => "",
            Align::Number => " class=\"n\"",
        }
    }
}

/// Letters of a text; those that are drawn twice as wide, as in Chinese, count twice.
fn letters(text: &str) -> usize {
    text.chars().map(|letter| if letter >= '\u{1100}' { 2 } else { 1 }).sum()
}
